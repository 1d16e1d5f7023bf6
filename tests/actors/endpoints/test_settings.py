from __future__ import annotations

from pathlib import Path

import pytest

from myna.actors.config import ConfigError
from myna.actors.endpoints.settings import Dialect, Endpoint, Prices, read

GOOD = """
[[endpoint]]
name = "vllm-a"
url = "http://127.0.0.1:8000/v1"
dialect = "vllm"
models = { "llama" = "meta/Llama" }

[[endpoint]]
name = "hosted"
url = "https://api.example.com/v1"
key_env = "THE_KEY"
prices = { input = 0.15, output = 0.6 }

[[budget]]
of = "tenant"
per = "day"
money = 5
"""


def written(folder: Path, text: str, name: str = "endpoints.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_of_endpoints_is_read_as_toml_or_json(tmp_path: Path) -> None:
    first, hosted = read(written(tmp_path, GOOD)).endpoint
    assert (first.dialect, first.models, first.by_name_only) == (Dialect.VLLM, {"llama": "meta/Llama"}, False)
    assert (hosted.prices, hosted.by_name_only) == (Prices(input=0.15, output=0.6), True)
    json = written(tmp_path, '{"endpoint": [{"name": "a", "url": "http://h:1/v1"}]}', "endpoints.json")
    assert read(json).endpoint == (Endpoint(name="a", url="http://h:1/v1"),)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"vllm-a"', '"hosted"', "two endpoints are called 'hosted'"),
        ('"vllm-a"', '"a b"', "endpoint[0].name"),
        ('"vllm"', '"ollama"', "Invalid enum value 'ollama'"),
        ("dialect", "dialekt", "unknown field `dialekt`"),
        ("http://127", "ftp://127", "endpoint[0].url"),
        ("http://127", "http://user:pw@127", "endpoint[0].url"),
        ("key_env", 'key_file = "k"\nkey_env', "exclude each other"),
        ("money = 5", "", "needs `money` or `tokens`"),
        ("money = 5", 'money = 5\nendpoints = ["x"]', "names an endpoint 'x'"),
        ("money = 5", 'money = 5\nendpoints = ["vllm-a"]', "needs an endpoint with `prices`"),
        ("money = 5", 'money = 5\n[[budget]]\nof = "tenant"\nper = "day"\ntokens = 1', "make them one"),
        ("[[budget]]", "[[budget", "is wrong"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(written(tmp_path, GOOD.replace(old, new, 1)))
    assert told in str(error.value)
    assert "endpoints.toml" in str(error.value)


def test_a_key_is_read_when_it_is_used_and_is_no_part_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "sk-1\n", "key")
    endpoint = Endpoint(name="a", url="http://h", key_file=str(file))
    assert endpoint.key() == "sk-1"
    file.write_text("sk-2")
    assert endpoint.key() == "sk-2"
    assert "sk-" not in repr(endpoint)
    file.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        endpoint.key()
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(ConfigError, match="THE_KEY"):
        Endpoint(name="a", url="http://h", key_env="THE_KEY").key()

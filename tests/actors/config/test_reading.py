from __future__ import annotations

import stat
from pathlib import Path

import pytest

from myna.actors import config
from myna.actors.config import Address, ConfigError, EngineSettings, LogLevel


def test_nothing_need_be_configured(empty: dict[str, str]) -> None:
    settings = config.read({**empty, "HOME": "/home/ada"})
    assert settings.address is None
    assert settings.tenant == "default"
    assert settings.cache == Path("/home/ada/.cache/myna")
    assert settings.engine == EngineSettings()


def test_state_goes_where_xdg_says() -> None:
    assert config.read({"HOME": "/h"}).home == Path("/h/.local/state/myna")
    assert config.read({"HOME": "/h", "XDG_STATE_HOME": "/s"}).home == Path("/s/myna")
    assert config.read({"HOME": "/h", "XDG_STATE_HOME": "relative"}).home == Path("/h/.local/state/myna")


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("MYNA_URL", "localhost:4222", "must be nats://host:port"),
        ("MYNA_URL", "nats://me:secret@host:4222", "a user goes into MYNA_USER"),
        ("MYNA_TENANT", "a.b", "must be 1 to 80 of the characters"),
        ("MYNA_MAX_SEQUENCES", "0", "must be a whole number of at least 1"),
        ("MYNA_MAX_SEQUENCES", "many", "must be a whole number of at least 1"),
        ("MYNA_KV_MEMORY", "4 gigs", "must be a number of bytes"),
        ("MYNA_DTYPE", "int8", "must be one of float32, bfloat16, float16"),
        ("MYNA_DEVICE", "gpu", "must be cpu, cuda, cuda:N, or several: cuda:0,cuda:1"),
        ("MYNA_DEVICE", "cuda:1,cuda:1", "names a device twice"),
        ("MYNA_GATEWAY_PORT", "70000", "must be a port, from 1 to 65535"),
        ("MYNA_GATEWAY_ORIGINS", "example.org", "must be origins such as https://example.org"),
        ("MYNA_LOG", "loud", "must be one of debug, info, warning, error"),
        ("MYNA_LOG_FORMAT", "xml", "must be one of auto, text, json"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_what_is_right(
    empty: dict[str, str], variable: str, value: str, right: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read({**empty, variable: value})
    assert str(caught.value).startswith(f"{variable} is {value!r}")
    assert right in str(caught.value)


def test_sizes_may_have_units(empty: dict[str, str]) -> None:
    sizes = {"512": 512, "2k": 2048, "512M": 512 << 20, "4G": 4 << 30, "4GiB": 4 << 30, "1T": 1 << 40}
    for text, size in sizes.items():
        assert config.read({**empty, "MYNA_KV_MEMORY": text}).engine.kv_memory == size


def test_a_file_gives_what_the_environment_does_not(empty: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "myna.toml").write_text(
        'tenant = "from-file"\nurl = "nats://file:1"\n[engine]\nmodel = "m"\nmax_sequences = 7\n[log]\nlevel = "debug"\n'
    )
    settings = config.read({**empty, "MYNA_TENANT": "from-environment"})
    assert settings.tenant == "from-environment"
    assert settings.address == Address("nats://file:1")
    assert (settings.engine.model, settings.engine.max_sequences) == ("m", 7)
    assert settings.log.level is LogLevel.DEBUG


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenant = ", "can't be read"),
        ('tenants = "a"', "unknown key 'tenants'"),
        ('[engine]\nmodle = "a"', "'engine.modle' (did you mean model?); known in [engine] are aliases, device"),
        ("engine = 3", "must be a table, [engine]"),
        ("[engine]\nmax_sequences = true", "must be a string or a whole number"),
        ("[engine]\nmax_sequences = -1", "engine.max_sequences in"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read({"MYNA_HOME": str(tmp_path), "MYNA_CONFIG": str(path)})
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_named_file_that_is_missing_is_an_error(empty: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml can't be read"):
        config.read({**empty, "MYNA_CONFIG": "/nowhere/no.toml"})


def test_a_password_comes_from_a_file_and_is_never_shown(empty: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(stat.S_IRUSR)
    names = {**empty, "MYNA_URL": "nats://a:1", "MYNA_USER": "ada", "MYNA_PASSWORD_FILE": str(secret)}
    settings = config.read(names)
    assert settings.address is not None
    assert settings.address.password == "hunter2"
    assert "hunter2" not in repr(settings)


def test_a_user_without_a_password_is_refused(empty: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="MYNA_USER and MYNA_PASSWORD"):
        config.read({**empty, "MYNA_URL": "nats://a:1", "MYNA_USER": "ada"})

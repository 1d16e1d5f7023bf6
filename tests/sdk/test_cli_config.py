from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from myna.actors import config
from myna.sdk import cli


def myna(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, env=environment, prog_name="myna", terminal_width=200)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("MYNA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


def test_all_that_is_wrong_is_told_at_once_each_with_what_would_be_right(tmp_path: Path, home: str) -> None:
    file = tmp_path / "myna.toml"
    file.write_text('tenat = "a"\n[engine]\nmodle = "m"\ndtype = "int4"\n[gateway]\nport = 70000\n')
    result = myna("config", "check", str(file), MYNA_HOME=home, MYNA_LOGG="debug", MYNA_DEVICE="tpu")
    assert result.exit_code == 1
    for told in (
        "Error: 6 problems:",
        "unknown key 'tenat' (did you mean tenant?)",
        "unknown key 'engine.modle' (did you mean model?)",
        f"engine.dtype in {file} is 'int4': must be one of float32, bfloat16, float16",
        f"gateway.port in {file} is '70000': must be a port, from 1 to 65535",
        "MYNA_DEVICE is 'tpu': must be cpu, cuda, cuda:N, or several: cuda:0,cuda:1",
        "MYNA_LOGG is no setting (did you mean MYNA_LOG?)",
    ):
        assert told in result.output


def test_a_file_that_is_no_toml_is_told_with_its_line(tmp_path: Path, home: str) -> None:
    file = tmp_path / "myna.toml"
    file.write_text('tenant = "a"\nurl = \n')
    result = myna("config", "check", str(file), MYNA_HOME=home)
    assert result.exit_code == 1
    assert "can't be read: Invalid value (at line 2" in result.output


def test_right_settings_are_said_to_be_right_and_shown_without_the_password(tmp_path: Path, home: str) -> None:
    file = tmp_path / "myna.toml"
    file.write_text('url = "nats://n:4222"\nuser = "u"\n[engine]\nmodel = "m"\n')
    settings = {"MYNA_HOME": home, "MYNA_PASSWORD": "hunter2"}
    assert myna("config", "check", str(file), **settings).output == "the settings are right\n"
    shown = myna("config", "show", str(file), **settings).output
    assert "MYNA_MODEL=m\n" in shown
    assert "MYNA_PASSWORD=(hidden)\n" in shown
    assert "hunter2" not in shown


def test_every_variable_that_is_read_is_known() -> None:
    settings = config.to_environment(config.read({"MYNA_HOME": "/h", "MYNA_URL": "nats://n", "MYNA_LOG": "info"}))
    assert config.problems(settings) == ()

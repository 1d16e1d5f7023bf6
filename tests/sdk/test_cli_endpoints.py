from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from myna.sdk import cli
from tests.actors.endpoints.faulty import faulty, refuses


async def run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli.main, ["endpoints", *arguments], env={"COLUMNS": "200"})


async def test_each_endpoint_is_asked_what_it_serves_and_one_that_is_away_or_lacks_a_model_is_told(
    tmp_path: Path,
) -> None:
    async with faulty() as server, faulty(looks=[refuses(401, "who are you?")]) as strict:
        url, file = f"http://127.0.0.1:{server.port}/v1", tmp_path / "endpoints.json"
        good = [{"name": "all", "url": url}, {"name": "one", "url": url, "models": {"ours": "its-model"}}]
        file.write_text(json.dumps({"endpoint": good}))
        answer = await run(str(file))
        assert answer.exit_code == 0, answer.output
        assert [line.split()[0] for line in answer.output.splitlines() if "yes" in line] == ["all", "one"]
        bad = [
            {"name": "lacks", "url": url, "models": {"ours": "other"}},
            {"name": "strict", "url": f"http://127.0.0.1:{strict.port}/v1"},
        ]
        file.write_text(json.dumps({"endpoint": bad}))
        answer = await run(str(file))
        assert answer.exit_code == 1
        assert "it has no model other" in answer.output
        assert "who are you?" in answer.output


async def test_a_wrong_file_and_none_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_HOME", str(tmp_path))
    monkeypatch.delenv("MYNA_ENDPOINTS", raising=False)
    assert "set MYNA_ENDPOINTS" in (await run()).output
    (tmp_path / "e.toml").write_text('[[endpoint]]\nname = "a"\n')
    answer = await run(str(tmp_path / "e.toml"))
    assert answer.exit_code == 1
    assert "url" in answer.output


def test_a_machine_of_no_engine_and_no_endpoint_is_not_begun(tmp_path: Path) -> None:
    given = {"MYNA_HOME": str(tmp_path), "MYNA_ENDPOINTS": ""}
    answer = CliRunner().invoke(cli.main, ["up", "--engines", "0"], env=given)
    assert answer.exit_code == 1
    assert "set MYNA_ENDPOINTS" in answer.output

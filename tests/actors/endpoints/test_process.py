"""Endpoints as a machine runs them: processes, a file, a gateway in front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import openai
import pytest

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.endpoints.settings import Prices
from myna.actors.machine import Plan, embedded
from myna.sdk.client import connect
from tests.actors.endpoints.faulty import Faulty, faulty, says
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=2)]) -> None:
    """{{question}}{{answer}}"""


def file_of(folder: Path, server: Faulty) -> Path:
    endpoints = [
        server.endpoint("local", models={"llama": "its-model"}),
        server.endpoint(
            "hosted", models={"small": "its-other"}, prices=Prices(output=3.0), key_file=str(folder / "key")
        ),
    ]
    (folder / "key").write_text("sk-secret")
    path = folder / "endpoints.json"
    document = {"endpoint": msgspec.to_builtins(endpoints), "budget": [{"of": "tenant", "per": "day", "money": 0.001}]}
    path.write_text(json.dumps(document))
    return path


async def test_a_machine_serves_its_models_and_the_endpoints_of_a_file_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"alpha": "answer0 answer1", "beta": "answer0 answer1", "llama": "said", "small": "said"}
    async with faulty(usual=says("said")) as server:
        given = {"HOME": tmp_path / "home", "ENDPOINTS": file_of(tmp_path, server), "GATEWAY_PORT": free_port()}
        for name, value in given.items():
            monkeypatch.setenv(f"MYNA_{name}", str(value))
        async with embedded(config.read(), Plan(models=("alpha", "beta"), noop=True, gateway=True)) as settings:
            assert settings.address is not None
            url, credentials = settings.address.url, settings.address.credentials
            async with connect(url, credentials=credentials) as client, client.session() as session:
                for model, text in texts.items():
                    value = await ask.with_options(model=model)("x", session=session).value()
                    assert (value.text, value.model) == (text, model)
                assert value.usage.cost == 3, "of the model that has a price"
            url = f"http://127.0.0.1:{given['GATEWAY_PORT']}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as outside:
                assert {model.id async for model in outside.models.list()} == set(texts)
                answer = await outside.completions.create(model="llama", prompt="x", max_tokens=2)
                assert answer.choices[0].text == "said"
                with pytest.raises(openai.NotFoundError, match="there are: alpha, beta"):
                    await outside.completions.create(model="gamma", prompt="x")
    keys = {asked.body["model"]: asked.headers["authorization"] for asked in server.asked}
    assert keys == {"its-model": "Bearer none", "its-other": "Bearer sk-secret"}

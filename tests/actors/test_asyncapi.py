from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator, validators

from myna.actors import asyncapi, messages, subjects
from tests.actors.golden import EXAMPLES

COMMITTED = Path(asyncapi.__file__).with_suffix(".json")
DOCUMENT = asyncapi.document()
WILD = re.compile(r"\{\w+\}")


def test_the_committed_document_is_that_of_the_code() -> None:
    again = "python -m myna.actors.asyncapi > actors/asyncapi.json"
    assert COMMITTED.read_text() == asyncapi.text(), f"the wire has changed; run: {again}"


def test_every_message_is_on_a_channel() -> None:
    carried = {t for c in asyncapi.channels() for t in (*c.messages, c.reply)}
    assert set(get_args(messages.AnyMessage)) <= carried


def test_every_subject_of_a_stream_is_the_address_of_a_channel_that_names_the_stream() -> None:
    found = {WILD.sub("*", c.address): c.stream for c in asyncapi.channels() if c.stream is not None}
    assert found == {subject: stream for stream in subjects.STREAMS for subject in stream.subjects}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_messages_are_valid_by_their_schema(example: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{type(example).__name__}", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(msgspec.json.decode(msgspec.json.encode(example)))


@pytest.mark.node
def test_it_is_valid_by_the_schema_that_the_makers_of_asyncapi_publish(tmp_path: Path) -> None:
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "@asyncapi/specs@6"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    schema = json.loads((tmp_path / "node_modules/@asyncapi/specs/schemas/3.0.0.json").read_text())
    validators.validator_for(schema)(schema).validate(DOCUMENT)

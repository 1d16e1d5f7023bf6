from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors import config
from myna.actors.config import (
    Address,
    Dtype,
    EngineSettings,
    GatewaySettings,
    LogFormat,
    LogLevel,
    LogSettings,
    Settings,
)

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


names = st.from_regex(r"[A-Za-z0-9_-]{1,80}", fullmatch=True)


addresses = st.builds(Address, st.just("nats://a:1,tls://b:2"), texts, texts) | st.just(Address("nats://a:1"))


settings_of_any_kind = st.builds(
    Settings,
    address=st.none() | addresses,
    tenant=names,
    home=st.just(Path("/nowhere")),
    cache=names.map(lambda name: Path("/cache") / name),
    log=st.builds(LogSettings, st.sampled_from(LogLevel), st.sampled_from(LogFormat)),
    engine=st.builds(
        EngineSettings,
        model=st.none() | texts,
        aliases=st.lists(names, max_size=3).map(tuple),
        max_sequences=st.none() | st.integers(1, 999_999_999),
        kv_memory=st.none() | st.integers(1, 10**15 - 1),
        dtype=st.none() | st.sampled_from(Dtype),
        device=st.none() | st.sampled_from(["cpu", "cuda", "cuda:3", "cuda:0,cuda:1"]),
    ),
    gateway=st.builds(
        GatewaySettings,
        host=st.sampled_from(["127.0.0.1", "::1", "0.0.0.0"]),
        port=st.none() | st.integers(1, 65535),
        keys=st.none() | names.map(lambda name: Path("/keys") / name),
        rate=st.none() | st.integers(1, 999_999_999),
        max_body=st.integers(1, 10**15 - 1),
        timeout=st.integers(1, 999_999_999),
        origins=st.just(()) | st.just(("https://a.example", "http://localhost:3000")),
    ),
    endpoints=st.none() | names.map(lambda name: Path("/endpoints") / name),
)


@given(settings_of_any_kind)
def test_a_child_process_reads_the_settings_that_its_parent_has(settings: Settings) -> None:
    assert config.read(config.to_environment(settings)) == settings


def test_a_child_gets_its_parents_environment_but_only_these_settings(
    empty: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_MODEL", "of the parent")
    monkeypatch.setenv("ELSE", "kept")
    environment = config.child_environment(config.read(empty))
    assert "MYNA_MODEL" not in environment
    assert environment["ELSE"] == "kept"

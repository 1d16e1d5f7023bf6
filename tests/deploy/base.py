"""The image that Myna's are built on: the usual one, or where no image registry is reached one made of Debian's packages.

A made one has Python, what makes virtual environments and certificates, as any base must; and of this machine how `pip` reaches
its packages.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.docker import BASE, CommandFailed, docker, run

MADE = "myna-test-base"
MADE_PROMETHEUS = "myna-test-prometheus"
PROMETHEUS = "prom/prometheus:v3.5.0"
_PACKAGES = "python3,python3-venv,ca-certificates"
_PROMETHEUS_MADE = """ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus busybox \\
    && ln -s /bin/busybox /usr/local/bin/wget && mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
"""


async def base_image() -> str:
    """The name of an image to build on. Raises `CommandFailed` where none can be had."""
    try:
        await docker("image", "inspect", MADE)
    except CommandFailed:
        pass
    else:
        return MADE
    try:
        await docker("pull", "--quiet", BASE)
    except CommandFailed as refused:
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise CommandFailed(f"no base: debootstrap and root are needed to make one, as {refused}") from None
        await _make()
        return MADE
    return BASE


async def prometheus_image() -> str:
    """The name of an image of Prometheus: the usual one, or where no image registry is reached one of Debian's package."""
    try:
        await docker("pull", "--quiet", PROMETHEUS)
    except CommandFailed:
        with tempfile.TemporaryDirectory(prefix="myna-prometheus-") as folder:
            (Path(folder) / "Dockerfile").write_text(_PROMETHEUS_MADE)
            await docker("build", "--build-arg", f"BASE={await base_image()}", "--tag", MADE_PROMETHEUS, folder)
        return MADE_PROMETHEUS
    return PROMETHEUS


async def _make() -> None:
    with tempfile.TemporaryDirectory(prefix="myna-base-") as folder:
        root = Path(folder) / "root"
        await run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _release(), str(root))
        _bring(Path("/etc/ssl/certs/ca-certificates.crt"), root)
        lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
        if wheels := [folder for folder in _find_links() if folder.is_dir()]:
            for folder_of_wheels in wheels:
                _bring(folder_of_wheels, root)
            lines.append("find-links = " + " ".join(map(str, wheels)))
        (root / "etc/pip.conf").write_text("\n".join([*lines, ""]))
        archive = Path(folder) / "base.tar"
        await run("tar", "-C", str(root), "-cf", str(archive), ".")
        await docker("import", str(archive), MADE)


def _release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("VERSION_CODENAME="))


def _find_links() -> Iterator[Path]:
    yield from map(Path, os.environ.get("PIP_FIND_LINKS", "").split())


def _bring(path: Path, root: Path) -> None:
    """Copy a file or folder to the same place under `root`."""
    if not path.exists():
        return
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copy(path, target)

"""Sphinx's configuration: `make docs` builds the pages here, the folders' READMEs and the docstrings into `build/docs`.

Law: nothing is written twice. A page of `project/` is a README as it stands; a page of `reference/` is what docstrings say.
"""

from __future__ import annotations

import posixpath
import re
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
READMES = {
    "project/readme": "README.md",
    "project/architecture": "ARCHITECTURE.md",
    "project/wire": "actors/README.md",
    "project/gateway": "actors/gateway/README.md",
    "project/deployment": "deploy/README.md",
    "project/telemetry": "actors/telemetry/README.md",
    "project/kernels": "kernels/NOTES.md",
    "project/changes": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")

project = "Myna"
author = "The authors of Myna"
version = release = metadata.version("myna")
extensions = ["sphinx.ext.autodoc", "myst_parser"]
html_theme = "furo"
html_title = "Myna"
exclude_patterns = ["conf.py"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # a README may begin anywhere
    "ref.python",  # a field may be called `bytes`
]


def _readme(app: Any, page: str, source: list[str]) -> None:
    """In place of a page of `project/`: the README that it stands for, with links to pages where there are."""
    name = READMES.get(page)
    if name is None:
        return
    text = _PICTURE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    source[0] = _LINK.sub(lambda link: _linked(link, posixpath.dirname(name)), text)


def _linked(link: re.Match[str], folder: str) -> str:
    text, target = link[1], posixpath.normpath(posixpath.join(folder, link[2]))
    for page, readme in READMES.items():
        if readme == target:
            return f"[{text}](/{page}.md)"
    return text if target in text else f"{text} (`{target}`)"


def _markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with names in single backticks, and indented examples: say so to Sphinx."""
    marked: list[str] = []
    for line in lines:
        indented = line.startswith("    ") and line.strip()
        if indented and marked and not marked[-1].strip() and not _within(marked):
            marked += ["::", ""]
        marked.append(line if indented else _CODE.sub(r"``\1``", line))
    lines[:] = marked


def _within(lines: list[str]) -> bool:
    """Whether the last line of text belongs to an example already."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.startswith("    ")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _readme)
    app.connect("autodoc-process-docstring", _markdown)

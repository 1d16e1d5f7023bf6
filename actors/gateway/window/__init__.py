"""The window: a page to look at what goes on, served by the gateway to browsers.

Laws:
- The page is plain files that stand beside this module: no build step, nothing from elsewhere, and it works without the internet.
- The files hold no secret and know nobody: all that is shown comes over Myna's API, with the reader's own key.
- What is shown is text. The page's policy (CSP) lets no script run but its own files.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

PATH = "/window/"

_FOLDER = Path(__file__).parent / "static"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def routes() -> list[BaseRoute]:
    """The page and its files; `/` leads there."""
    served = [Route(f"{PATH}{name}", _serve, methods=["GET"], name=f"window {name}") for name in _names() if name]
    return [
        Route("/", _lead, methods=["GET"], name="window root"),
        Route(PATH.rstrip("/"), _lead, methods=["GET"], name="window lead"),
        Route(PATH, _serve, methods=["GET"], name="window"),
        *served,
    ]


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(file.name for file in _FOLDER.iterdir() if file.suffix in _KINDS))


async def _lead(_request: Request) -> Response:
    return RedirectResponse(PATH, status_code=307)


async def _serve(request: Request) -> Response:
    name = request.url.path.removeprefix(PATH) or "index.html"
    body, tag = _file(name)
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=_KINDS[Path(name).suffix])


@cache
def _file(name: str) -> tuple[bytes, str]:
    """A file that is known by name: paths are never made of what a request says."""
    body = (_FOLDER / name).read_bytes()
    return body, f'"{blake2b(body, digest_size=12).hexdigest()}"'

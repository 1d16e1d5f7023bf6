"""The header block of a NATS message: a version line with a status, if there is one, then names and values."""

from __future__ import annotations

from collections.abc import Mapping

from myna.actors.bus.checks import check_headers

_CRLF = b"\r\n"
_VERSION_LINE = b"NATS/1.0"


def pack_headers(headers: Mapping[str, str]) -> bytes:
    """The header block of a message. Raises `ValueError` for odd names and for line breaks."""
    lines = [_VERSION_LINE]
    lines += [f"{name}: {value}".encode() for name, value in check_headers(headers).items()]
    return _CRLF.join(lines) + _CRLF + _CRLF


def unpack_headers(block: bytes) -> dict[str, str]:
    """Names and values of a header block, the status line left out."""
    found: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def status_of(block: bytes) -> int | None:
    """The status in a header block's first line (503: no responders), if it has one."""
    code = block[9:12]
    return int(code) if code.isdigit() else None

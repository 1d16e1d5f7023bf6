"""What a setting may be: each function takes the text and returns the value, or raises `ValueError` saying what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from myna.actors.subjects import InvalidName, token

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def maybe(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """A setting that may be left out: parsed as by `parse`."""
    return parse


def one_of(choices: type[E]) -> Callable[[str], E]:
    """One of the members of an enumeration."""

    def parse(text: str) -> E:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(choices)}") from None

    return parse


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def port(text: str) -> int:
    """A port."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise ValueError("must be a port, from 1 to 65535")
    return int(text)


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages."""
    origins = tuple(filter(None, text.split(",")))
    if not all(origin == "*" or re.fullmatch(r"https?://[^/\s]+", origin) for origin in origins):
        raise ValueError("must be origins such as https://example.org, separated by commas")
    return origins


def names(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError("must be names, separated by commas")
    return names


def replicas(text: str) -> int:
    """Servers that keep a stream."""
    if text not in ("1", "3", "5"):
        raise ValueError("must be 1, 3 or 5")
    return int(text)


def size(text: str) -> int:
    """A number of bytes, with a unit or without."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) < 1:
        raise ValueError("must be a number of bytes, such as 536870912, 512M or 4G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]


def device(text: str) -> str:
    """A device of torch; or several GPUs, separated by commas, among which a model is divided."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?|cuda:[0-9]+(,cuda:[0-9]+)+", text):
        raise ValueError("must be cpu, cuda, cuda:N, or several: cuda:0,cuda:1")
    if len(names := text.split(",")) != len(set(names)):
        raise ValueError("names a device twice")
    return text


def name(text: str) -> str:
    """One subject token."""
    try:
        return token(text, "it")
    except InvalidName as error:
        raise ValueError(str(error)) from None


def path(text: str) -> Path:
    """A path, made absolute."""
    return Path(text).expanduser().absolute()


def urls(text: str) -> str:
    """NATS servers, separated by commas."""
    for url in text.split(","):
        if not re.fullmatch(r"(nats|tls|ws|wss)://(\[[0-9a-fA-F:.]+\]|[^\s/@:\[\]]+)(:[0-9]{1,5})?/?", url):
            raise ValueError("must be nats://host:port (several: separated by commas; a user goes into MYNA_USER)")
    return text


def secret(text: str) -> str:
    """The content of a file."""
    try:
        return Path(text).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"must be a file that can be read ({error.strerror})") from None

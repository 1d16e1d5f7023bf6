"""How outcomes travel: the headers beside a body, so that a scheduler can follow values without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

from msgspec import structs

from myna.actors import codec, subjects
from myna.actors.messages import Cancellation, Failure, Outcome, SessionUsage, Usage, Value


class OutcomeStatus(StrEnum):
    """How a variable ended."""

    VALUE = "value"
    FAILURE = "failure"
    CANCELLED = "cancelled"


def status_of(outcome: Outcome) -> OutcomeStatus:
    """How `outcome` ends a variable."""
    match outcome:
        case Value():
            return OutcomeStatus.VALUE
        case Failure():
            return OutcomeStatus.FAILURE
        case Cancellation():
            return OutcomeStatus.CANCELLED


def pack(outcome: Outcome) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an outcome. Raises `codec.TooLarge`."""
    body = codec.encode(outcome)
    attempt = 0 if isinstance(outcome, Cancellation) else outcome.attempt
    headers = {
        subjects.STATUS_HEADER: status_of(outcome).value,
        subjects.ATTEMPT_HEADER: str(attempt),
        subjects.SIZE_HEADER: str(len(body)),
        subjects.DIGEST_HEADER: hashlib.blake2b(body, digest_size=16).hexdigest(),
    }
    if isinstance(outcome, Value):
        digest = hashlib.blake2b(outcome.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        headers[subjects.CONTENT_HEADER] = f"{len(outcome.text)} {digest} {_written(outcome.usage)}"
    return body, headers


class Chain:
    """Length and digest of a text that grows: what each chunk of a stream says of the text before it."""

    def __init__(self, text: str = "") -> None:
        self.characters = 0
        self._hash = hashlib.blake2b(digest_size=8)
        self.add(text)

    def add(self, text: str) -> None:
        """The text goes on."""
        self.characters += len(text)
        self._hash.update(text.encode("utf-8", "surrogatepass"))

    @property
    def digest(self) -> str:
        """Of all the text so far."""
        return self._hash.hexdigest()

    @property
    def state(self) -> tuple[int, str]:
        """Both."""
        return self.characters, self.digest


class Content(NamedTuple):
    """What a value's headers tell of it: characters and digest of its text, and tokens. Advice only: any client may write it."""

    characters: int = 0
    digest: str = ""
    usage: Usage = Usage()


def read_content(headers: Mapping[str, str]) -> Content:
    """Content from headers; all empty where a writer left it out, or wrote nonsense."""
    try:
        characters, digest, *tokens = headers[subjects.CONTENT_HEADER].split(" ")
        usage = _usage([min(max(int(n), 0), 2**31) for n in tokens])
        return Content(min(max(int(characters), 0), 2**31), digest[:32], usage)
    except (KeyError, ValueError):
        return Content()


def streamed_headers(size: int) -> dict[str, str]:
    """What a value's headers tell of its chunks: so many bytes."""
    return {subjects.STREAMED_HEADER: str(size)} if size else {}


def read_streamed(headers: Mapping[str, str]) -> int:
    """The same from headers; 0 where a writer left it out, or wrote nonsense."""
    try:
        return min(max(int(headers.get(subjects.STREAMED_HEADER, "0")), 0), 2**40)
    except ValueError:
        return 0


def usage_headers(record: SessionUsage) -> dict[str, str]:
    """What a record's headers tell of it: how many calls, and what they used."""
    return {subjects.USAGE_HEADER: f"{len(record.calls)} {_written(record.used)}"}


def read_usage(headers: Mapping[str, str]) -> tuple[int, Usage]:
    """The same from headers; nothing where they are missing: only schedulers write records."""
    try:
        calls, *figures = map(int, headers[subjects.USAGE_HEADER].split(" "))
        return calls, _usage(figures)
    except (KeyError, ValueError):
        return 0, Usage()


def _written(usage: Usage) -> str:
    """Its figures; the cost only where there is one, since older readers know but three."""
    figures = (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
    return " ".join(map(str, (*figures, usage.cost) if usage.cost else figures))


def _usage(figures: Sequence[int]) -> Usage:
    """Usage of its figures. Raises `ValueError` for too few or too many."""
    prompt, cached, output, cost = figures if len(figures) == 4 else (*figures, 0)
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output, cost=cost)


_Ending = TypeVar("_Ending", bound=Failure | Cancellation)


def shortened(outcome: _Ending) -> _Ending:
    """The same with texts short enough to be published, for one that quotes something huge."""
    if isinstance(outcome, Failure):
        return structs.replace(outcome, message=_cut(outcome.message), function=_cut(outcome.function))
    return structs.replace(outcome, reason=_cut(outcome.reason))


def _cut(text: str, most: int = 2000) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def read_headers(headers: Mapping[str, str]) -> tuple[OutcomeStatus, int]:
    """Status and attempt from headers. Writers in other languages may leave them out: then it is a value of attempt 0."""
    try:
        status = OutcomeStatus(headers.get(subjects.STATUS_HEADER, OutcomeStatus.VALUE.value))
        attempt = int(headers.get(subjects.ATTEMPT_HEADER, "0"))
    except ValueError:
        return OutcomeStatus.VALUE, 0
    return status, max(attempt, 0)

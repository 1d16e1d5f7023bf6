"""Sampling parameters are checked once, when they are made; whoever holds one holds a valid one. No torch here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from myna.engine.errors import InvalidSampling
from myna.engine.structured.constraint import Constraint

MAX_LOGPROBS = 20
"""Most alternatives that may be asked for at each token."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one output is drawn. Every field is validated; InvalidSampling names the field, the value and the range.

    Order: logit bias, penalties, the ban of stop tokens before `min_tokens`, then temperature, then the cuts top-k,
    top-p (of what top-k left) and min-p. `temperature` 0 is greedy. `top_k` None, `top_p` 1 and `min_p` 0 cut nothing.
    `seed`: same seed, same tokens, whatever runs beside; None lets the engine derive one from the request's id.
    `presence_penalty`, `frequency_penalty`: of tokens already generated; `repetition_penalty`: also of the prompt's.
    `stop`: strings before which the text ends. `stop_token_ids`: tokens that end it beside the model's own, which
    `ignore_eos` disregards. `max_tokens` None generates as far as the context goes; before `min_tokens` no stop counts.
    `logprobs`: that many alternatives' log-probabilities with each token's own, of the distribution after bias and
    penalties and before temperature, constraint and cuts. `n`: outputs drawn from the same prompt. `constraint`: what the
    text must be; it ends where it is whole and nothing can follow, `min_tokens` or not, so it can't be joined with `ignore_eos`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = 512
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name, low, high in _REALS:
            _real(name, getattr(self, name), low, high)
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise _invalid(name, 0, "a number above 0")
        for name, low_int, high_int, optional in _INTEGERS:
            _integer(name, getattr(self, name), low_int, high_int, optional)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if not isinstance(self.ignore_eos, bool):
            raise _invalid("ignore_eos", self.ignore_eos, "true or false")
        if self.constraint is not None and self.ignore_eos:
            raise _invalid("ignore_eos", True, "false where the output has a format, which knows where the text ends")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    def __reduce__(self) -> tuple[object, ...]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["logit_bias"] = dict(self.logit_bias)
        return _rebuild, (values,)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def cuts(self) -> bool:
        """Whether top-k, top-p or min-p leave any token out."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def penalised(self) -> bool:
        """Whether tokens seen before change the distribution."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def check_vocabulary(self, size: int) -> None:
        """Raise InvalidSampling if a token id lies outside a vocabulary of `size` tokens."""
        for name, ids in (("logit_bias", tuple(self.logit_bias)), ("stop_token_ids", self.stop_token_ids)):
            for token in ids:
                if token >= size:
                    raise _invalid(name, token, f"token ids below {size}, the size of the model's vocabulary")


_REALS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 100.0),
)

_INTEGERS: tuple[tuple[str, int, int | None, bool], ...] = (
    ("top_k", 1, None, True),
    ("seed", -(2**63), 2**64 - 1, True),
    ("max_tokens", 1, None, True),
    ("min_tokens", 0, None, False),
    ("logprobs", 0, MAX_LOGPROBS, True),
    ("n", 1, 1024, False),
)


def derive_seed(request_id: str) -> int:
    """The seed of a request that names none: a function of its id, so that a retry draws the same tokens."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


def _rebuild(values: dict[str, object]) -> SamplingParams:
    return SamplingParams(**values)  # type: ignore[arg-type]  # a pickled instance's own fields


def _invalid(name: str, value: object, wanted: str) -> InvalidSampling:
    return InvalidSampling(f"{name} is {value!r}; it must be {wanted}")


def _real(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(name, value, f"a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise _invalid(name, value, f"from {low:g} to {high:g}")


def _integer(name: str, value: object, low: int, high: int | None, optional: bool) -> None:
    if value is None and optional:
        return
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    wanted = f"a whole number {bounds}" + (" or None" if optional else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise _invalid(name, value, wanted)


def _stop_strings(value: object) -> tuple[str, ...]:
    wanted = "a sequence of strings, none of them empty"
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise _invalid("stop", value, wanted)
    if not all(isinstance(item, str) and item for item in value):
        raise _invalid("stop", value, wanted)
    return tuple(value)


def _token_ids(value: object) -> tuple[int, ...]:
    wanted = "a sequence of token ids, each 0 or more"
    if not isinstance(value, tuple | list):
        raise _invalid("stop_token_ids", value, wanted)
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
        raise _invalid("stop_token_ids", value, wanted)
    return tuple(value)


def _bias(value: object) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        raise _invalid("logit_bias", value, "a mapping of token ids to numbers from -100 to 100")
    for token, bias in value.items():
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise _invalid("logit_bias", token, "keyed by token ids, each 0 or more")
        _real(f"logit_bias[{token}]", bias, -100.0, 100.0)
    return MappingProxyType(dict(value))

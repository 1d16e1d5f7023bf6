"""The endpoints that a host serves, and what may be spent there: one file, TOML or JSON, which MYNA_ENDPOINTS names.

    [[endpoint]]
    name = "vllm-a"                        # the worker is called by the host's name and this
    url = "http://10.0.0.5:8000/v1"
    dialect = "vllm"                       # openai, vllm, sglang or llamacpp: what it takes beyond OpenAI's parameters
    concurrency = 64
    models = { "llama-8b" = "meta-llama/Llama-3.1-8B-Instruct" }    # our name = its own; without them: all, by its names

    [[endpoint]]
    name = "hosted"
    url = "https://api.openai.com/v1"
    key_file = "/run/secrets/openai"       # or key_env = "OPENAI_API_KEY"
    models = { "small" = "gpt-4o-mini" }
    prices = { input = 0.15, cached = 0.075, output = 0.60 }        # for a million tokens, in a currency of yours

    [[budget]]
    of = "tenant"                          # all, tenant or session: each of them may spend so much
    per = "day"                            # hour, day, month; without it: in all
    money = 5.0                            # or tokens, or both

Law: what is wrong is a `ConfigError` that names the file, the key and what would be right. A key is read when it is used, and
never shown.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from myna.actors.config import ConfigError, variable
from myna.actors.messages import Id

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Price = Annotated[float, Meta(ge=0)]


class Dialect(StrEnum):
    """What kind of server it is."""

    OPENAI = "openai"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"


class Plain(StrEnum):
    """How a prompt without roles is sent: to /completions, or as a user's message to /chat/completions."""

    COMPLETIONS = "completions"
    USER = "user"


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens cost; prompt tokens that were cached cost as much as others, where nothing else is said."""

    input: Price = 0.0
    output: Price = 0.0
    cached: Price | None = None


class Endpoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One endpoint. Seconds: `connect_seconds` to reach it, `first_seconds` until its answer begins, `idle_seconds` between two
    pieces of it, `health_seconds` between two looks at it while nothing is asked of it."""

    name: Id
    url: Annotated[str, Meta(pattern=r"^https?://[^\s/@]+(/\S*)?$")]
    models: dict[str, str] = {}
    dialect: Dialect = Dialect.OPENAI
    plain: Plain = Plain.COMPLETIONS
    key_file: str | None = None
    key_env: str | None = None
    concurrency: Annotated[int, Meta(ge=1, le=4096)] = 16
    context_length: Annotated[int, Meta(ge=1)] | None = None
    prices: Prices | None = None
    named_only: bool | None = None
    connect_seconds: Seconds = 5.0
    first_seconds: Seconds = 120.0
    idle_seconds: Seconds = 30.0
    health_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        if self.key_file is not None and self.key_env is not None:
            raise ValueError("`key_file` and `key_env` exclude each other: give one of them")

    @property
    def by_name_only(self) -> bool:
        """Whether it serves only calls that name its models. What costs money does, unless it is told otherwise."""
        return self.prices is not None if self.named_only is None else self.named_only

    def key(self) -> str:
        """The API key; empty where none is needed. Raises `ConfigError`."""
        if self.key_env is not None:
            found = variable(self.key_env)
            if not found:
                raise ConfigError(f"endpoint {self.name!r}: the variable {self.key_env} with its key is not set")
            return found
        if self.key_file is None:
            return ""
        try:
            return Path(self.key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"endpoint {self.name!r}: its key_file {self.key_file} can't be read: {why}") from None


class BudgetOf(StrEnum):
    """Who has a budget: all together, or each tenant, or each session."""

    ALL = "all"
    TENANT = "tenant"
    SESSION = "session"


class Period(StrEnum):
    """The time after which a budget is there anew; a month is 30 days."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Budget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent: `money` in the currency of the prices, prompt and output `tokens`. `endpoints`: at these alone."""

    of: BudgetOf
    per: Period | None = None
    money: Annotated[float, Meta(ge=0)] | None = None
    tokens: Annotated[int, Meta(ge=0)] | None = None
    endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.money is None and self.tokens is None:
            raise ValueError("a budget needs `money` or `tokens`")


class Endpoints(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    endpoint: Annotated[tuple[Endpoint, ...], Meta(min_length=1)]
    budget: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        names = [endpoint.name for endpoint in self.endpoint]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two endpoints are called {min(twice)!r}")
        scopes = [(budget.of, budget.per, frozenset(budget.endpoints)) for budget in self.budget]
        if len(set(scopes)) < len(scopes):
            raise ValueError("two budgets are of the same, for the same time and endpoints: make them one")
        for budget in self.budget:
            for name in budget.endpoints:
                if name not in names:
                    raise ValueError(
                        f"a budget names an endpoint {name!r}, and there is none; there are {', '.join(names)}"
                    )
            if budget.money is not None and not any(e.prices for e in self.endpoint if counts_at(budget, e.name)):
                raise ValueError("a budget of money needs an endpoint with `prices`")


def counts_at(budget: Budget, endpoint: str) -> bool:
    """Whether a budget concerns an endpoint."""
    return not budget.endpoints or endpoint in budget.endpoints


def read(path: Path) -> Endpoints:
    """The endpoints in a file. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
        document = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
        return msgspec.convert(document, Endpoints)
    except OSError as error:
        raise ConfigError(f"the file of endpoints {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # both parsers' errors, and msgspec's, are of this kind
        raise ConfigError(f"the file of endpoints {path} is wrong: {error}") from None

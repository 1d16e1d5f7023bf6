"""All configuration, as frozen dataclasses, and the only place that reads the environment.

A setting comes from an environment variable, else from a TOML file, else it has its default. The file is the one that
MYNA_CONFIG names, else `myna.toml` in MYNA_HOME, if there is one. Anything wrong is a `ConfigError` naming the variable
or key, the value, and what would be right. Passwords are never shown: not in an error, not in a `repr`.

    variable            key in the file       meaning
    MYNA_URL            url                   NATS servers, separated by commas: nats://host:port
    MYNA_USER           user                  user of the NATS servers
    MYNA_PASSWORD       password              its password; or MYNA_PASSWORD_FILE (password_file), a file that holds it
    MYNA_TENANT         tenant                whose sessions these are
    MYNA_HOME           -                     where the state of `myna up` is kept
    MYNA_CACHE          cache                 where converted models are kept
    MYNA_MODEL          engine.model          hub id, folder or GGUF file; the default model without it
    MYNA_MAX_SEQUENCES  engine.max_sequences  sequences that an engine runs at once
    MYNA_KV_MEMORY      engine.kv_memory      memory for the KV cache: 512M, 4G
    MYNA_DTYPE          engine.dtype          float32, bfloat16 or float16
    MYNA_DEVICE         engine.device         cpu, cuda, cuda:1
    MYNA_LOG            log.level             debug, info, warning, error
    MYNA_LOG_FORMAT     log.format            auto, text, json
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from myna.actors.subjects import InvalidName, token

if TYPE_CHECKING:
    from myna.actors.bus import Bus

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class ConfigError(ValueError):
    """A setting that can't be right. The text names it, its value, and what would be right."""


class LogLevel(StrEnum):
    """The least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """`text` is for people, `json` for machines; `auto` is `text` on a terminal and `json` elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class Dtype(StrEnum):
    """Number formats of weights and KV cache."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the NATS servers are, and as whom we go there."""

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how it looks."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine. None leaves the choice to the engine, which looks at model and machine. `kv_memory` is in bytes."""

    model: str | None = None
    max_sequences: int | None = None
    kv_memory: int | None = None
    dtype: Dtype | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Without an `address` the SDK looks for a `myna up`, else starts its own."""

    address: Address | None
    tenant: str
    home: Path
    cache: Path
    log: LogSettings = LogSettings()
    engine: EngineSettings = EngineSettings()


@dataclass(frozen=True, slots=True)
class _Source:
    """The places where a setting may stand, in the order in which they count."""

    environment: Mapping[str, str]
    document: Mapping[str, Any]
    path: Path | None

    def take(self, variable: str, key: str, parse: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        found = self._find(variable, key)
        if found is None:
            return default
        where, raw = found
        try:
            return parse(raw)
        except ValueError as error:
            shown = "(hidden)" if secret else repr(raw)
            raise ConfigError(f"{where} is {shown}: {error}") from None

    def _find(self, variable: str, key: str) -> tuple[str, str] | None:
        if self.environment.get(variable):
            return variable, self.environment[variable]
        value: Any = self.document
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return None
        where = f"{key} in {self.path}"
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ConfigError(f"{where} is {value!r}: must be a string or a whole number")
        return where, str(value)


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment` (default: this process's) and the file. Raises `ConfigError`."""
    environment = os.environ if environment is None else environment
    home = _folder(environment.get("MYNA_HOME"), environment, "XDG_STATE_HOME", ".local/state")
    source = _open(environment, home)
    cache = _folder(None, environment, "XDG_CACHE_HOME", ".cache")
    return Settings(
        address=_address(source),
        tenant=source.take("MYNA_TENANT", "tenant", _name, "default"),
        home=home,
        cache=source.take("MYNA_CACHE", "cache", _path, cache),
        log=LogSettings(
            source.take("MYNA_LOG", "log.level", _one_of(LogLevel), LogLevel.INFO),
            source.take("MYNA_LOG_FORMAT", "log.format", _one_of(LogFormat), LogFormat.AUTO),
        ),
        engine=EngineSettings(
            model=source.take("MYNA_MODEL", "engine.model", _maybe(str), None),
            max_sequences=source.take("MYNA_MAX_SEQUENCES", "engine.max_sequences", _maybe(_positive), None),
            kv_memory=source.take("MYNA_KV_MEMORY", "engine.kv_memory", _maybe(_bytes), None),
            dtype=source.take("MYNA_DTYPE", "engine.dtype", _maybe(_one_of(Dtype)), None),
            device=source.take("MYNA_DEVICE", "engine.device", _maybe(_device), None),
        ),
    )


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables from which `read` makes `settings` again, for a child process. With the password: don't log it."""
    address, engine = settings.address, settings.engine
    variables: dict[str, object] = {
        "MYNA_URL": address and address.url,
        "MYNA_USER": address and address.user,
        "MYNA_PASSWORD": address and address.password,
        "MYNA_TENANT": settings.tenant,
        "MYNA_HOME": settings.home,
        "MYNA_CACHE": settings.cache,
        "MYNA_LOG": settings.log.level,
        "MYNA_LOG_FORMAT": settings.log.format,
        "MYNA_MODEL": engine.model,
        "MYNA_MAX_SEQUENCES": engine.max_sequences,
        "MYNA_KV_MEMORY": engine.kv_memory,
        "MYNA_DTYPE": engine.dtype,
        "MYNA_DEVICE": engine.device,
    }
    return {name: str(value) for name, value in variables.items() if value is not None}


def child_environment(settings: Settings) -> dict[str, str]:
    """The whole environment of a child process: this process's, with `settings` in place of its own MYNA_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MYNA_")}
    return inherited | to_environment(settings) | {"PYTHONUNBUFFERED": "1"}


def engine_environment() -> dict[str, str]:
    """The environment of an engine process: this process's, with OpenMP threads that soon fall asleep when they wait.

    libgomp lets them spin for milliseconds, and reads this when torch is loaded. Decode steps of 1 and 16 sequences on two cores,
    in ms: spinning 24 and 49, but 230 to 780 with one busy neighbour; 8,000 turns 28 and 52 (78 and 135); asleep at once
    40 and 72 (38 and 75). So 8,000, unless the environment says otherwise.
    """
    return {"GOMP_SPINCOUNT": "8000"} | os.environ


async def connect_bus(
    settings: Settings, name: str, *, on_reconnect: Callable[[], None] | None = None, patience: float = 10.0
) -> Bus:
    """Connect to the servers of `settings` under `name`, which the servers' monitoring shows. Raises `ConfigError`
    without an address, `bus.Unavailable` if nobody is there for `patience` seconds, `bus.NotAllowed` for a wrong password."""
    if settings.address is None:
        raise ConfigError("no NATS server is configured: set MYNA_URL, or start one with `myna up`")
    from myna.actors.bus.nats import NatsBus  # here, so that a reader of settings loads no client

    address = settings.address
    return await NatsBus.connect(
        address.url.split(","),
        name=name,
        user=address.user,
        password=address.password,
        on_reconnect=on_reconnect,
        timeout=patience,
    )


def with_address(settings: Settings, address: Address) -> Settings:
    """`settings` at another address."""
    return replace(settings, address=address)


def with_model(settings: Settings, model: str) -> Settings:
    """`settings` with another model."""
    return replace(settings, engine=replace(settings.engine, model=model))


# --- Where settings stand ---------------------------------------------------------------------------------------------


def _open(environment: Mapping[str, str], home: Path) -> _Source:
    named = environment.get("MYNA_CONFIG")
    path = Path(named) if named else home / "myna.toml"
    if not named and not path.is_file():
        return _Source(environment, {}, None)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the settings file {path} can't be read: {error}") from None
    _check_keys(document, path)
    return _Source(environment, document, path)


_TABLES: dict[str, frozenset[str]] = {
    "engine": frozenset(f.name for f in fields(EngineSettings)),
    "log": frozenset(f.name for f in fields(LogSettings)),
}
_KEYS = frozenset({"url", "user", "password", "password_file", "tenant", "cache", *_TABLES})


def _check_keys(document: Mapping[str, Any], path: Path) -> None:
    """A misspelt key must not be silently ignored."""
    for key, value in document.items():
        if key not in _KEYS:
            raise ConfigError(f"{path} has an unknown key {key!r}; known are {', '.join(sorted(_KEYS))}")
        if key not in _TABLES:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{key} in {path} is {value!r}: must be a table, [{key}]")
        for inner in value.keys() - _TABLES[key]:
            known = ", ".join(sorted(_TABLES[key]))
            raise ConfigError(f"{path} has an unknown key '{key}.{inner}'; known in [{key}] are {known}")


def _address(source: _Source) -> Address | None:
    url = source.take("MYNA_URL", "url", _maybe(_urls), None)
    if url is None:
        return None
    user = source.take("MYNA_USER", "user", _maybe(str), None)
    password = source.take("MYNA_PASSWORD", "password", _maybe(str), None, secret=True)
    if password is None:
        password = source.take("MYNA_PASSWORD_FILE", "password_file", _maybe(_secret), None)
    if (user is None) != (password is None):
        raise ConfigError("MYNA_USER and MYNA_PASSWORD (or MYNA_PASSWORD_FILE) belong together: one of them is missing")
    return Address(url, user, password)


def _folder(named: str | None, environment: Mapping[str, str], xdg: str, default: str) -> Path:
    if named:
        return Path(named).expanduser().absolute()
    base = environment.get(xdg, "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / default
    return root / "myna"


# --- What a setting may be: each takes the text and returns the value, or raises ValueError saying what is right ------


def _maybe(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return parse


def _one_of(choices: type[E]) -> Callable[[str], E]:
    def parse(text: str) -> E:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(choices)}") from None

    return parse


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) < 1:
        raise ValueError("must be a number of bytes, such as 536870912, 512M or 4G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()]


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text):
        raise ValueError("must be cpu, cuda, or cuda:N")
    return text


def _name(text: str) -> str:
    try:
        return token(text, "it")
    except InvalidName as error:
        raise ValueError(str(error)) from None


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _urls(text: str) -> str:
    for url in text.split(","):
        if not re.fullmatch(r"(nats|tls|ws|wss)://(\[[0-9a-fA-F:.]+\]|[^\s/@:\[\]]+)(:[0-9]{1,5})?/?", url):
            raise ValueError("must be nats://host:port (several: separated by commas; a user goes into MYNA_USER)")
    return text


def _secret(text: str) -> str:
    try:
        return Path(text).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"must be a file that can be read ({error.strerror})") from None

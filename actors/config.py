"""All configuration, as frozen dataclasses, and the only place that reads the environment.

A setting comes from an environment variable, else from a TOML file, else it has its default. The file is the one that
MYNA_CONFIG names, else `myna.toml` in MYNA_HOME, if there is one. Anything wrong is a `ConfigError` naming the variable
or key, the value, and what would be right. Passwords are never shown: not in an error, not in a `repr`.

    variable            key in the file       meaning
    MYNA_URL            url                   NATS servers, separated by commas: nats://host:port
    MYNA_USER           user                  user of the NATS servers
    MYNA_PASSWORD       password              its password; or MYNA_PASSWORD_FILE (password_file), a file that holds it
    MYNA_REPLICAS       replicas              servers that keep each stream: 1, 3 or 5. Schedulers create streams so
    MYNA_CREDENTIALS    credentials           a credentials file, in place of user and password; read again on each reconnect
    MYNA_TLS_CA         tls.ca                certificates by which the servers are known; with it, connections are encrypted
    MYNA_TLS_CERTIFICATE  tls.certificate     our own certificate, where servers ask for one, and
    MYNA_TLS_KEY        tls.key               its key
    MYNA_TLS_SERVER_CERTIFICATE  tls.server_certificate  with it, and
    MYNA_TLS_SERVER_KEY          tls.server_key          its key, the server that `myna up` runs encrypts connections
    MYNA_TENANT         tenant                whose sessions these are; credentials of a tenant say it already
    MYNA_HOME           -                     where the state of `myna up` is kept
    MYNA_CACHE          cache                 where converted models are kept
    MYNA_MODEL          engine.model          hub id, folder or GGUF file; the default model without it
    MYNA_ALIASES        engine.aliases        other names under which that model is served, separated by commas
    MYNA_MAX_SEQUENCES  engine.max_sequences  sequences that an engine runs at once
    MYNA_KV_MEMORY      engine.kv_memory      memory for the KV cache: 512M, 4G
    MYNA_DTYPE          engine.dtype          float32, bfloat16 or float16
    MYNA_DEVICE         engine.device         cpu, cuda, cuda:1; the model is divided among several: cuda:0,cuda:1
    MYNA_GATEWAY_HOST   gateway.host          address on which the gateway listens: loopback, unless there are keys
    MYNA_GATEWAY_PORT   gateway.port          its port; without it 9000, or another if that is taken
    MYNA_GATEWAY_KEYS   gateway.keys          file with the table of API keys (see `myna key`); without it nobody needs one
    MYNA_GATEWAY_RATE   gateway.rate          requests a minute of each key, where the table says nothing else
    MYNA_GATEWAY_BODY   gateway.max_body      largest body of a request: 4M
    MYNA_GATEWAY_TIMEOUT  gateway.timeout     seconds that a request may wait for its result
    MYNA_GATEWAY_ORIGINS  gateway.origins     origins of web pages that may use it, separated by commas (CORS)
    MYNA_HEALTH_FILE    -                     a file that an actor touches while it is well: see `actors/health.py`
    MYNA_ENDPOINTS      endpoints             file with the endpoints that are served too: see `actors/endpoints/settings.py`
    MYNA_METRICS_PORT   metrics               port on which each actor serves /metrics for Prometheus; without it none does
    OTEL_EXPORTER_OTLP_ENDPOINT  -            where traces are sent, by OTLP over HTTP; OpenTelemetry's other variables count too
    MYNA_NATS_SERVER    -                     the server program that `myna up` runs, in place of the one that is installed
    MYNA_LOG            log.level             debug, info, warning, error
    MYNA_LOG_FORMAT     log.format            auto, text, json
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from myna.actors import values
from myna.actors.subjects import HELLO, token

if TYPE_CHECKING:
    from myna.actors.bus import Bus
    from myna.actors.tenants.credentials import Identity

T = TypeVar("T")


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
class Tls:
    """How connections are encrypted: files in PEM. `certificate` and `key` are ours, where servers ask for them."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class ServingTls:
    """How the server that `myna up` runs encrypts connections: its certificate and key, and the `ca` that clients know it by."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where the NATS servers are, and as whom we go there: by user and password, or by a credentials file."""

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: Path | None = None
    tls: Tls | None = None
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how it looks."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine. None leaves the choice to the engine, which looks at model and machine. `kv_memory` is in bytes."""

    model: str | None = None
    aliases: tuple[str, ...] = ()
    max_sequences: int | None = None
    kv_memory: int | None = None
    dtype: Dtype | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The HTTP gateway. `port` None takes a free one; `rate` is in requests a minute, `max_body` in bytes, `timeout` in s."""

    host: str = "127.0.0.1"
    port: int | None = None
    keys: Path | None = None
    rate: int | None = None
    max_body: int = 4 << 20
    timeout: int = 3600
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Without an `address` the SDK looks for a `myna up`, else starts its own."""

    address: Address | None
    tenant: str
    home: Path
    cache: Path
    log: LogSettings = LogSettings()
    engine: EngineSettings = EngineSettings()
    gateway: GatewaySettings = GatewaySettings()
    serving: ServingTls | None = None
    endpoints: Path | None = None
    health: Path | None = None
    metrics: int | None = None
    traces: bool = False
    sampled: bool = False
    """Whether OpenTelemetry's own sampler decides which sessions are traced, as OTEL_TRACES_SAMPLER says."""


@dataclass(frozen=True, slots=True)
class _Source:
    """The places where a setting may stand, in the order in which they count."""

    environment: Mapping[str, str]
    document: Mapping[str, Any]
    path: Path | None
    problems: list[str] | None = None
    """Where given, what is wrong is noted here, and the default taken in its place."""

    def take(self, variable: str, key: str, parse: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        try:
            found = self._find(variable, key)
            if found is None:
                return default
            where, raw = found
            try:
                return parse(raw)
            except ValueError as error:
                shown = "(hidden)" if secret else repr(raw)
                raise ConfigError(f"{where} is {shown}: {error}") from None
        except ConfigError as error:
            if self.problems is None:
                raise
            self.problems.append(str(error))
            return default

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
    home = _home(environment)
    return _settings(_open(environment, home), home)


def environment_with(file: Path | None) -> dict[str, str]:
    """This process's environment; with a `file`, that one is the settings file."""
    return dict(os.environ) if file is None else os.environ | {"MYNA_CONFIG": str(file)}


def problems(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """All that is wrong with the settings, not the first thing alone, and variables that look like settings and are none."""
    environment = os.environ if environment is None else environment
    home = _home(environment)
    found: list[str] = []
    try:
        source = _open(environment, home, found)
        _settings(source, home)
    except ConfigError as error:  # of the whole: settings that don't go together
        found.append(str(error))
    found += _unknown_variables(environment)
    return tuple(dict.fromkeys(found))


def _home(environment: Mapping[str, str]) -> Path:
    return _folder(environment.get("MYNA_HOME"), environment, "XDG_STATE_HOME", ".local/state")


def _settings(source: _Source, home: Path) -> Settings:
    environment = source.environment
    cache = _folder(None, environment, "XDG_CACHE_HOME", ".cache")
    address = _address(source)
    return Settings(
        address=address,
        tenant=_tenant(source, address),
        home=home,
        cache=source.take("MYNA_CACHE", "cache", values.path, cache),
        log=LogSettings(
            source.take("MYNA_LOG", "log.level", values.one_of(LogLevel), LogLevel.INFO),
            source.take("MYNA_LOG_FORMAT", "log.format", values.one_of(LogFormat), LogFormat.AUTO),
        ),
        engine=EngineSettings(
            model=source.take("MYNA_MODEL", "engine.model", values.maybe(str), None),
            aliases=source.take("MYNA_ALIASES", "engine.aliases", values.names, ()),
            max_sequences=source.take(
                "MYNA_MAX_SEQUENCES", "engine.max_sequences", values.maybe(values.positive), None
            ),
            kv_memory=source.take("MYNA_KV_MEMORY", "engine.kv_memory", values.maybe(values.size), None),
            dtype=source.take("MYNA_DTYPE", "engine.dtype", values.maybe(values.one_of(Dtype)), None),
            device=source.take("MYNA_DEVICE", "engine.device", values.maybe(values.device), None),
        ),
        gateway=GatewaySettings(
            host=source.take("MYNA_GATEWAY_HOST", "gateway.host", str, "127.0.0.1"),
            port=source.take("MYNA_GATEWAY_PORT", "gateway.port", values.maybe(values.port), None),
            keys=source.take("MYNA_GATEWAY_KEYS", "gateway.keys", values.maybe(values.path), None),
            rate=source.take("MYNA_GATEWAY_RATE", "gateway.rate", values.maybe(values.positive), None),
            max_body=source.take("MYNA_GATEWAY_BODY", "gateway.max_body", values.size, 4 << 20),
            timeout=source.take("MYNA_GATEWAY_TIMEOUT", "gateway.timeout", values.positive, 3600),
            origins=source.take("MYNA_GATEWAY_ORIGINS", "gateway.origins", values.origins, ()),
        ),
        serving=_serving(source),
        endpoints=source.take("MYNA_ENDPOINTS", "endpoints", values.maybe(values.path), None),
        health=values.path(told) if (told := environment.get("MYNA_HEALTH_FILE")) else None,
        metrics=source.take("MYNA_METRICS_PORT", "metrics", values.maybe(values.port), None),
        traces=_traces(environment),
        sampled=bool(environment.get("OTEL_TRACES_SAMPLER")),
    )


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables from which `read` makes `settings` again, for a child process; without `serving`, `health` and `metrics`,
    which are the parent's alone. With the password: don't log it."""
    address, engine, gateway = settings.address, settings.engine, settings.gateway
    variables: dict[str, object] = {
        "MYNA_URL": address and address.url,
        "MYNA_USER": address and address.user,
        "MYNA_PASSWORD": address and address.password,
        "MYNA_CREDENTIALS": address and address.credentials,
        "MYNA_REPLICAS": address and address.replicas,
        "MYNA_TLS_CA": address and address.tls and address.tls.ca,
        "MYNA_TLS_CERTIFICATE": address and address.tls and address.tls.certificate,
        "MYNA_TLS_KEY": address and address.tls and address.tls.key,
        "MYNA_TENANT": settings.tenant,
        "MYNA_HOME": settings.home,
        "MYNA_CACHE": settings.cache,
        "MYNA_ENDPOINTS": settings.endpoints,
        "MYNA_LOG": settings.log.level,
        "MYNA_LOG_FORMAT": settings.log.format,
        "MYNA_MODEL": engine.model,
        "MYNA_ALIASES": ",".join(engine.aliases) or None,
        "MYNA_MAX_SEQUENCES": engine.max_sequences,
        "MYNA_KV_MEMORY": engine.kv_memory,
        "MYNA_DTYPE": engine.dtype,
        "MYNA_DEVICE": engine.device,
        "MYNA_GATEWAY_HOST": gateway.host,
        "MYNA_GATEWAY_PORT": gateway.port,
        "MYNA_GATEWAY_KEYS": gateway.keys,
        "MYNA_GATEWAY_RATE": gateway.rate,
        "MYNA_GATEWAY_BODY": gateway.max_body,
        "MYNA_GATEWAY_TIMEOUT": gateway.timeout,
        "MYNA_GATEWAY_ORIGINS": ",".join(gateway.origins) or None,
    }
    return {name: str(value) for name, value in variables.items() if value is not None}


def child_environment(settings: Settings) -> dict[str, str]:
    """The whole environment of a child process: this process's, with `settings` in place of its own MYNA_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MYNA_")}
    return inherited | to_environment(settings) | {"PYTHONUNBUFFERED": "1"}


def variable(name: str) -> str:
    """The variable that a file names in place of a secret; empty if it is not set."""
    return os.environ.get(name, "")


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
    who = _identity(address)
    return await NatsBus.connect(
        address.url.split(","),
        name=name,
        user=address.user,
        password=address.password,
        credentials=address.credentials,
        inbox_prefix="_INBOX" if who is None else who.inbox_prefix,
        pulse=HELLO,
        tls=None if address.tls is None else tls_context(address.tls),
        replicas=address.replicas,
        on_reconnect=on_reconnect,
        timeout=patience,
    )


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The client's side of TLS, which knows servers by `tls.ca` alone. Raises `ConfigError` for files that are none."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS files of {tls} can't be used: {error}") from None
    return context


def asks_as_operator(settings: Settings) -> bool:
    """Whether questions go to the scheduler as the operator's, about all tenants: with an operator's credentials, and where
    servers know only one user."""
    who = None if settings.address is None else _identity(settings.address)
    return who is None or who.is_operator


def with_address(settings: Settings, address: Address) -> Settings:
    """`settings` at another address; credentials of a tenant there say whose sessions these are."""
    who = _identity(address)
    tenant = settings.tenant if who is None or who.tenant is None else who.tenant
    return replace(settings, address=address, tenant=tenant)


def with_tenant(settings: Settings, tenant: str | None) -> Settings:
    """`settings` of another tenant, if there is one. Raises `InvalidName`."""
    return settings if tenant is None else replace(settings, tenant=token(tenant, "tenant"))


# --- Where settings stand ---------------------------------------------------------------------------------------------


def _open(environment: Mapping[str, str], home: Path, problems: list[str] | None = None) -> _Source:
    named = environment.get("MYNA_CONFIG")
    path = Path(named) if named else home / "myna.toml"
    if not named and not path.is_file():
        return _Source(environment, {}, None, problems)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the settings file {path} can't be read: {error}") from None
    for problem in _wrong_keys(document, path):
        if problems is None:
            raise ConfigError(problem)
        problems.append(problem)
    return _Source(environment, document, path, problems)


_TABLES: dict[str, frozenset[str]] = {
    "tls": frozenset({*(f.name for f in fields(Tls)), "server_certificate", "server_key"}),
    "engine": frozenset(f.name for f in fields(EngineSettings)),
    "log": frozenset(f.name for f in fields(LogSettings)),
    "gateway": frozenset(f.name for f in fields(GatewaySettings)),
}
_KEYS = frozenset(
    {
        *("url", "user", "password", "password_file", "credentials", "replicas", "tenant", "cache", "endpoints"),
        *("metrics", *_TABLES),
    }
)


def _wrong_keys(document: Mapping[str, Any], path: Path) -> Iterator[str]:
    """A misspelt key must not be silently ignored."""
    for key, value in document.items():
        if key not in _KEYS:
            yield f"{path} has an unknown key {key!r}{_meant(key, _KEYS)}; known are {', '.join(sorted(_KEYS))}"
        elif key in _TABLES and not isinstance(value, dict):
            yield f"{key} in {path} is {value!r}: must be a table, [{key}]"
        elif key in _TABLES:
            known = _TABLES[key]
            for inner in sorted(value.keys() - known):
                told = f"known in [{key}] are {', '.join(sorted(known))}"
                yield f"{path} has an unknown key '{key}.{inner}'{_meant(inner, known)}; {told}"


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """The head of this module lists all: what is not there, nothing reads."""
    known = frozenset(re.findall(r"MYNA_[A-Z_]+", __doc__ or ""))
    for name in sorted(environment):
        if name.startswith("MYNA_") and name not in known:
            yield f"{name} is no setting{_meant(name, known)}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _traces(environment: Mapping[str, str]) -> bool:
    """Whether traces are sent: told by the variables that all programs with OpenTelemetry read."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return not off and any(environment.get(name) for name in named)


def _address(source: _Source) -> Address | None:
    url = source.take("MYNA_URL", "url", values.maybe(values.urls), None)
    if url is None:
        return None
    user = source.take("MYNA_USER", "user", values.maybe(str), None)
    password = source.take("MYNA_PASSWORD", "password", values.maybe(str), None, secret=True)
    if password is None:
        password = source.take("MYNA_PASSWORD_FILE", "password_file", values.maybe(values.secret), None)
    if (user is None) != (password is None):
        raise ConfigError("MYNA_USER and MYNA_PASSWORD (or MYNA_PASSWORD_FILE) belong together: one of them is missing")
    credentials = source.take("MYNA_CREDENTIALS", "credentials", values.maybe(values.path), None)
    if user is not None and credentials is not None:
        raise ConfigError("MYNA_USER and MYNA_CREDENTIALS exclude each other: give one of them")
    replicas = source.take("MYNA_REPLICAS", "replicas", values.replicas, 1)
    return Address(url, user, password, credentials, _tls(source), replicas)


def _tls(source: _Source) -> Tls | None:
    ca = source.take("MYNA_TLS_CA", "tls.ca", values.maybe(values.path), None)
    certificate = source.take("MYNA_TLS_CERTIFICATE", "tls.certificate", values.maybe(values.path), None)
    key = source.take("MYNA_TLS_KEY", "tls.key", values.maybe(values.path), None)
    if (certificate is None) != (key is None):
        raise ConfigError("MYNA_TLS_CERTIFICATE and MYNA_TLS_KEY belong together: one of them is missing")
    if ca is None and certificate is not None:
        raise ConfigError("MYNA_TLS_CERTIFICATE needs MYNA_TLS_CA: the certificates by which the servers are known")
    return None if ca is None else Tls(ca, certificate, key)


def _serving(source: _Source) -> ServingTls | None:
    ca = source.take("MYNA_TLS_CA", "tls.ca", values.maybe(values.path), None)
    certificate = source.take("MYNA_TLS_SERVER_CERTIFICATE", "tls.server_certificate", values.maybe(values.path), None)
    key = source.take("MYNA_TLS_SERVER_KEY", "tls.server_key", values.maybe(values.path), None)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None or ca is None:
        names = "MYNA_TLS_SERVER_CERTIFICATE, MYNA_TLS_SERVER_KEY and MYNA_TLS_CA"
        raise ConfigError(f"{names} belong together: one of them is missing")
    return ServingTls(certificate, key, ca)


def _tenant(source: _Source, address: Address | None) -> str:
    """Whose sessions these are. Raises `ConfigError` where the credentials are another tenant's."""
    named = source.take("MYNA_TENANT", "tenant", values.maybe(values.name), None)
    who = None if address is None else _identity(address)
    if who is None or who.tenant is None:
        return named or "default"
    if named not in (None, who.tenant):
        raise ConfigError(f"MYNA_TENANT is {named!r}, but the credentials are those of tenant {who.tenant!r}")
    return who.tenant


def _identity(address: Address) -> Identity | None:
    """Whose the credentials are, if there are any. Raises `ConfigError`."""
    if address.credentials is None:
        return None
    from myna.actors.tenants import credentials  # here: it needs the messages, which a reader of settings does not

    try:
        return credentials.identity(address.credentials)
    except credentials.InvalidCredentials as error:
        raise ConfigError(str(error)) from None


def _folder(named: str | None, environment: Mapping[str, str], xdg: str, default: str) -> Path:
    if named:
        return Path(named).expanduser().absolute()
    base = environment.get(xdg, "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / default
    return root / "myna"

"""Settings, read from the environment and the settings file. All of them are right, or a `ConfigError` says what is not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from myna.actors.config import values
from myna.actors.config.identity import identity_of
from myna.actors.config.settings import (
    Address,
    ConfigError,
    Dtype,
    EngineSettings,
    GatewaySettings,
    LogFormat,
    LogLevel,
    LogSettings,
    ServingTls,
    Settings,
    Tls,
)
from myna.actors.config.source import Source, open_source, unknown_variables


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment` (default: this process's) and the file. Raises `ConfigError`."""
    environment = os.environ if environment is None else environment
    home = _home(environment)
    return _settings(open_source(environment, home), home)


def problems(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """All that is wrong with the settings, not the first thing alone, and variables that look like settings and are none."""
    environment = os.environ if environment is None else environment
    home = _home(environment)
    found: list[str] = []
    try:
        source = open_source(environment, home, found)
        _settings(source, home)
    except ConfigError as error:  # of the whole: settings that don't go together
        found.append(str(error))
    found += unknown_variables(environment)
    return tuple(dict.fromkeys(found))


def environment_with(file: Path | None) -> dict[str, str]:
    """This process's environment; with a `file`, that one is the settings file."""
    return dict(os.environ) if file is None else os.environ | {"MYNA_CONFIG": str(file)}


def _settings(source: Source, home: Path) -> Settings:
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


def _address(source: Source) -> Address | None:
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


def _tls(source: Source) -> Tls | None:
    ca = source.take("MYNA_TLS_CA", "tls.ca", values.maybe(values.path), None)
    certificate = source.take("MYNA_TLS_CERTIFICATE", "tls.certificate", values.maybe(values.path), None)
    key = source.take("MYNA_TLS_KEY", "tls.key", values.maybe(values.path), None)
    if (certificate is None) != (key is None):
        raise ConfigError("MYNA_TLS_CERTIFICATE and MYNA_TLS_KEY belong together: one of them is missing")
    if ca is None and certificate is not None:
        raise ConfigError("MYNA_TLS_CERTIFICATE needs MYNA_TLS_CA: the certificates by which the servers are known")
    return None if ca is None else Tls(ca, certificate, key)


def _serving(source: Source) -> ServingTls | None:
    ca = source.take("MYNA_TLS_CA", "tls.ca", values.maybe(values.path), None)
    certificate = source.take("MYNA_TLS_SERVER_CERTIFICATE", "tls.server_certificate", values.maybe(values.path), None)
    key = source.take("MYNA_TLS_SERVER_KEY", "tls.server_key", values.maybe(values.path), None)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None or ca is None:
        names = "MYNA_TLS_SERVER_CERTIFICATE, MYNA_TLS_SERVER_KEY and MYNA_TLS_CA"
        raise ConfigError(f"{names} belong together: one of them is missing")
    return ServingTls(certificate, key, ca)


def _tenant(source: Source, address: Address | None) -> str:
    """Whose sessions these are. Raises `ConfigError` where the credentials are another tenant's."""
    named = source.take("MYNA_TENANT", "tenant", values.maybe(values.name), None)
    who = None if address is None else identity_of(address)
    if who is None or who.tenant is None:
        return named or "default"
    if named not in (None, who.tenant):
        raise ConfigError(f"MYNA_TENANT is {named!r}, but the credentials are those of tenant {who.tenant!r}")
    return who.tenant


def _traces(environment: Mapping[str, str]) -> bool:
    """Whether traces are sent: told by the variables that all programs with OpenTelemetry read."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return not off and any(environment.get(name) for name in named)


def _home(environment: Mapping[str, str]) -> Path:
    return _folder(environment.get("MYNA_HOME"), environment, "XDG_STATE_HOME", ".local/state")


def _folder(named: str | None, environment: Mapping[str, str], xdg: str, default: str) -> Path:
    if named:
        return Path(named).expanduser().absolute()
    base = environment.get(xdg, "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / default
    return root / "myna"

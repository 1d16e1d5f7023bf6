"""What can be configured, as frozen dataclasses.

Where each may stand, and what it means. MYNA_CONFIG names the settings file. What is not in this table, nothing reads.

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

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


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

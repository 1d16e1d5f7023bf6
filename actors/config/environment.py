"""The environment of this process as others get it: child processes, engines, files that name a secret's variable."""

from __future__ import annotations

import os

from myna.actors.config.settings import Settings


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


def engine_environment() -> dict[str, str]:
    """The environment of an engine process: this process's, with OpenMP threads that soon fall asleep when they wait.

    libgomp lets them spin for milliseconds, and reads this when torch is loaded. Decode steps of 1 and 16 sequences on two cores,
    in ms: spinning 24 and 49, but 230 to 780 with one busy neighbour; 8,000 turns 28 and 52 (78 and 135); asleep at once
    40 and 72 (38 and 75). So 8,000, unless the environment says otherwise.
    """
    return {"GOMP_SPINCOUNT": "8000"} | os.environ


def variable(name: str) -> str:
    """The variable that a file names in place of a secret; empty if it is not set."""
    return os.environ.get(name, "")

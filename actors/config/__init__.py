"""All configuration, and the only place that reads the environment.

A setting comes from an environment variable, else from a TOML file, else it has its default. The file is the one that
MYNA_CONFIG names, else `myna.toml` in MYNA_HOME, if there is one. Anything wrong is a `ConfigError` naming the variable
or key, the value, and what would be right. Passwords are never shown: not in an error, not in a `repr`.

    settings     what can be configured: the table of all variables and keys, and what they become
    values       what each may be
    source       where it may stand
    reading      `read`
    identity     whose the settings are
    connection   the bus that they name
    environment  what child processes are told
"""

from myna.actors.config.connection import connect_bus, tls_context
from myna.actors.config.environment import child_environment, engine_environment, to_environment, variable
from myna.actors.config.identity import asks_as_operator, with_address, with_tenant
from myna.actors.config.reading import environment_with, problems, read
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

__all__ = [
    "Address",
    "ConfigError",
    "Dtype",
    "EngineSettings",
    "GatewaySettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "ServingTls",
    "Settings",
    "Tls",
    "asks_as_operator",
    "child_environment",
    "connect_bus",
    "engine_environment",
    "environment_with",
    "problems",
    "read",
    "tls_context",
    "to_environment",
    "variable",
    "with_address",
    "with_tenant",
]

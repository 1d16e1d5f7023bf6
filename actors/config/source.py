"""Where a setting may stand: a variable of the environment, else a key of the settings file.

Law: what is misspelt is not silently ignored.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from myna.actors.config import settings
from myna.actors.config.settings import ConfigError, EngineSettings, GatewaySettings, LogSettings, Tls

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """The places where a setting may stand, in the order in which they count."""

    environment: Mapping[str, str]
    document: Mapping[str, Any]
    path: Path | None
    problems: list[str] | None = None
    """Where given, what is wrong is noted here, and the default taken in its place."""

    def take(self, variable: str, key: str, parse: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        """The value of a setting, as `parse` makes it; a `secret` one is not shown. Raises `ConfigError`."""
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


def open_source(environment: Mapping[str, str], home: Path, problems: list[str] | None = None) -> Source:
    """`environment`, and the file that it names or that lies in `home`. Raises `ConfigError`, unless `problems` takes them."""
    named = environment.get("MYNA_CONFIG")
    path = Path(named) if named else home / "myna.toml"
    if not named and not path.is_file():
        return Source(environment, {}, None, problems)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the settings file {path} can't be read: {error}") from None
    for problem in _wrong_keys(document, path):
        if problems is None:
            raise ConfigError(problem)
        problems.append(problem)
    return Source(environment, document, path, problems)


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


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables that look like settings, and are not in the table at the head of `settings`."""
    known = frozenset(re.findall(r"MYNA_[A-Z_]+", settings.__doc__ or ""))
    for name in sorted(environment):
        if name.startswith("MYNA_") and name not in known:
            yield f"{name} is no setting{_meant(name, known)}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

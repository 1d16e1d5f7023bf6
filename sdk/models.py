"""Names of models, as an application gives them: one, or several of which any will do (sdk/docs/howto says what decides)."""

from __future__ import annotations

from typing import Any

from myna.sdk.errors import FunctionError


def models_of(given: Any, where: str) -> tuple[str, ...]:
    """The names, each once; none leaves the choice to the scheduler. Raises `FunctionError`."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise FunctionError(f"{where}: model={given!r} must be the name of a model, or a list of names")
    return tuple(dict.fromkeys(names))

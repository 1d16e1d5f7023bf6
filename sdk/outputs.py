"""The results of a call with several outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Outputs:
    """The outputs of one call in the order of the prompt, by position and by name: `a, b = f(x)`, `f(x).summary`.

    It has no public attributes of its own, so that an output may have any name.
    """

    __slots__ = ("_items", "_names")

    def __init__(self, names: Iterable[str], items: Iterable[Any]) -> None:
        self._names = tuple(names)
        self._items = tuple(items)

    def __getitem__(self, key: int | str) -> Any:
        return self._items[self._position(key, KeyError)] if isinstance(key, str) else self._items[key]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __getattr__(self, name: str) -> Any:
        return self._items[self._position(name, AttributeError)]

    def __repr__(self) -> str:
        pairs = zip(self._names, self._items, strict=True)
        return f"Outputs({', '.join(f'{n}={i!r}' for n, i in pairs)})"

    def _position(self, name: str, error: type[Exception]) -> int:
        if name.startswith("__") or name not in self._names:
            raise error(f"no output {name!r}; the outputs are {', '.join(self._names)}")
        return self._names.index(name)


def mapped(outputs: Outputs, function: Callable[[Any], Any]) -> Outputs:
    """The same outputs with `function` applied to each."""
    return Outputs(outputs._names, (function(item) for item in outputs))

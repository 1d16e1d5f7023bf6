"""Labels that can't grow without bound: a time series is never freed."""

from __future__ import annotations

OTHER = "other"


class Bounded:
    """The first `most` names as they are, and all later ones as `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        """The label for `name`."""
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name

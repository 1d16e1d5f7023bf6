"""Agents that the cluster serves until you mount your own: functions that calls of any application may name."""

from __future__ import annotations

import myna


@myna.agent
def count_words(text: str) -> str:
    """How many words a text has."""
    return str(len(text.split()))


@myna.agent
def most_common_word(text: str) -> str:
    """The word that comes most often in a text, the first of them where several do."""
    words = text.lower().split()
    return max(words, key=words.count) if words else ""

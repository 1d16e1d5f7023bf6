"""Tokenization of what goes into a prompt: outside text is plain text, whatever it spells; literals may hold control tokens.

A prompt is tokenized piece by piece, each piece the same wherever it stands, except that some tokenizers mark the very
beginning of a text (with a space): that belongs to the first piece alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from myna.engine.errors import InvalidPrompt

# Added tokens that aren't declared special but look like control tokens all the same: `<tool_call>`, `[INST]`.
_CONTROL = re.compile(r"\s*(<.*>|\[.*\])\s*", re.DOTALL)
_CACHED_PIECES = 4096


class PromptTokenizer:
    """A Hugging Face tokenizer, asked in the two ways that a prompt needs. Raises InvalidPrompt for a slow tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InvalidPrompt("the model's tokenizer has no fast form, without which text can't be kept plain")
        self.tokenizer = tokenizer
        description = json.loads(backend.to_str())
        added = [(token["id"], token["content"]) for token in description["added_tokens"] if _is_control(token)]
        self.special = {token["content"]: token["id"] for token in description["added_tokens"] if token["special"]}
        """Tokens that no text spells."""
        self._control = {*(number for number, _ in added), *tokenizer.all_special_ids}
        self.control_texts = frozenset(text for _, text in added) | frozenset(tokenizer.all_special_tokens)
        # At the prompt's beginning, and inside it.
        self._literal = _both_forms(description)
        self._plain = _both_forms(_without_control(description))
        self.bos = self._find_bos()
        self.digest = hashlib.blake2b(backend.to_str().encode(), digest_size=16).hexdigest()
        """Names the tokenizer: token ids mean the same exactly where the digests are equal."""
        self._encode_plain = lru_cache(_CACHED_PIECES)(self._plain_uncached)
        self._encode_literal = lru_cache(_CACHED_PIECES)(self._literal_uncached)

    def plain(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Outside text as token ids, no control token among them. `first`: the text begins the prompt."""
        return self._encode_plain(text, first)

    def drawn(self, text: str, token_ids: tuple[int, ...], *, first: bool = False) -> tuple[int, ...]:
        """Outside text that a model of this vocabulary has drawn, as the ids that it drew, so that a context which goes on from
        there is found in the cache; as `plain` does it where they are not exactly this text, or a control token is among them."""
        if first or not token_ids or not self._control.isdisjoint(token_ids):
            return self.plain(text, first=first)
        return token_ids if self._spell(token_ids) == text else self.plain(text)

    def _spell(self, token_ids: tuple[int, ...]) -> str | None:
        try:
            return str(self._plain[1].decode(list(token_ids), skip_special_tokens=False))
        except (OverflowError, TypeError):  # ids that no vocabulary has
            return None

    def literal(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """A chat template's own text as token ids; control tokens in it are recognised."""
        return self._encode_literal(text, first)

    def spell(self, token: int) -> str:
        """What one token spells by itself, control tokens included; half a character is U+FFFD."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _literal_uncached(self, text: str, first: bool) -> tuple[int, ...]:
        return tuple(self._literal[0 if first else 1].encode(text, add_special_tokens=False).ids)

    def _plain_uncached(self, text: str, first: bool) -> tuple[int, ...]:
        ids = tuple(self._plain[0 if first else 1].encode(text, add_special_tokens=False).ids)
        if self._control.isdisjoint(ids):
            return ids
        return self._broken_up(text, first)

    def _broken_up(self, text: str, first: bool) -> tuple[int, ...]:
        """Tokenize text whose control tokens are also ordinary entries of the vocabulary: cut each in two."""
        spelled = "|".join(
            re.escape(token) for token in sorted(self.control_texts, key=len, reverse=True) if len(token) > 1
        )
        cuts = (
            [0, *(match.start() + 1 for match in re.finditer(spelled, text)), len(text)] if spelled else [0, len(text)]
        )
        encoder = self._plain[1]
        ids: list[int] = []
        for number, (start, end) in enumerate(pairwise(cuts)):
            piece = self._plain[0] if first and not number else encoder
            ids += piece.encode(text[start:end], add_special_tokens=False).ids
        unknown = self.tokenizer.unk_token_id
        if not self._control.isdisjoint(token for token in ids if token != unknown):
            raise InvalidPrompt("the text holds a control token of the model that its tokenizer can't spell as text")
        return tuple(ids)

    def _find_bos(self) -> int | None:
        """The token that the tokenizer itself puts before every text, if it puts one."""
        ids = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and ids and ids[0] == bos else None


def _is_control(token: dict[str, Any]) -> bool:
    return bool(token["special"]) or _CONTROL.fullmatch(token["content"]) is not None


def _both_forms(description: dict[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    first = _build(description)
    inner = _without_start(description)
    return first, first if inner == description else _build(inner)


def _build(description: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_control(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, blind to control tokens."""
    return {**description, "added_tokens": [token for token in description["added_tokens"] if not _is_control(token)]}


def _without_start(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer for a piece inside a text: it marks no beginning."""
    copy = json.loads(json.dumps(description))
    copy["normalizer"] = _drop(copy.get("normalizer"), "Prepend", "normalizers")
    for part in _parts(copy.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    return dict(copy)


def _parts(component: dict[str, Any] | None, inside: str) -> Iterable[dict[str, Any]]:
    if component is None:
        return []
    return list(component[inside]) if component["type"] == "Sequence" else [component]


def _drop(component: dict[str, Any] | None, kind: str, inside: str) -> dict[str, Any] | None:
    if component is None or component["type"] == kind:
        return None
    if component["type"] == "Sequence":
        component[inside] = [part for part in component[inside] if part["type"] != kind]
    return component

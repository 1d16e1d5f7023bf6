"""Texts of an exact number of tokens: rows of words of which each is one token, whatever stands beside it.

Law: a text begins with the blank before its first word, so that texts put one after another have as many tokens as both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
RESERVED = 3
"""Tokens at the beginning of a made vocabulary that no text has: nothing, begin, end."""


@dataclass(frozen=True)
class Words:
    """The words of a model. `seed` makes texts differ from run to run, so that nothing is cached from the one before."""

    words: Sequence[str]
    seed: str = ""
    _made: dict[tuple[str, int], str] = field(default_factory=dict, compare=False, repr=False)

    def seeded(self, seed: str) -> Words:
        """The same words for other texts."""
        return replace(self, seed=seed)

    def text(self, name: str, tokens: int) -> str:
        """A text of so many tokens, the same for the same name and seed. Made once: who has a document need not write it."""
        key = (f"{self.seed} {name}", tokens)
        made = self._made.get(key)
        if made is None:
            draw = random.Random(key[0])
            made = self._made[key] = "".join(" " + draw.choice(self.words) for _ in range(tokens))
        return made


def made_vocabulary(size: int) -> list[str]:
    """So many words of three letters: with its blank each has the four characters that a token commonly has."""
    return ["".join(letters) for letters in islice(product(LETTERS, repeat=3), size)]


def made_words(size: int) -> Words:
    """The words of `made_tokenizer`."""
    return Words(made_vocabulary(size)[RESERVED:])


def made_tokenizer(size: int) -> Any:
    """A tokenizer of made words, for models whose vocabulary means nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = made_vocabulary(size)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def common_words(tokenizer: Any) -> Words:
    """Words that are one token of a byte-level tokenizer each, with the blank before them."""
    found = [
        token[1:]
        for token in tokenizer.get_vocab()
        if re.fullmatch("Ġ[a-z]{3,7}", token) and len(tokenizer.encode(" " + token[1:], add_special_tokens=False)) == 1
    ]
    return Words(sorted(found))

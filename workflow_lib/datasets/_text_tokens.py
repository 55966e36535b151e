"""Tokens of texts that are filled up to one length: bytes, characters, or those of byte-pair encoding; 0 fills.

If another token of a tokenizer fills, such as 1 in RoBERTa, the data has 0 in its place, and that number in the place
of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from workflow_lib.data.padding import exchanged
from workflow_lib.datasets._bpe import Tokenizer
from workflow_lib.errors import DataError

PAD, UNKNOWN = "<pad>", "<unknown>"


class Tokens(Protocol):
    """Tokens of texts."""

    vocabulary: tuple[str, ...]
    tokenizer: str  # content of tokenizer.json, if there is one

    def codes(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Return the first `length` tokens of each text, or more."""

    def measure(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Return the number of tokens of each text, and why it cannot be used, or an empty text."""


class Bytes:
    """The bytes of UTF-8, of which no text has 0."""

    vocabulary = (PAD, *(chr(code) if code < 0x80 else f"<{code:02x}>" for code in range(1, 256)))
    tokenizer = ""

    def codes(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Return the bytes of each text."""
        return [np.frombuffer(text[:length].encode(), np.uint8) for text in texts]

    def measure(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Return the number of bytes of each text, and what is wrong with it."""
        return [(len(text.encode()), _problem(text)) for text in texts]


class Characters:
    """The characters of a vocabulary; every other one is UNKNOWN."""

    tokenizer = ""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._number_of = {character: number for number, character in enumerate(vocabulary)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """Return the characters of the texts."""
        return cls((PAD, UNKNOWN, *sorted(set().union(*texts))))

    def codes(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Return the numbers of the first characters of each text."""
        unknown = self.vocabulary.index(UNKNOWN)
        return [np.array([self._number_of.get(c, unknown) for c in text[:length]], np.int32) for text in texts]

    def measure(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Return the number of characters of each text, and what is wrong with it."""
        return [(len(text), _problem(text)) for text in texts]


class Pairs:
    """The tokens of a tokenizer with those of its template, such as [CLS] and [SEP]."""

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        self.tokenizer, self._encoder, self._pad = tokenizer.content, tokenizer, tokenizer.mark
        names = list(tokenizer.names())
        self._name = names[self._pad]
        names[0], names[self._pad] = names[self._pad], names[0]
        self.vocabulary = tuple(names)
        if self._pad in tokenizer.encode_whole([""], tokenizer.added)[0]:
            raise DataError(
                f"{where}: its template adds `{self._name}` to each text, so that it cannot fill short texts (bpe.pad)"
            )

    def codes(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Return the tokens of each text."""
        if length <= self._encoder.added:
            raise DataError(
                f"data.params.length: {length} tokens leave no room for a text: the tokenizer adds "
                f"{self._encoder.added}"
            )
        whole = self._encoder.encode_whole(texts, length)
        return [exchanged(np.array(numbers, np.int32), self._pad) for numbers in whole]

    def measure(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Return the number of tokens of each text, and what is wrong with it."""
        found = []
        for text, numbers in zip(texts, self._encoder.encode(texts), strict=True):
            wrong = "" if numbers else "has no token"
            if self._pad in numbers:
                wrong = f"has the token `{self._name}`, which fills short texts (bpe.pad); remove it"
            found.append((len(numbers) + self._encoder.added, _problem(text) or wrong))
        return found


def filled(tokens: Tokens, texts: Sequence[str], length: int) -> np.ndarray:
    """Return the tokens of texts [n, length], cut or filled with 0."""
    inputs = np.zeros((len(texts), length), np.uint8 if len(tokens.vocabulary) <= 256 else np.int32)
    for place, codes in enumerate(tokens.codes(texts, length)):
        inputs[place, : len(codes)] = codes[:length]
    return inputs


def _problem(text: str) -> str:
    if not text:
        return "is empty"
    return "has the character 0, which no text has; remove it" if "\0" in text else ""

"""Tokens as text: their tokenizer puts words together; without one, the names of the tokens are joined."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workflow_lib.data.padding import exchanged, filling_token

if TYPE_CHECKING:
    from workflow_lib.data.manifest import Manifest

logger = logging.getLogger(__name__)


def decoded(tokens: Sequence[int], manifest: Manifest) -> str:
    """Return the text of tokens of the data, [n]. A token that the tokenizer does not know is written by its name."""
    return _decoder(manifest)(tokens)


def decoded_parts(first: Sequence[int], second: Sequence[int], manifest: Manifest) -> tuple[str, str]:
    """Return the text of two sequences of tokens that follow each other, divided where the second one begins.

    They are decoded together, since the first token of the second one can go on with a word, or with a character.
    """
    decode = _decoder(manifest)
    whole = decode([*first, *second])
    size = len(os.path.commonprefix([decode(first), whole]))
    return whole[:size], whole[size:]


def _decoder(manifest: Manifest) -> Callable[[Sequence[int]], str]:
    names = manifest.vocabulary
    separator = " " if names[-1] == str(len(names) - 1) else ""  # the names are numbers

    def named(tokens: Sequence[int]) -> str:
        return separator.join(names[token] for token in tokens)

    if not manifest.tokenizer:
        return named
    try:
        from tokenizers import Tokenizer
    except ImportError:
        logger.warning("tokens are written one by one: the package tokenizers, which would join them, is not installed")
        return named
    tokenizer = Tokenizer.from_str(manifest.tokenizer)
    filling = (
        filling_token(manifest.tokenizer) if manifest.kind != "tokens" else 0
    )  # only texts with answers are filled

    def decode(tokens: Sequence[int]) -> str:
        numbers = exchanged(np.asarray(tokens, np.int64), filling).tolist()
        text, start = "", 0
        unknown = [place for place, number in enumerate(numbers) if tokenizer.id_to_token(number) is None]
        for place in [*unknown, len(numbers)]:
            text += tokenizer.decode(numbers[start:place], skip_special_tokens=False) + named(tokens[place : place + 1])
            start = place + 1
        return text

    return decode

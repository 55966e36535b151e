"""The token that fills short texts: 0 in the data, where it is exchanged with that of the tokenizer."""

from __future__ import annotations

import json

import numpy as np


def filling_token(tokenizer: str) -> int:
    """Return the number of the token that fills texts, in the content of the tokenizer.json of texts with answers."""
    padding = json.loads(tokenizer).get("padding") if tokenizer else None
    return int(padding["pad_id"]) if padding else 0


def exchanged(tokens: np.ndarray, number: int) -> np.ndarray:
    """Return the tokens with 0 in the place of `number` and the reverse: those of the data, or of the tokenizer."""
    return np.where(tokens == 0, number, np.where(tokens == number, 0, tokens)).astype(tokens.dtype)

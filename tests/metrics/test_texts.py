"""Tokens are shown as the text that their tokenizer makes of them."""

from __future__ import annotations

import sys

import pytest
from tokenizers import Tokenizer, decoders, models

from workflow_lib.data import Manifest
from workflow_lib.metrics.texts import decoded, decoded_parts

WORDS = ["the", "un", "##seen", "cat", "'s", "mat"]
PIECES = ["▁the", "▁cat", "s", "▁mat"]
WORDPIECE = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="the"))
WORDPIECE.decoder = decoders.WordPiece()
SENTENCEPIECE = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(PIECES)}, unk_token="▁the"))
SENTENCEPIECE.decoder = decoders.Metaspace()


def manifest(tokenizer: Tokenizer | str, names: list[str], task: str = "language") -> Manifest:
    """Return what a manifest says about tokens."""
    content = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
    return Manifest.model_construct(vocabulary=tuple(names), tokenizer=content, task=task)


def test_a_tokenizer_puts_words_together() -> None:
    assert decoded([0, 1, 2, 3, 4], manifest(WORDPIECE, WORDS)) == "the unseen cat's"
    assert decoded([0, 1, 2, 3], manifest(SENTENCEPIECE, PIECES)) == "the cats mat"


def test_a_continuation_goes_on_within_a_word() -> None:
    assert decoded_parts([0, 1], [2, 3], manifest(WORDPIECE, WORDS)) == ("the un", "seen cat")
    assert decoded_parts([3], [4, 5], manifest(WORDPIECE, WORDS)) == ("cat", "'s mat")
    assert decoded_parts([0], [1, 2], manifest(SENTENCEPIECE, PIECES)) == ("the", " cats")
    assert decoded_parts([1, 2], [0], manifest("", ["0", "1", "2"])) == ("1 2", " 0")


def test_a_token_beyond_the_tokenizer_is_shown_by_its_name() -> None:
    assert decoded([6, 0, 7, 3], manifest(WORDPIECE, [*WORDS, "<6>", "<7>"])) == "<6>the<7>cat"


def test_only_texts_that_are_filled_have_the_filling_token_in_the_place_of_the_first() -> None:
    WORDPIECE.enable_padding(pad_id=3, pad_token="cat")
    try:
        texts = [decoded([0, 3], manifest(WORDPIECE, WORDS, task)) for task in ("language", "text_classification")]
    finally:
        WORDPIECE.no_padding()
    assert texts == ["the cat", "cat the"]


def test_without_the_package_names_are_joined_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert decoded([1, 2], manifest(WORDPIECE, WORDS)) == "un##seen"
    assert "the package tokenizers" in caplog.text

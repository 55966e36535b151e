"""Byte-pair encoding: equal for equal texts, also in another process; read from a file; stored with the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from tests.datasets.test_text import TextContract, folder_of_texts, in_words, opened, tokens_of
from workflow_lib import data, plugins
from workflow_lib.datasets import _bpe
from workflow_lib.datasets._bpe import Bpe, Tokenizer, load, tokenizer_for, train
from workflow_lib.errors import DataError

TEXTS = ["the cat sat on the mat\n" * 30, "the dog sat on the log – ü\n" * 30]


class TestTrained(TextContract):
    settings_of_texts = {"tokens": "bpe", "bpe": {"vocabulary": 400}}


class TestRead(TextContract):
    settings_of_texts = {"tokens": "bpe", "bpe": {"path": "tokenizer.json"}}

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "tokenizer.json").write_text(train(TEXTS, Bpe(vocabulary=300)))
        folder_of_texts(tmp_path / "texts")
        return {"path": "texts", "context": 16} | self.settings_of_texts


def test_two_trainings_in_different_processes_give_the_same_file() -> None:
    code = f"from workflow_lib.datasets._bpe import *; print(train({TEXTS!r}, Bpe(vocabulary=300)))"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for threads in ("1", "4")
    ]
    assert found == [train(TEXTS, Bpe(vocabulary=300))] * 2


def test_settings_decide_the_tokens() -> None:
    small, large = (Tokenizer(train(TEXTS, Bpe(vocabulary=size)), Bpe().mark, "it") for size in (258, 270))
    assert (small.size, large.size) == (258, 270)
    assert len(small.encode(TEXTS)[0]) > len(large.encode(TEXTS)[0])
    rare = Tokenizer(train(TEXTS, Bpe(min_frequency=10**6)), Bpe().mark, "it")
    assert rare.size == 257
    special = Tokenizer(train(TEXTS, Bpe(special=("<pad>", "<ask>"), end="<stop>")), Bpe(end="<stop>").mark, "it")
    assert special.names()[:3] == ("<stop>", "<pad>", "<ask>")
    assert len(special.encode(["<ask>"])[0]) == 1
    assert len(set(large.names())) == large.size


def test_tokens_give_the_text_back(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXTS[0])
    with opened(tmp_path / "x.txt", tokens="bpe", bpe={"vocabulary": 300}) as source:
        ids = tokens_of(source)
        words = in_words(source, np.append(ids[:-1, :-1].ravel(), ids[-1]))
    assert TEXTS[0] in words
    assert words.endswith("<end>")


def test_long_texts_are_divided_at_the_ends_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bpe, "BLOCK_CHARACTERS", 50)
    whole = "".join(TEXTS)
    pieces = [*_bpe._pieces([whole[:7], whole[7:300], whole[300:]])]
    assert "".join(pieces) == whole
    assert all(piece.endswith("\n") and len(piece) <= 50 for piece in pieces)
    assert [*_bpe._pieces(["x" * 120])] == ["x" * 50, "x" * 50, "x" * 20]


def test_only_train_is_learned_from_if_the_splits_are_folders(tmp_path: Path) -> None:
    for split, text in (("train", "aaaa bbbb\n" * 200), ("val", "zyzy\n" * 200), ("test", "zyzy\n" * 200)):
        (tmp_path / "texts" / split).mkdir(parents=True)
        (tmp_path / "texts" / split / "x.txt").write_text(text)
    with opened(tmp_path / "texts", tokens="bpe", bpe={"vocabulary": 300}) as source:
        assert "aaaa" in source.vocabulary
        assert not any("zy" in name for name in source.vocabulary)


def test_the_tokenizer_is_stored_with_the_data(tmp_path: Path) -> None:
    folder_of_texts(tmp_path / "texts")
    params = {"path": "texts", "tokens": "bpe", "bpe": {"vocabulary": 300}, "context": 16}
    manifest = data.prepare({"name": "text", "params": params}, tmp_path, tmp_path / "work")
    stored = (tmp_path / "work" / "data" / manifest.store / "tokenizer.json").read_text(encoding="utf-8")
    assert manifest.tokenizer == stored
    assert Tokenizer(stored, Bpe().mark, "it").names() == manifest.vocabulary
    assert manifest.dtype == "int32"
    module = plugins.load("data", "text")
    (tmp_path / "new.txt").write_text(TEXTS[0])
    inputs = module.open_inputs(module.Params.model_validate(params), tmp_path / "new.txt", manifest)
    given = [row for _, found in inputs.read(3) for row in found[:, :-1].ravel().tolist()]
    assert TEXTS[0].startswith("".join(manifest.vocabulary[token] for token in given[:20]))
    assert len(given) > 100
    plain = data.prepare({"name": "text", "params": {"path": "texts"}}, tmp_path, tmp_path / "work")
    assert plain.tokenizer == ""


def test_a_folder_of_save_pretrained_is_read(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text(train(TEXTS, Bpe(vocabulary=300)))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "made.json"), eos_token="<end>")
    fast.save_pretrained(tmp_path / "saved")
    found = tokenizer_for(Bpe(path=Path("saved")), tmp_path, [])
    assert found.encode(TEXTS) == fast(TEXTS, add_special_tokens=False)["input_ids"]


def test_tokenizers_that_cannot_be_used_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "made.json").write_text(train(TEXTS, Bpe(vocabulary=300)))
    with pytest.raises(DataError, match=r"x.json: is not a tokenizer.json"):
        tokenizer_for(Bpe(path=Path("x.json")), tmp_path, [])
    with pytest.raises(DataError, match=r"made.json: has no token `<eos>` .* its special tokens are <end>"):
        tokenizer_for(Bpe(path=Path("made.json"), end="<eos>"), tmp_path, [])
    with pytest.raises(DataError, match="has no tokenizer.json: save a fast tokenizer"):
        load(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install -c .*constraints.txt 'everstep\[tokenizers\]'"):
        train(TEXTS, Bpe())

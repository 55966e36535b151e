"""Texts with a class each, from a file and from a folder."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets.contract import ChecksumContract, DataContract
from workflow_lib import data, plugins
from workflow_lib.data import Source
from workflow_lib.data.padding import exchanged, filling_token
from workflow_lib.datasets._bpe import Bpe, PaddedBpe, Tokenizer, train
from workflow_lib.errors import DataError
from workflow_lib.export import raw

WORDS = {"good": ("fine", "lovely", "très bon"), "bad": ("poor", "dull", "no good at all, never again")}


def texts(samples: int = 60) -> list[tuple[str, str]]:
    """Different texts, with their classes in turn."""
    rows = []
    for number in range(samples):
        name = ("good", "bad")[number % 2]
        rows.append((f"{WORDS[name][number % 3]} {number}", name))
    return rows


def write_csv(folder: Path, rows: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    lines = ["text,label", *(f'"{text}",{label}' for text, label in rows or texts())]
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return {"path": "texts.csv", "length": 12}


def write_folder(folder: Path, split: str = "") -> dict[str, Any]:
    for number, (text, label) in enumerate(texts()):
        path = folder / "texts" / split / label / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"path": "texts", "length": 12}


def opened(params: dict[str, Any], root: Path) -> Source:
    plugin = plugins.load("data", "labelled_text")
    return plugin.open_source(plugin.Params.model_validate(params), root)


class TestCsv(ChecksumContract):
    name = "labelled_text"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return write_csv(tmp_path)

    def change(self, folder: Path) -> None:
        write_csv(folder, [(text.replace("fine", "nice"), label) for text, label in texts()])


class TestCharacters(TestCsv):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return write_csv(tmp_path) | {"tokens": "characters"}


class TestPairs(TestCsv):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"vocabulary": 270}}


class TestReadPairs(TestCsv):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "tokenizer.json").write_text(train([text for text, _ in texts()], PaddedBpe(vocabulary=280)))
        return write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"path": "tokenizer.json"}}


class TestFolder(ChecksumContract):
    name = "labelled_text"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return write_folder(tmp_path)

    def change(self, folder: Path) -> None:
        (folder / "texts/good/000.txt").write_text("another")


class TestLibrary(DataContract):
    name = "labelled_text"

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        return {"length": 64}


def test_a_short_text_is_filled_with_token_0_and_a_long_one_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), closing(opened(write_csv(tmp_path), tmp_path)) as source:
        tokens = source.read("train", np.array([0, 5]))
    assert bytes(tokens[0]) == b"fine 0" + bytes(6)
    assert bytes(tokens[1]) == b"no good at a"
    assert "texts are longer than 12 bytes (data.params.length): their ends are cut" in caplog.text


def test_a_character_that_train_does_not_have_is_unknown(tmp_path: Path) -> None:
    rows = [("abc", "good"), ("bca", "bad")] * 20 + [("axc", "good"), ("abz", "bad")]
    lines = [f"{text},{label},{'test' if number >= 40 else 'train'}" for number, (text, label) in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,part", *lines]) + "\n")
    params = {"path": "t.csv", "split": "part", "tokens": "characters", "length": 4}
    with closing(opened(params, tmp_path)) as source:
        assert source.vocabulary == ("<pad>", "<unknown>", "a", "b", "c")
        assert source.read("test", np.arange(2)).tolist() == [[2, 1, 4, 0], [2, 3, 1, 0]]


def test_characters_are_learned_from_the_rows_that_remain_in_train(tmp_path: Path) -> None:
    with closing(opened(write_csv(tmp_path) | {"tokens": "characters"}, tmp_path)) as source:
        assert source.learn_from is not None
        assert source.learn_from(np.array([0, 1])).vocabulary[2:] == tuple(sorted(set("fine 0dull 1")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n,good\nx,bad\n", "line 2, column `text`: the text is empty; remove the row"),
        ("text,label\nx,good\ny,\n", "line 3, column `label`: the target is missing"),
        ("words,label\nx,good\n", r"has no column `text` \(data.params.text\)"),
        ("text,label\nx,good\ny,good\n", "every target is `good`: nothing to learn"),
    ],
)
def test_a_file_that_cannot_be_used_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        opened({"path": "t.csv"}, tmp_path)


def test_a_file_that_is_not_utf8_or_empty_is_rejected(tmp_path: Path) -> None:
    params = write_folder(tmp_path)
    path = tmp_path / "texts/good/000.txt"
    for content, message in ((b"\xff", "not UTF-8 at byte 0"), (b"", "the text is empty"), (b"a\0", "the character 0")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            opened(params, tmp_path)


def test_the_manifest_tells_a_model_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    settings = {"name": "labelled_text", "params": write_csv(tmp_path)}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    assert manifest.spec == data.ModelSpec((12,), 2, "text_classification", vocabulary=256)
    assert manifest.dtype == "uint8"


def new_texts(params: dict[str, Any], root: Path, path: str) -> list[tuple[Any, np.ndarray]]:
    """Return the texts at a path for a model that was trained on the data of these settings."""
    plugin = plugins.load("data", "labelled_text")
    manifest = data.prepare({"name": "labelled_text", "params": params}, root, root / "work")
    with closing(plugin.open_inputs(plugin.Params.model_validate(params), root / path, manifest)) as inputs:
        return list(inputs.read(2))


def test_new_texts_are_files_of_a_folder_or_one_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    params = write_folder(tmp_path) | {"tokens": "characters"}
    (tmp_path / "new.txt").write_text("fine ~")
    ((names, tokens),) = new_texts(params, tmp_path, "new.txt")
    assert names == {"file": ["new.txt"]}
    assert tokens[0, 5:7].tolist() == [1, 0]  # a character that train does not have, then the filled end
    assert [len(tokens) for _, tokens in new_texts(params, tmp_path, "texts/bad")] == [2] * 15
    assert "texts are longer than 12 tokens: their ends are cut" in caplog.text
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty.txt: the text is empty"):
        new_texts(params, tmp_path, "empty.txt")


def test_new_texts_of_a_table_need_its_column(tmp_path: Path) -> None:
    params = write_csv(tmp_path)
    (tmp_path / "new.csv").write_text("texts\nfine\n")
    with pytest.raises(DataError, match=r"has no column `text`, from which .*; did you mean `texts`\? .*needs: text"):
        new_texts(params, tmp_path, "new.csv")


PAIRS = {"tokens": "bpe", "bpe": {"vocabulary": 280}}


def test_pairs_are_learned_from_the_rows_that_remain_in_train(tmp_path: Path) -> None:
    rows = [(f"{'lovely ' * 3}{number}", "good") for number in range(20)] + [(f"zyzy {n}", "bad") for n in range(20)]
    with closing(opened(write_csv(tmp_path, rows) | PAIRS, tmp_path)) as source:
        assert {" lovely", "zy"} <= set(source.vocabulary)
        assert source.vocabulary[0] == "<pad>"
        tokens = source.read("train", np.array([0]))[0]
        assert "".join(source.vocabulary[token] for token in tokens if token) == rows[0][0]
        assert tokens[-1] == 0
        assert source.learn_from is not None
        learned = source.learn_from(np.arange(20))
    assert not any("zy" in name for name in learned.vocabulary)
    (tmp_path / "read.json").write_text(source.tokenizer)
    with closing(opened(write_csv(tmp_path, rows) | PAIRS | {"bpe": {"path": "read.json"}}, tmp_path)) as again:
        assert again.learn_from is None
        assert (again.vocabulary, again.tokenizer) == (source.vocabulary, source.tokenizer)


def test_new_texts_have_the_tokens_of_the_stored_tokenizer(tmp_path: Path) -> None:
    params = write_folder(tmp_path) | PAIRS
    manifest = data.prepare({"name": "labelled_text", "params": params}, tmp_path, tmp_path / "work")
    stored = Tokenizer(manifest.tokenizer, PaddedBpe().mark, "it")
    assert manifest.spec.vocabulary == stored.size
    (tmp_path / "new.txt").write_text("lovely ü")
    ((_, tokens),) = new_texts(params, tmp_path, "new.txt")
    (expected,) = stored.encode(["lovely ü"])
    assert tokens[0].tolist() == expected + [0] * (12 - len(expected))
    (tmp_path / "new.txt").write_text("lovely <pad>")
    with pytest.raises(DataError, match=r"new.txt: the text has the token `<pad>`, which fills short texts"):
        new_texts(params, tmp_path, "new.txt")


def test_the_template_of_a_tokenizer_is_applied_and_cut_texts_keep_its_end(tmp_path: Path) -> None:
    tokenizer = json.loads(train([text for text, _ in texts()], PaddedBpe(special=("[CLS]", "[SEP]"))))
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for number, name in ((1, "[CLS]"), (2, "[SEP]"))}
    parts = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single = [*parts, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    (tmp_path / "t.json").write_text(json.dumps(tokenizer | {"post_processor": template}))
    params = write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"path": "t.json"}}
    plain = Tokenizer((tmp_path / "t.json").read_text(), PaddedBpe().mark, "it")
    for length in (4, 12):
        with closing(opened(params | {"length": length}, tmp_path)) as source:
            for row, (text, _) in zip(source.read("train", np.arange(9)).tolist(), texts(), strict=False):
                inside = plain.encode([text])[0][: length - 2]
                assert row == [1, *inside, 2] + [0] * (length - 2 - len(inside))
    with (
        closing(opened(params | {"length": 2}, tmp_path)) as source,
        pytest.raises(DataError, match="length: 2 tokens leave no room for a text: the tokenizer adds 2"),
    ):
        source.read("train", np.arange(1))


def test_another_token_than_0_that_fills_texts_is_exchanged_with_0(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(train([text for text, _ in texts()], Bpe(special=("<pad>",))))
    params = write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"path": "x.json"}}
    theirs = Tokenizer((tmp_path / "x.json").read_text(), PaddedBpe().mark, "it")
    assert (theirs.mark, theirs.names()[:2]) == (1, ("<end>", "<pad>"))
    rows = [*texts(), ("a <end> in it", "good")]
    params = write_csv(tmp_path, rows) | {"tokens": "bpe", "bpe": {"path": "x.json"}, "length": 30}
    manifest = data.prepare({"name": "labelled_text", "params": params}, tmp_path, tmp_path / "work")
    assert manifest.vocabulary[:2] == ("<pad>", "<end>")
    assert filling_token(manifest.tokenizer) == 1
    with closing(opened(params, tmp_path)) as source:
        stored = np.concatenate([source.read(split, np.arange(len(source.targets[split]))) for split in source.targets])
    encoded = [theirs.encode([text])[0] for text, _ in rows]
    assert 0 in encoded[-1]
    padded = [tokens + [1] * (30 - len(tokens)) for tokens in encoded]
    assert sorted(exchanged(stored, 1).tolist()) == sorted(padded)
    # an exported graph takes the numbers of the tokenizer, and its network those of the data
    given = raw.feeds(manifest, stored)["tokens"]
    assert sorted(given.tolist()) == sorted(padded)
    network = raw.whole(torch.nn.Identity(), manifest, None)
    assert torch.equal(network(torch.from_numpy(given)), torch.from_numpy(stored).long())
    (tmp_path / "new.csv").write_text("text\nlovely <end>\n")
    ((_, tokens),) = new_texts(params, tmp_path, "new.csv")
    (expected,) = theirs.encode(["lovely <end>"])
    assert exchanged(tokens[0], 1).tolist() == expected + [1] * (30 - len(expected))


def test_a_text_or_a_template_with_the_token_that_fills_texts_is_rejected(tmp_path: Path) -> None:
    params = write_csv(tmp_path, [*texts(), ("so <pad> so", "good")])
    with pytest.raises(DataError, match=r"row 60: the text has the token `<pad>`"):
        opened(params | PAIRS, tmp_path)
    (tmp_path / "x.json").write_text(train(["a b"], Bpe(special=("<pad>",))))
    with pytest.raises(DataError, match=r"row 60: the text has the token `<pad>`"):
        opened(params | {"tokens": "bpe", "bpe": {"path": "x.json"}}, tmp_path)
    ends = {"id": "<end>", "ids": [0], "tokens": ["<end>"]}
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": {"<end>": ends}}
    tokenizer = json.loads((tmp_path / "x.json").read_text()) | {"post_processor": template}
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match=r"t.json: its template adds `<end>` to each text, .* \(bpe.pad\)"):
        opened(write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"path": "t.json", "pad": "<end>"}}, tmp_path)
    with pytest.raises(DataError, match=r"x.json: has no token `\[PAD\]` to fill short texts \(bpe.pad\)"):
        opened(write_csv(tmp_path) | {"tokens": "bpe", "bpe": {"path": "x.json", "pad": "[PAD]"}}, tmp_path)

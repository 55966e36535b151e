"""Texts: tokens, windows, splits by file or passage, and files that are rejected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from tests.datasets.contract import ChecksumContract, DataContract
from workflow_lib import data, plugins
from workflow_lib.data import Source
from workflow_lib.errors import DataError

# Descriptions of data sets in scikit-learn: real texts with common words and characters beyond ASCII.
TEXTS = {name: getattr(datasets, f"load_{name}")().DESCR for name in ("iris", "wine", "digits", "diabetes", "linnerud")}


def folder_of_texts(folder: Path, suffix: str = ".txt", ending: str = " – ü\U0001f40d\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        (folder / f"{name}{suffix}").write_text(text + ending, encoding="utf-8")
    return folder


@contextmanager
def opened(path: Path | None, root: Path = Path("/"), **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", "text")
    params = {"context": 32} | params
    with closing(plugin.open_source(plugin.Params(path=path, **params), root)) as source:
        yield source


def tokens_of(source: Source, split: str = "train") -> np.ndarray:
    return source.read(split, np.arange(len(source.targets[split])))


def in_words(source: Source, tokens: np.ndarray) -> str:
    return "".join(source.vocabulary[token] for token in tokens.tolist())


class TextContract(ChecksumContract):
    name = "text"
    settings_of_texts: dict[str, Any] = {}

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        folder_of_texts(tmp_path / "texts")
        return {"path": "texts", "context": 16} | self.settings_of_texts

    def change(self, folder: Path) -> None:
        path = folder / "texts" / "wine.txt"
        path.write_text(path.read_text().replace("wine", "beer"))


class TestBytes(TextContract):
    pass


class TestCharacters(TextContract):
    settings_of_texts = {"tokens": "characters"}

    @pytest.fixture(autouse=True)
    def many_strides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workflow_lib.datasets._documents.STRIDE", 50)
        monkeypatch.setattr("workflow_lib.datasets._documents.BLOCK_BYTES", 333)


class TestOneFile(TextContract):
    settings_of_texts = {"path": "texts/wine.txt"}


class TestSplitFolders(TextContract):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        for split in ("train", "val", "test"):
            folder_of_texts(tmp_path / "texts" / split)
        return {"path": "texts", "context": 16, "tokens": "characters"}

    def change(self, folder: Path) -> None:
        path = folder / "texts" / "val" / "iris.txt"
        path.write_text(path.read_text().upper())


class TestTheStandardLibrary(DataContract):
    name = "text"

    @pytest.fixture
    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "params": params, "shard_samples": 5000}

    def test_the_library_is_small_enough_for_a_demonstration(self, source: Source) -> None:
        assert 1e6 < sum(file.size for file in source.files) < 2.5e6
        assert all(file.path.suffix == ".py" for file in source.files)


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
@pytest.mark.parametrize("stride", [1, 7, 4096])
def test_every_token_of_every_file_is_there_in_order(
    tmp_path: Path, tokens: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.datasets._documents.STRIDE", stride)
    folder = folder_of_texts(tmp_path / "texts")
    expected = []
    for name in sorted(TEXTS):
        text = (folder / f"{name}.txt").read_text()
        in_bytes = [chr(byte) if byte < 0x80 else f"<{byte:02x}>" for byte in text.encode()]
        expected += [*(in_bytes if tokens == "bytes" else text), "<end>"]
    starts = [*range(0, len(expected) - 33, 32), len(expected) - 33]
    with opened(folder, tokens=tokens, split_by="passage") as source:
        found = [[source.vocabulary[token] for token in row] for row in tokens_of(source).tolist()]
    assert found == [expected[start : start + 33] for start in starts]


def test_a_file_is_in_one_split_only(tmp_path: Path) -> None:
    """Each file has its own letter, and no letter is in two splits."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        (folder / f"{letter}.txt").write_text(letter * (600 + 37 * ord(letter) % 500))
    settings = {"name": "text", "params": {"path": "texts", "context": 32}}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    letters = {}
    for split in data.SPLITS:
        tokens, _ = data.load_split(manifest, split, tmp_path / "work").batch(slice(None))
        letters[split] = {manifest.vocabulary[token] for token in set(tokens.flatten().tolist())} - {"<end>"}
    assert sorted(letter for split in letters.values() for letter in split) == list("abcdefghijklmnopqrstuvwxyz")
    assert all(len(split) > 2 for split in letters.values())


def test_small_files_are_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(500):
        (folder / f"{number:03d}.txt").write_text(f"{number:03d}")
    with opened(folder, tokens="characters") as source:
        text = "<end>".join(in_words(source, row) for row in tokens_of(source))
        assert all(f"{number:03d}" in text for number in range(0, 500, 50))
        assert source.groups is not None
        assert len(set(source.groups.tolist())) > 2


def test_a_single_file_is_cut_into_passages(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("".join(TEXTS.values()))
    with opened(path) as source:
        assert source.groups is not None
        assert source.groups.tolist() == [row // 16 for row in range(len(source.targets["train"]))]
    with opened(path, split_by="file") as source:
        assert source.groups is not None
        assert set(source.groups.tolist()) == {0}


def test_a_single_file_that_must_stay_together_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(TEXTS.values()))
    settings = {"name": "text", "params": {"path": "x.txt", "context": 32, "split_by": "file"}}
    with pytest.raises(DataError, match="the val split has no sample"):
        data.prepare(settings, tmp_path, tmp_path / "work")


def test_a_pattern_chooses_the_files(tmp_path: Path) -> None:
    folder = folder_of_texts(tmp_path / "texts")
    folder_of_texts(folder / "deep", ".md")
    (folder / ".hidden.md").write_text("x")
    with opened(folder, pattern="*.md") as source:
        assert [file.path.relative_to(folder) for file in source.files] == [
            Path(f"deep/{name}.md") for name in sorted(TEXTS)
        ]
    with pytest.raises(DataError, match=r"texts: no file matches `\*.rst` \(data.params.pattern\)"):
        with opened(folder, pattern="*.rst"):
            pass


def test_many_characters_need_more_than_a_byte(tmp_path: Path) -> None:
    characters = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 300))
    (tmp_path / "x.txt").write_text(characters * 3)
    with opened(tmp_path / "x.txt", tokens="characters") as source:
        rows = tokens_of(source)
        assert rows.dtype == np.int32
        assert len(source.vocabulary) == 301
        assert in_words(source, rows[0]) == characters[:33]
    with opened(tmp_path / "x.txt") as source:
        assert tokens_of(source).dtype == np.uint8
        assert len(source.vocabulary) == 256


@pytest.mark.parametrize("place", [0, 1000, 4095, 4096, 4097, 9999])
def test_bytes_that_are_not_utf8_are_rejected_with_their_place(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.datasets._documents.BLOCK_BYTES", 4096)
    content = bytearray(("é" * 5000).encode())
    place -= place % 2
    content[place] = 0x20  # the next byte is the second half of a character
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"x.txt: not UTF-8 at byte {place + 1};"):
        with opened(tmp_path / "x.txt", tokens="characters"):
            pass
    with opened(tmp_path / "x.txt") as source:  # any bytes are allowed
        assert in_words(source, tokens_of(source)[0][:2]) in ("<c3><a9>", " <a9>")


def test_a_character_cut_off_at_the_end_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"x" * 999 + "é".encode()[:1])
    with pytest.raises(DataError, match="x.txt: not UTF-8 at byte 999;"):
        with opened(tmp_path / "x.txt", tokens="characters"):
            pass


def test_text_shorter_than_the_context_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x" * 31)
    with pytest.raises(DataError, match="x.txt: has 32 tokens .* a context of 32 needs more"):
        with opened(tmp_path / "x.txt"):
            pass
    (tmp_path / "x.txt").write_text("x" * 32)
    with opened(tmp_path / "x.txt") as source:
        assert tokens_of(source).tolist() == [[ord("x")] * 32 + [255]]


@pytest.mark.parametrize("path", ["no", "no.txt"])
def test_a_missing_path_is_rejected(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"no such folder"), opened(tmp_path / path):
        pass


def test_a_changed_order_of_files_is_new_data(tmp_path: Path) -> None:
    folder = folder_of_texts(tmp_path / "texts")
    settings = {"name": "text", "params": {"path": "texts", "context": 16, "split_by": "passage"}}
    before = data.prepare(settings, tmp_path, tmp_path / "work")
    (folder / "wine.txt").rename(folder / "a.txt")
    assert data.prepare(settings, tmp_path, tmp_path / "work").digest != before.digest

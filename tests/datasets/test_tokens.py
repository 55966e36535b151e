"""Files of tokens: windows, documents, splits by name, and files that are rejected."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.in_place_contract import InPlaceContract
from workflow_lib import data, plugins
from workflow_lib.data import Manifest, Source
from workflow_lib.datasets._bpe import token_names
from workflow_lib.errors import DataError
from workflow_lib.metrics.texts import decoded

RANDOM = np.random.default_rng(0)


def tokens(count: int, vocabulary: int = 500) -> np.ndarray:
    return RANDOM.integers(0, vocabulary, count)


def written(path: Path, values: Any, dtype: str = "uint16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(values).astype(dtype)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        array.tofile(path)
    return path


def opened(path: Path, **params: Any) -> Source:
    plugin = plugins.load("data", "tokens")
    given = {"vocabulary": 500, "context": 4} | params
    with closing(plugin.open_source(plugin.Params(path=path, **given), path.parent)) as source:
        return source


def everything(source: Source, split: str = "train") -> list[list[int]]:
    return source.read(split, np.arange(len(source.targets[split]))).tolist()


class TokensContract(InPlaceContract):
    name = "tokens"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        written(tmp_path / "texts" / "a.bin", tokens(1500))
        written(tmp_path / "texts" / "b.npy", tokens(901), "int64")
        return {"path": "texts", "vocabulary": 500, "context": 8}

    def change(self, folder: Path) -> None:
        path = folder / "texts" / "a.bin"
        written(path, np.fromfile(path, np.uint16)[::-1])


class TestTokens(TokensContract):
    pass


class TestBytes(TokensContract):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        for split, count in (("train", 900), ("val", 300), ("test", 200)):
            written(tmp_path / "texts" / f"{split}.bin", tokens(count, 256), "uint8")
        return {"path": "texts", "vocabulary": 256, "context": 16, "stride": 5, "dtype": "uint8"}

    def change(self, folder: Path) -> None:
        path = folder / "texts" / "train.bin"
        written(path, np.fromfile(path, np.uint8)[::-1], "uint8")


class TestDocuments(TokensContract):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        values = tokens(3000, 499)
        values[RANDOM.integers(0, 3000, 60)] = 499
        written(tmp_path / "texts" / "a.bin", values)
        written(tmp_path / "texts" / "b.bin", values[::-1])
        return {"path": "texts", "vocabulary": 500, "context": 8, "separator": 499, "cross_documents": False}


@pytest.mark.parametrize("name", ["x.bin", "x.npy"])
def test_windows_share_a_token_and_the_last_ends_with_the_file(tmp_path: Path, name: str) -> None:
    source = opened(written(tmp_path / name, range(11)))
    assert everything(source) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [6, 7, 8, 9, 10]]


def test_a_stride_moves_the_windows(tmp_path: Path) -> None:
    source = opened(written(tmp_path / "x.bin", range(8)), stride=1)
    assert everything(source) == [[n, n + 1, n + 2, n + 3, n + 4] for n in range(4)]


def test_a_file_of_one_window_and_shorter_files(tmp_path: Path) -> None:
    for number, count in enumerate((5, 3, 6)):
        written(tmp_path / "texts" / f"{number}.bin", np.arange(count) + 10 * number)
    assert everything(opened(tmp_path / "texts")) == [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24], [21, 22, 23, 24, 25]]


def test_windows_stay_within_documents(tmp_path: Path) -> None:
    """A document ends with its separator; shorter ones than a window are left out, here the last."""
    values = [1, 2, 3, 4, 5, 6, 0, 7, 8, 0, 9, 10, 11, 12, 0, 13]
    source = opened(written(tmp_path / "x.bin", values), separator=0, cross_documents=False)
    assert everything(source) == [[1, 2, 3, 4, 5], [3, 4, 5, 6, 0], [9, 10, 11, 12, 0]]


@pytest.mark.parametrize(
    "names", [("train.bin", "val.bin"), ("train/0.bin", "validation/0.bin"), ("train_01.npy", "val_00.npy")]
)
def test_names_give_the_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        written(tmp_path / "texts" / name, range(9))
    assert set(opened(tmp_path / "texts").targets) == {"train", "val"}


@pytest.mark.parametrize(
    ("files", "params", "message"),
    [
        ({"x.bin": b"\0\0\0"}, {}, "its 3 bytes are not a whole number of uint16 tokens of 2 bytes"),
        ({"x.bin": b"\0\0" * 4}, {}, "has 4 tokens, .* needs 5"),
        ({"x.npy": b"none"}, {}, "is not a .npy file"),
        ({"train.bin": b"\0\0" * 9, "more.bin": b"\0\0" * 9}, {}, "more.bin: its name does not begin with train"),
        ({"val.bin": b"\0\0" * 9}, {}, "has no file of train"),
        ({"x.txt": b"\0\0" * 9}, {}, "has no file of train; allowed: files named .bin, .npy"),
        ({"x.bin": b"\0\0" * 9}, {"cross_documents": False}, "needs data.params.separator"),
        (
            {"x.bin": b"\0\0" * 9},
            {"separator": 500, "cross_documents": False},
            "separator = 500 is not below data.params.vocabulary = 500",
        ),
        ({"x.bin": b"\1\0" * 9}, {"separator": 1, "cross_documents": False}, "no document, up to the separator 1"),
        (
            {"x.bin": b"\0\0" * 9, "x.idx": b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\4"},
            {},
            "x.idx: says that its tokens are int32, but data.params.dtype is uint16",
        ),
    ],
)
def test_files_that_cannot_be_used_are_rejected(
    tmp_path: Path, files: dict[str, bytes], params: dict[str, Any], message: str
) -> None:
    (tmp_path / "texts").mkdir()
    for name, content in files.items():
        (tmp_path / "texts" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "texts", **params)


@pytest.mark.parametrize("values", [np.zeros((3, 9), np.int64), np.zeros(30, np.float32)])
def test_an_array_that_is_not_a_row_of_whole_numbers_is_rejected(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(DataError, match=r"allowed: whole numbers of shape \(n,\)"):
        opened(tmp_path / "x.npy")


@pytest.mark.parametrize(("name", "dtype", "wrong"), [("x.bin", "uint16", 500), ("x.npy", "int32", -1)])
def test_a_token_beyond_the_vocabulary_is_rejected_by_preprocess(
    tmp_path: Path, name: str, dtype: str, wrong: int
) -> None:
    values = tokens(3000).astype(dtype)
    values[1234] = wrong
    written(tmp_path / name, values, dtype)
    settings = {"name": "tokens", "params": {"path": name, "vocabulary": 500, "context": 4}}
    with pytest.raises(DataError, match=f"{name}: token 1234 is {wrong}; allowed .* 0 to 499"):
        data.prepare(settings, tmp_path, tmp_path / "work")


def test_new_tokens_are_read_passage_by_passage(tmp_path: Path) -> None:
    path = written(tmp_path / "texts" / "a.bin", values := tokens(11))
    written(tmp_path / "texts" / "b.npy", values[:3], "int64")
    plugin = plugins.load("data", "tokens")
    params = plugin.Params(path="train.bin", vocabulary=500, context=4)
    manifest = data.Manifest.model_construct(dtype="int32")
    read = list(plugin.open_inputs(params, path.parent, manifest).read(2))
    assert [(names["file"], list(names["token"]), given.shape) for names, given in read] == [
        (["a.bin"] * 2, [0, 4], (2, 5)),
        (["a.bin"], [8], (1, 3)),
        (["b.npy"], [0], (1, 3)),
    ]
    np.testing.assert_array_equal(read[0][1][1], values[4:9])
    assert all(given.dtype == np.int32 for _, given in read)
    written(path, [1, 2, 500])
    with pytest.raises(DataError, match="a.bin: token 2 is 500"):
        list(plugin.open_inputs(params, path, manifest).read(2))
    written(path, [1])
    with pytest.raises(DataError, match="at least 2 are needed"):
        plugin.open_inputs(params, path, manifest)


def test_a_tokenizer_names_the_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    path = tmp_path / "tokenizer.json"
    path.write_text(Tokenizer(WordLevel({"a": 0, "house": 1}, unk_token="a")).to_str())
    source = opened(written(tmp_path / "x.bin", np.arange(9) % 3), vocabulary=3, tokenizer=path)
    assert source.vocabulary == ("a", "house", "<2>")
    shown = Manifest.model_construct(vocabulary=source.vocabulary, tokenizer=source.tokenizer, task="language")
    assert decoded([1, 2], shown) == "house<2>"
    with pytest.raises(DataError, match=r"tokenizer.json: has 2 tokens, more than data.params.vocabulary = 1?"):
        token_names(path, 1)

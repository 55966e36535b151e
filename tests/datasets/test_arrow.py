"""Arrow and Parquet files: the same rows in every format, texts and tokens in windows, and files that are rejected."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet
from pydantic import ValidationError

from tests.datasets.in_place_contract import InPlaceContract
from tests.datasets.test_tar import picture
from workflow_lib import data, plugins
from workflow_lib.data import Source
from workflow_lib.errors import DataError

RANDOM = np.random.default_rng(0)
WORDS = ("one", "two", "three", "four", "five", "tree", "house", "–")
FORMATS = ("x.parquet", "stream.arrow", "file.arrow")


def written(path: Path, columns: dict[str, Any], rows: int = 13, metadata: dict[str, str] | None = None) -> Path:
    """Write a Parquet file, an IPC file (its name begins with `file`) or an IPC stream, in batches of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
        return path
    make = ipc.new_file if path.name.startswith("file") else ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def opened(path: Path, **params: Any) -> Source:
    plugin = plugins.load("data", "arrow")
    with closing(plugin.open_source(plugin.Params(path=path, **params), path.parent)) as source:
        return source


def everything(source: Source, split: str = "train") -> np.ndarray:
    return source.read(split, np.arange(len(source.targets[split])))


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, 30))) for _ in range(count)]


class TestTexts(InPlaceContract):
    name = "arrow"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        written(tmp_path / "rows" / "a.arrow", {"text": texts(150), "id": range(150)})
        written(tmp_path / "rows" / "b.arrow", {"text": texts(90, 1), "id": range(90)})
        return {"path": "rows", "text": "text", "context": 8, "bpe": {"vocabulary": 280}}

    def change(self, folder: Path) -> None:
        written(folder / "rows" / "b.arrow", {"text": texts(90, 2), "id": range(90)})


class TestTokensInParquet(InPlaceContract):
    name = "arrow"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.write(tmp_path, 0)
        return {"path": "rows", "tokens": "ids", "vocabulary": 90, "separator": 89, "context": 8, "stride": 6}

    def write(self, folder: Path, seed: int) -> None:
        random = np.random.default_rng(seed)
        for split, count in (("train", 120), ("validation", 60), ("test", 50)):
            rows = [random.integers(0, 89, random.integers(0, 20)).astype(np.int32) for _ in range(count)]
            written(folder / "rows" / f"{split}-00000-of-00001.parquet", {"ids": rows})

    def change(self, folder: Path) -> None:
        self.write(folder, 1)


class TestImages(InPlaceContract):
    """As `save_to_disk` of Hugging Face writes them."""

    name = "arrow"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.write(tmp_path, 0)
        return {"path": "rows", "image": "image", "target": "label", "size": [6, 7]}

    def write(self, folder: Path, first: int) -> None:
        features = {"image": {"_type": "Image"}, "label": {"names": ["dark", "grey", "light"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        for number in range(2):
            rows = range(first + 40 * number, first + 40 * (number + 1))
            columns = {
                "image": [{"bytes": picture(70 * (n % 3) + first), "path": None} for n in rows],
                "label": [n % 3 for n in rows],
            }
            written(folder / "rows" / "train" / f"data-0000{number}-of-00002.arrow", columns, metadata=metadata)
        (folder / "rows" / "train" / "state.json").write_text("{}")
        (folder / "rows" / "dataset_dict.json").write_text('{"splits": ["train"]}')

    def change(self, folder: Path) -> None:
        self.write(folder, 3)

    def test_the_classes_are_those_of_the_data_set(self, source: Source) -> None:
        assert source.classes == ("dark", "grey", "light")


class TestNumbers(InPlaceContract):
    name = "arrow"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        self.write(tmp_path, 0)
        return {"path": "file.arrow", "numbers": ["a", "b"], "target": "y", "kind": "regression"}

    def write(self, folder: Path, seed: int) -> None:
        random = np.random.default_rng(seed)
        columns = {"a": random.normal(3, 2, 140), "b": random.integers(0, 9, 140), "y": random.normal(size=140)}
        written(folder / "file.arrow", columns)

    def change(self, folder: Path) -> None:
        self.write(folder, 1)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    columns = {"t": texts(50), "ids": [[n, n + 1] for n in range(50)], "x": np.arange(50.0), "y": ["b", "a"] * 25}
    paths = [written(tmp_path / name, columns) for name in FORMATS]
    for params in (
        {"text": "t", "bpe": {"vocabulary": 270}, "context": 4},
        {"tokens": "ids", "vocabulary": 52, "context": 4},
        {"numbers": ("x",), "target": "y"},
    ):
        first, *others = (opened(path, **params) for path in paths)
        for other in others:
            assert np.array_equal(everything(first), everything(other))
            assert np.array_equal(first.targets["train"], other.targets["train"])
            assert (first.classes, first.vocabulary) == (other.classes, other.vocabulary)


def test_rows_of_tokens_follow_each_other(tmp_path: Path) -> None:
    path = written(tmp_path / "x.arrow", {"ids": [[1, 2], [], [3, 4, 5, 6], [7]]}, rows=2)
    windows = everything(opened(path, tokens="ids", vocabulary=10, separator=0, context=3))
    assert windows.tolist() == [[1, 2, 0, 0], [0, 3, 4, 5], [5, 6, 0, 7], [6, 0, 7, 0]]
    windows = everything(opened(path, tokens="ids", vocabulary=10, context=3))
    assert windows.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]


def test_texts_end_with_a_token(tmp_path: Path) -> None:
    source = opened(written(tmp_path / "x.arrow", {"t": ["ab", "cd"]}), text="t", context=5, bpe={"vocabulary": 258})
    assert "".join(source.vocabulary[token] for token in everything(source)[0]) == "ab<end>cd<end>"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        ({"t": ["a"]}, {"text": "u"}, "the column `u` is missing; there are: t"),
        ({"t": ["a" * 9, None]}, {"text": "t", "context": 2}, r", row 1: `t` is null"),
        ({"t": [1, 2]}, {"text": "t"}, "`t` is int64; allowed: texts"),
        ({"t": ["a"]}, {"tokens": "t", "vocabulary": 9}, "`t` is string; allowed: lists of whole numbers"),
        ({"t": [[1], [1, None]]}, {"tokens": "t", "vocabulary": 9}, ", row 1: `t` has a null inside of a list"),
        ({"t": [[1, 9]]}, {"tokens": "t", "vocabulary": 9}, "has the token 9; allowed .* 0 to 8"),
        ({"t": [[1, 8]]}, {"tokens": "t", "vocabulary": 9}, "has 2 tokens; a context of 128 needs 129"),
        ({"t": [[1]]}, {"tokens": "t"}, "tokens and vocabulary, .* are set together"),
        ({"t": [[1]]}, {"tokens": "t", "vocabulary": 9, "separator": 9}, "separator must be below"),
        ({"t": ["a"]}, {"text": "t", "numbers": ("t",)}, "text, numbers is set; allowed: one of"),
        ({"t": ["a"]}, {}, "none is set; allowed: one of"),
        ({"t": ["a"]}, {"text": "t", "target": "t"}, "target is not for `text`"),
        ({"t": ["a"]}, {"image": "t"}, "target is missing beside `image`"),
        ({"t": ["a"], "y": [1]}, {"image": "t", "target": "y"}, "data.params.size is missing"),
        (
            {"x": [1.0], "y": ["a"]},
            {"numbers": ("x",), "target": "y", "kind": "regression"},
            "`y` is string; allowed for a reg",
        ),
        ({"x": [1.0, 2.0], "y": [1.0, 0.5]}, {"numbers": ("x",), "target": "y"}, ", row 1: the target is 0.5; allowed"),
        (
            {"x": [1.0, 2.0], "y": [1, -1]},
            {"numbers": ("x",), "target": "y"},
            "row 1: the target is -1; .* -1 and 1: give",
        ),
        ({"x": [1.0], "y": [5]}, {"numbers": ("x",), "target": "y", "classes": ("a", "b")}, "is 5; allowed: a, b"),
    ],
)
def test_columns_that_cannot_be_used_are_rejected(
    tmp_path: Path, name: str, columns: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path / name, columns), **params)


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        (
            {"x": [b"1"], "y": [1]},
            {"image": "x", "target": "y", "size": 8},
            r"x.arrow, row 0: `x`: not a readable PNG, .* image \(cannot identify image\)",
        ),
        (
            {"x": [{"bytes": None, "path": "1.png"}], "y": [1]},
            {"image": "x", "target": "y", "size": 8},
            "has the path of a file; allowed: the bytes of images",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_rejected_when_they_are_read(
    tmp_path: Path, columns: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    source = opened(written(tmp_path / "x.arrow", columns), **params)
    with pytest.raises(DataError, match=message):
        source.read("train", np.arange(1))


def test_files_with_different_types_and_damaged_files_are_rejected(tmp_path: Path) -> None:
    written(tmp_path / "rows" / "a.arrow", {"t": ["a"]})
    written(tmp_path / "rows" / "b.arrow", {"t": [1]})
    with pytest.raises(DataError, match=r"b.arrow: `t` is int64, but string in .*a.arrow"):
        opened(tmp_path / "rows", text="t")
    for name in ("x.arrow", "x.parquet"):
        (tmp_path / name).write_bytes(b"not a file at all" * 9)
        with pytest.raises(DataError, match=f"{name}: not a readable"):
            opened(tmp_path / name, text="t")
    for name in ("file.arrow", "stream.arrow"):  # cut at the end of a batch
        path = written(tmp_path / name, {"t": ["a"] * 30})
        end = path.read_bytes().rindex(b"\xff\xff\xff\xff\0\0\0\0")
        os.truncate(path, end)
        with pytest.raises(DataError, match=f"{name}: ends without the mark of its end: it is incomplete"):
            opened(path, text="t")
    coded = pyarrow.array(["a", "b"]).dictionary_encode()
    with pytest.raises(DataError, match="`t` is dictionary-encoded; cast it to string"):
        opened(written(tmp_path / "y.arrow", {"t": coded}), text="t")


def test_of_a_saved_data_set_only_its_own_files_are_read(tmp_path: Path) -> None:
    """`save_to_disk` of Hugging Face lists them; caches may lie beside them."""
    folder = tmp_path / "rows" / "train"
    names = [written(folder / f"data-{n}.arrow", {"x": [1.0, n], "y": [0, 1]}).name for n in range(2)]
    written(folder / "cache-a.arrow", {"x": [9.0], "y": [1]})
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    source = opened(tmp_path / "rows", numbers=("x",), target="y")
    assert source.targets["train"].tolist() == [0, 1, 0, 1]
    assert source.names_of("train", np.array([0, 3])) == {"file": ["train/data-0.arrow", "train/data-1.arrow"]} | {
        "row": pytest.approx([0, 1])
    }
    (tmp_path / "rows" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"rows: has no folder `test`, which its dataset_dict.json lists"):
        opened(tmp_path / "rows", numbers=("x",), target="y")
    (folder / names[1]).unlink()
    with pytest.raises(DataError, match=r"data-1.arrow: is missing; the state.json beside it lists it"):
        opened(tmp_path / "rows", numbers=("x",), target="y")
    (folder / "state.json").write_text('{"_indices_data_files": [{"filename": "indices.arrow"}]}')
    with pytest.raises(DataError, match=r"train: has a selection of its rows; save it after `flatten_indices\(\)`"):
        opened(tmp_path / "rows", numbers=("x",), target="y")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("text", {"bpe": {"vocabulary": 300}}, "`bpe` has no effect without tokens: bpe"),
        ("labelled_text", {"bpe": {"vocabulary": 300}}, "`bpe` has no effect without tokens: bpe"),
        (
            "text",
            {"tokens": "bpe", "bpe": {"path": "x", "vocabulary": 300}},
            "`vocabulary` has no effect without training",
        ),
        (
            "tokens",
            {"path": "x", "vocabulary": 9, "separator": 1},
            "`separator` has no effect without cross_documents: f",
        ),
        ("tar", {"path": "x", "key": "a"}, "`key` has no effect without target: json"),
        (
            "arrow",
            {"path": "x", "numbers": ["a"], "target": "y", "context": 9},
            "`context` has no effect without text or",
        ),
        ("arrow", {"path": "x", "text": "a", "classes": ["a", "b"]}, "`classes` has no effect without target"),
    ],
)
def test_settings_without_an_effect_are_rejected(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plugins.load("data", name).Params.model_validate(params)


def test_the_tokenizer_is_learned_from_train_and_stored(tmp_path: Path) -> None:
    written(tmp_path / "rows" / "train.arrow", {"t": ["aaaa bbbb"] * 200})
    for split in ("val", "test"):
        written(tmp_path / "rows" / f"{split}.arrow", {"t": ["zyzy"] * 200})
    params = {"path": "rows", "text": "t", "context": 8, "bpe": {"vocabulary": 290}}
    manifest = data.prepare({"name": "arrow", "params": params}, tmp_path, tmp_path / "work")
    assert "aaaa" in manifest.vocabulary
    assert not any("zy" in name for name in manifest.vocabulary)
    assert (tmp_path / "work" / "data" / manifest.store / "tokenizer.json").read_text() == manifest.tokenizer


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        ({"t": ["a"]}, {"text": "u"}, "the column `u` is missing; there are: t"),
        ({"t": [1]}, {"text": "t"}, r"x.arrow: `t` is int64; allowed: texts"),
        ({"t": ["a"]}, {"tokens": "t", "vocabulary": 9}, "`t` is string; allowed: lists of whole numbers"),
        ({"t": [[0.5]]}, {"tokens": "t", "vocabulary": 9}, "allowed: lists of whole numbers"),
        ({"x": ["a"], "y": [1]}, {"numbers": ("x",), "target": "y"}, "`x` is string; allowed: numbers"),
        (
            {"x": ["a"], "y": [1]},
            {"image": "x", "target": "y", "size": 8},
            "`x` is string; allowed: the bytes of",
        ),
        ({"x": [{"path": "a"}], "y": [1]}, {"image": "x", "target": "y", "size": 8}, "allowed: the bytes of images"),
        ({"x": [0.5], "y": [1]}, {"numbers": ("x",), "target": "z"}, "the column `z` is missing"),
    ],
)
def test_columns_that_do_not_fit_are_rejected_before_the_data_is_read(
    tmp_path: Path, columns: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    written(tmp_path / "x.arrow", columns)
    with pytest.raises(DataError, match=message):
        plugins.facts_in_headers("arrow", {"path": "x.arrow", **params}, tmp_path)


def test_the_header_gives_the_number_of_classes(tmp_path: Path) -> None:
    features = {"y": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    written(tmp_path / "x.arrow", {"x": [0.5], "y": [1]}, metadata=metadata)
    params = {"path": "x.arrow", "numbers": ["x"], "target": "y"}
    assert plugins.facts_in_headers("arrow", params, tmp_path) == plugins.DatasetFacts("tables", classes=3)
    named = params | {"classes": ["a", "b"]}
    assert plugins.facts_in_headers("arrow", named, tmp_path).classes == 2
    (tmp_path / "x.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="x.arrow: not a readable .arrow file"):
        plugins.facts_in_headers("arrow", params, tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_new_rows_need_the_columns_of_the_inputs_only(tmp_path: Path, name: str) -> None:
    columns = {"a": np.arange(40.0), "b": np.arange(40), "y": [n % 2 for n in range(40)]}
    written(tmp_path / "rows.parquet", columns)
    settings = {"name": "arrow", "params": {"path": "rows.parquet", "numbers": ["b", "a"], "target": "y"}}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    plugin = plugins.load("data", "arrow")
    params = plugin.Params.model_validate(settings["params"])
    path = written(tmp_path / name, {"a": [5.0] * 30, "b": range(30)})
    read = list(plugin.open_inputs(params, path, manifest).read(20))
    assert np.concatenate([inputs for _, inputs in read]).tolist() == [[row, 5] for row in range(30)]
    assert [row for names, _ in read for row in names["row"]] == list(range(30))
    path = written(tmp_path / name, {"a": [5.0] * 30})
    with pytest.raises(DataError, match=f"{name}: the column `b` is missing; there are: a"):
        list(plugin.open_inputs(params, path, manifest).read(20))
    with pytest.raises(DataError, match=r"rows.csv: allowed: .arrow, .parquet, .pq, or a folder of such files"):
        plugin.open_inputs(params, tmp_path / "rows.csv", manifest)


def test_new_texts_are_read_in_passages_with_the_tokenizer_of_the_training(tmp_path: Path) -> None:
    written(tmp_path / "rows.parquet", {"text": texts(150)})
    params = {"path": "rows.parquet", "text": "text", "context": 8, "bpe": {"vocabulary": 280}}
    manifest = data.prepare({"name": "arrow", "params": params}, tmp_path, tmp_path / "work")
    plugin = plugins.load("data", "arrow")
    new = texts(40, 3)
    path = written(tmp_path / "stream.arrow", {"text": new})
    given = plugin.Params.model_validate(params)
    read = list(plugin.open_inputs(given, path, manifest).read(3))
    flat = np.concatenate([row[:-1] for _, inputs in read for row in inputs] + [read[-1][1][-1][-1:]])
    begins = [0, *(place + 1 for place, token in enumerate(flat) if manifest.vocabulary[token] == "<end>")]
    places = [place for names, _ in read for place in zip(names["row"].tolist(), names["token"].tolist(), strict=True)]
    assert [begins[row] + token for row, token in places] == list(range(0, len(flat) - 1, 8))
    assert all(begins[row] + token < begins[row + 1] for row, token in places)
    said = "".join(manifest.vocabulary[token] for token in flat)
    assert said == "".join(f"{text}<end>" for text in new)
    written(path, {"text": [""]})
    with pytest.raises(DataError, match="stream.arrow: has 1 tokens; at least 2 are needed"):
        list(plugin.open_inputs(given, path, manifest).read(3))

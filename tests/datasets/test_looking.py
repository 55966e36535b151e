"""`everstep validate` finds data that does not fit by a look at names, headers and first samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workflow_lib import plugins
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, masks, texts and tokens; further samples of classes may be damaged."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, content: bytes | np.ndarray) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)

    grey = np.zeros((6, 9), np.uint8)
    for name in (
        "photos/rose/1.png",
        "photos/tulip/1.png",
        "split/train/rose/1.png",
        "split/train/tulip/1.png",
        "split/val/rose/1.png",
    ):
        write(name, grey)
    for name in ("photos/rose/2.png", "cut/a/1.png", "cut/b/1.png", "texts/bad/2.txt", "gif/a/1.gif", "gif/b/1.gif"):
        write(name, b"\xff")
    (folder / "split" / "val" / "daisy").mkdir()  # empty: not a class of the split
    write("split/test/violet/1.png", grey)
    write("masks/rose/1.png", grey + 1)
    write("numbers/rose/1.png", grey + 7)
    write("texts/bad/1.txt", b"bad")
    write("texts/good/1.txt", b"good")
    write("reviews.csv", b"text,label\nfine,good\n,bad\n")
    np.array([1, 2, 300], "<u2").tofile(folder / "tokens.bin")
    return folder


@pytest.mark.parametrize(
    ("name", "params", "facts"),
    [
        ("image_folder", {"path": "photos"}, DatasetFacts("images", (6, 9), 3, 2)),
        ("image_folder", {"path": "photos", "size": 4, "channels": "grey"}, DatasetFacts("images", (4, 4), 1, 2)),
        (
            "image_masks",
            {"path": "photos", "masks": "masks", "classes": ["a", "b"]},
            DatasetFacts("images", (6, 9), 3, 2),
        ),
        ("text", {"path": "texts", "pattern": "1.txt"}, DatasetFacts("texts")),
        ("text", {}, DatasetFacts("texts")),
        ("labelled_text", {"path": "texts"}, DatasetFacts("texts", classes=2)),
        ("tokens", {"path": "tokens.bin", "vocabulary": 301, "context": 2}, DatasetFacts("texts", samples=1)),
    ],
)
def test_facts_are_found_without_a_look_at_all_data(
    root: Path, name: str, params: dict[str, Any], facts: DatasetFacts
) -> None:
    assert plugins.facts_in_headers(name, params, root) == facts


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("image_folder", {"path": "none"}, "none: there is no such folder"),
        ("image_folder", {"path": "photos/rose"}, "1.png: is beside the folders of the classes"),
        ("image_folder", {"path": "split"}, "test/violet: is not a class of train"),
        ("image_folder", {"path": "split/test"}, "test: needs folders for at least two classes; it has only violet"),
        ("image_folder", {"path": "cut"}, "a/1.png: not a readable PNG"),
        ("image_folder", {"path": "gif"}, "1.gif: is not an image"),
        ("image_masks", {"path": "photos", "masks": "none", "classes": ["a", "b"]}, "none: there is no such folder"),
        ("image_masks", {"path": "photos", "masks": "texts", "classes": ["a", "b"]}, "has no mask rose/1 in"),
        ("image_masks", {"path": "photos", "masks": "numbers", "classes": ["a", "b"]}, "has the value 7 in row 0"),
        ("text", {"path": "texts", "pattern": "*.md"}, "texts: no file matches"),
        ("labelled_text", {"path": "texts", "pattern": "*.md"}, "texts: no file matches"),
        ("labelled_text", {"path": "texts/good"}, "needs folders of texts for at least two classes"),
        ("labelled_text", {"path": "reviews.csv", "target": "labels"}, "has no column `labels`"),
        ("labelled_text", {"path": "reviews.csv"}, "line 3, column `text`: the text is empty"),
        ("tokens", {"path": "tokens.bin", "vocabulary": 300, "context": 2}, "token 2 is 300; allowed with"),
    ],
)
def test_data_that_does_not_fit_is_rejected(root: Path, name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plugins.facts_in_headers(name, params, root)


def test_parts_with_other_types_or_columns_are_found(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    for number, column in enumerate(({"u": [1.5]}, {"u": [2.5]}, {"u": [1]})):
        parquet.write_table(pyarrow.table({**column, "c": ["a"]}), tmp_path / f"{number}.parquet")
    params = {"path": ".", "numbers": ["u"], "target": "c"}
    with pytest.raises(DataError, match=r"2.parquet: `u` is int64, but double in .*0.parquet"):
        plugins.facts_in_headers("arrow", params, tmp_path)
    parquet.write_table(pyarrow.table({"v": [1.5], "c": ["a"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match="2.parquet: the column `u` is missing"):
        plugins.facts_in_headers("arrow", params, tmp_path)

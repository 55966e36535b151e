"""Images with a row each in a table: labels, classes and numbers, and rows that do not fit the images."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.datasets.contract import ChecksumContract
from workflow_lib import plugins
from workflow_lib.data import Source
from workflow_lib.errors import DataError

COUNT = 30
SETTINGS = {
    "path": "photos",
    "table": "labels.csv",
    "target": ["ink", "even"],
    "task": "multilabel",
    "channels": "grey",
}


def rows_of(*columns: str) -> list[list[str]]:
    """Return a row for each digit: its file, whether it has much ink, whether it is even, its name, ink and split."""
    digits = load_digits()
    found = []
    for number, (image, digit) in enumerate(zip(digits.images[:COUNT], digits.target[:COUNT], strict=True)):
        values = {
            "file": f"{'ab'[number % 2]}/{number:02}.png",
            "ink": str(int(image.mean() > 5)),
            "even": str(digit % 2 == 0).lower(),
            "digit": f"d{digit}",
            "mean": f"{image.mean():.3f}",
            "split": ("train", "val", "test")[max(0, number - COUNT + 3)],
        }
        found.append([values[column] for column in columns])
    return found


def written(folder: Path, *columns: str) -> Path:
    """Write the images of the digits, in two folders, and the table."""
    for number, image in enumerate(load_digits().images[:COUNT]):
        path = folder / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(path)
    table(folder, rows_of(*columns), columns)
    return folder


def table(folder: Path, rows: list[list[str]], columns: tuple[str, ...]) -> None:
    (folder / "labels.csv").write_text("\n".join(map(",".join, [list(columns), *rows])) + "\n")


def opened(folder: Path, **params: Any) -> Source:
    plugin = plugins.load("data", "image_table")
    with closing(plugin.open_source(plugin.Params.model_validate(SETTINGS | params), folder)) as source:
        return source


class TestLabels(ChecksumContract):
    name = "image_table"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        written(tmp_path, "file", "ink", "even")
        return SETTINGS

    def change(self, folder: Path) -> None:
        path = folder / "photos" / "b" / "07.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def test_rows_give_the_labels_of_the_images_that_they_name(tmp_path: Path) -> None:
    written(tmp_path, "file", "ink", "even")
    rows = rows_of("file", "ink", "even")[::-1]
    rows = [[file.removesuffix(".png"), *labels] for file, *labels in rows]
    table(tmp_path, rows, ("file", "ink", "even"))
    source = opened(tmp_path)
    assert (source.task, source.classes) == ("multilabel", ("ink", "even"))
    images, targets = load_digits().images[:COUNT][::-1], load_digits().target[:COUNT][::-1]
    labels = np.stack([[image.mean() > 5 for image in images], targets % 2 == 0], axis=1)
    np.testing.assert_array_equal(source.targets["train"], labels)
    read = source.read("train", np.arange(COUNT))
    np.testing.assert_array_equal(read[:, 0], (images * 15.9).astype(np.uint8))
    assert source.names_of("train", np.arange(2)) == {"file": ["b/29.png", "a/28.png"]}


def test_classes_numbers_and_splits_come_from_columns(tmp_path: Path) -> None:
    written(tmp_path, "file", "digit", "mean", "ink", "split")
    classes = opened(tmp_path, target="digit", task="classification", split="split")
    assert {split: len(targets) for split, targets in classes.targets.items()} == {"train": 28, "val": 1, "test": 1}
    assert [classes.classes[number] for number in classes.targets["val"]] == ["d8"]
    numbers = opened(tmp_path, target=["mean", "ink"], task="regression")
    assert numbers.outputs == ("mean", "ink")
    np.testing.assert_allclose(numbers.targets["train"][:, 0], load_digits().images[:COUNT].mean((1, 2)), atol=1e-3)


BAD: dict[str, tuple[Any, str]] = {
    "a row without an image": (
        lambda rows: rows.append(["a/99.png", "1", "true"]),
        "labels.csv, line 32, column `file`: no image is called `a/99.png` in .*photos",
    ),
    "two rows for an image": (
        lambda rows: rows.append(["b/03", "1", "true"]),
        "line 32, column `file`: `b/03` is also in line 5; give each image one row",
    ),
    "another label": (
        lambda rows: rows[3].__setitem__(1, "7"),
        "line 5, column `ink`: the label is `7`; allowed: 0 or 1",
    ),
    "no value": (lambda rows: rows[3].__setitem__(2, ""), "line 5, column `even`: the target is missing"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_rows_that_do_not_fit_are_rejected_with_their_line(tmp_path: Path, change: Any, said: str) -> None:
    written(tmp_path, "file", "ink", "even")
    rows = rows_of("file", "ink", "even")
    change(rows)
    table(tmp_path, rows, ("file", "ink", "even"))
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"file": "name"}, r"labels.csv: has no column `name` \(data.params.file\)"),
        ({"table": "none.csv"}, r"none.csv: there is no such file \(data.params.table\)"),
        ({"path": "labels.csv"}, r"labels.csv: is a file, not a folder \(data.params.path\)"),
    ],
)
def test_settings_that_do_not_fit_are_rejected(tmp_path: Path, params: dict[str, Any], said: str) -> None:
    written(tmp_path, "file", "ink", "even")
    with pytest.raises(DataError, match=said):
        opened(tmp_path, **params)


def test_images_without_a_row_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, "file", "ink", "even")
    table(tmp_path, rows_of("file", "ink", "even")[:20], ("file", "ink", "even"))
    assert len(opened(tmp_path).targets["train"]) == 20
    assert "10 of 30 images are in no row of" in caplog.text

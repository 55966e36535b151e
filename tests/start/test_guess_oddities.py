"""Data as people have it: missing values in many spellings, doubtful targets, images with a table, damaged files."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from workflow_lib import config
from workflow_lib.errors import DataError
from workflow_lib.plugins import column_descriptions
from workflow_lib.start import Guess, first_experiment, guess

ROWS = 40


def table(path: Path, **columns: Any) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    return path


def image(path: Path, value: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path, **options)


def described(made: Guess, folder: Path) -> str:
    """Return the lines on the columns that the experiment file of a guess gives, as `everstep plan` shows them."""
    (folder / "guessed.yaml").write_text(first_experiment("guessed", made))
    data = config.load([folder / "guessed.yaml"]).data
    return "\n".join(column_descriptions(data.name, data.params, folder))


@pytest.mark.parametrize("text", ["n/a", "#N/A", "NULL", "<NA>", "None", "-", "--", "?", ".", "unknown", "\\N"])
def test_a_text_among_numbers_that_means_missing_is_written_into_the_settings(tmp_path: Path, text: str) -> None:
    made = guess(table(tmp_path / "a.csv", x=[text, *range(ROWS - 1)], z=["u", "v"] * 20, y=["no", "yes"] * 20))
    assert f"read as missing values: {text!r}" in made.found
    assert f"column 'x' lacks 1 of {ROWS} values" in made.odd
    assert f"`x`: number, 0 to {ROWS - 2}, some missing" in described(made, tmp_path)


def test_names_are_missing_only_as_pandas_reads_them_and_none_is_a_name(tmp_path: Path) -> None:
    names = ["n/a", "None", "-", "unknown"] * 10
    made = guess(table(tmp_path / "a.csv", garage=names, x=range(ROWS), y=["no", "yes"] * 20))
    assert "read as missing values: 'n/a'" in made.found
    assert "`garage`: category, 3 different (-, None, unknown), some missing" in described(made, tmp_path)


def test_a_text_that_is_no_sign_of_a_missing_value_is_left_to_the_user(tmp_path: Path) -> None:
    made = guess(
        table(tmp_path / "a.csv", x=["n.d.", "?", 1, 2] * 10, z=[i / 7 for i in range(ROWS)], y=["no", "yes"] * 20)
    )
    assert "missing" not in made.data["params"]
    assert any("`n.d.` in line 2 is not; list the column" in line for line in made.odd)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [-999.0] * 4 + [i / 7 for i in range(36)], "y": ["no", "yes"] * 20}, "column 'x': -999 is far from all"),
        (
            {"x": [i / 7 for i in range(ROWS)], "a": [0, 1] * 20, "b": [0, 0, 1, 1] * 10},
            "last columns (a, b) have only",
        ),
        ({"x": [i / 7 for i in range(200)], "label": [i % 50 for i in range(200)]}, "'label' has 50 different whole"),
        (
            {"x": [i / 7 for i in range(ROWS)], "label": ["red;big", "red;small", "blue;big", "blue"] * 10},
            "'label' seems to have several labels in a value ('red;big')",
        ),
    ],
)
def test_columns_that_may_mean_something_else_are_doubts(tmp_path: Path, columns: Any, said: str) -> None:
    assert any(said in line for line in guess(table(tmp_path / "a.csv", **columns)).odd)
    plain = table(tmp_path / "b.csv", x=[i / 7 for i in range(ROWS)], y=["red", "blue"] * 20)
    assert guess(plain).odd == []


def test_the_first_of_several_sheets_is_used(tmp_path: Path) -> None:
    with pd.ExcelWriter(tmp_path / "a.xlsx") as book:
        for name in ("first", "second"):
            pd.DataFrame({f"{name} x": np.arange(ROWS) / 7, "y": ["no", "yes"] * 20}).to_excel(
                book, sheet_name=name, index=False
            )
    made = guess(tmp_path / "a.xlsx")
    assert "2 sheets: first, second; the first one is used" in made.odd
    assert "`first x`: number" in described(made, tmp_path)


def test_a_table_beside_images_names_them(tmp_path: Path) -> None:
    for number in range(ROWS):
        image(tmp_path / "train" / f"{number:04}.png")
    table(
        tmp_path / "train.csv",
        image_id=[f"{n:04}" for n in range(1, ROWS + 1)],
        kind=["a", "b"] * 20,
        seen=[f"{n:04}" for n in range(ROWS)],
    )
    table(tmp_path / "prices.csv", x=[0.5, 1.5], y=[1, 2])
    table(tmp_path / "few.csv", image_id=["0001", "0002"], kind=["a", "b"])
    params = guess(tmp_path).data["params"]
    assert (params["path"], params["table"]) == (str(tmp_path / "train"), str(tmp_path / "train.csv"))
    assert (params["file"], params["target"]) == ("image_id", "seen")
    odd = guess(tmp_path).odd
    assert f"1 image without a row, such as {tmp_path}/train/0000.png: left out" in odd
    assert f"to correct: 1 row without an image, such as {ROWS:04}" in odd
    assert any(line.startswith("2 other tables, such as") for line in odd)


def test_columns_of_0_and_1_beside_images_are_labels(tmp_path: Path) -> None:
    for number in range(ROWS):
        image(tmp_path / f"{number}.jpg")
    table(tmp_path / "a.csv", file=[f"{n}.jpg" for n in range(ROWS)], red=[0, 1] * 20, big=[0, 0, 1, 1] * 10)
    params = guess(tmp_path).data["params"]
    assert (params["task"], params["target"], params["file"]) == ("multilabel", ["red", "big"], "file")


def test_all_damaged_images_are_named_and_other_files_beside_the_classes_do_not_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(12):
            image(tmp_path / name / f"{number:02}.png")
    for number in range(11):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(b"")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "a" / "._00.png").write_bytes(b"")
    made = guess(tmp_path)
    assert "2 classes: a 12, b 12" in made.found
    (line,) = (line for line in made.odd if line.startswith("to correct"))
    assert "a/00.png: not a readable PNG" in line
    others = ", ".join(f"{number:02}.png" for number in range(1, 10))
    assert f"; 11 of 24 files cannot be used, also {others}, ... in {tmp_path}/a" in line


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["images/1.png", "annotations/a.json"], "`images` and `annotations` look like images and their annotations"),
        (["a/1.png", "b/1.png", "none/"], "no images of none: fill the folder, or remove it"),
    ],
)
def test_what_the_reader_rejects_is_to_be_corrected(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        folder, _, file = name.rpartition("/")
        (tmp_path / folder).mkdir(exist_ok=True)
        if file.endswith("png"):
            image(tmp_path / name)
        elif file:
            (tmp_path / name).write_text("{}")
    assert any(line.startswith("to correct: ") and said in line for line in guess(tmp_path).odd)


def test_masks_in_the_folders_of_splits_are_rejected(tmp_path: Path) -> None:
    for name in ("train/images/1.png", "train/masks/1.png"):
        image(tmp_path / name)
    with pytest.raises(
        DataError, match=r"images and masks in train; put the splits into .*/images/train and .*/masks/"
    ):
        guess(tmp_path)


def test_an_npz_file_with_other_names_comes_with_the_code_that_renames_them(tmp_path: Path) -> None:
    arrays = {"x_train": np.zeros((40, 16, 16, 3), np.uint8), "y_train": np.arange(40) % 2}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    with pytest.raises(DataError, match="needed: train_images") as rejected:
        guess(tmp_path / "a.npz")
    exec(str(rejected.value).partition("rename them: ")[2], {"numpy": np})
    assert "40 train, 40 test" in guess(tmp_path / "a-renamed.npz").found


def test_arrays_too_flat_for_a_cnn_get_another_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros((40, 3, 50), np.float32), train_labels=np.arange(40) % 2)
    assert guess(tmp_path / "a.npz").settings["model"] == {"name": "mlp"}


@pytest.mark.parametrize("address", ["https://example.org/a.csv", "s3://bucket/a"])
def test_an_address_is_to_be_downloaded(address: str) -> None:
    with pytest.raises(DataError, match=f"{re.escape(address)}: is an address; download"):
        guess(Path(address))


def test_a_text_of_equal_lines_may_be_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x|y\n" + "1|2\n" * 50)
    assert any("as many '|' as the others: if it is a table" in line for line in guess(tmp_path / "a.txt").odd)

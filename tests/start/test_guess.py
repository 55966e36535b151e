import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workflow_lib import config
from workflow_lib.errors import DataError, UserError
from workflow_lib.plugins import column_descriptions
from workflow_lib.start import Guess, first_experiment, guess, new_project


def write_table(path: Path, heading: list[str], rows: list[list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([heading, *rows])
    return path


def loaded(found: Guess, folder: Path) -> config.Experiment:
    """Return the experiment that the guess makes, as Everstep reads it."""
    (folder / "Snakefile").touch()
    file = folder / "guessed.yaml"
    file.write_text(first_experiment("guessed", found))
    assert len(file.read_text().splitlines()) <= 30
    return config.load([file])


def test_a_table_of_another_country_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        [i, "abc"[i % 3], f"{i * 1.5:.1f}".replace(".", ","), "", f"{i * i / 7:.2f}".replace(".", ",")]
        for i in range(50)
    ]
    found = guess(write_table(tmp_path / "houses.csv", ["id", "town", "size", "empty", "price"], rows, ";"))
    params = loaded(found, tmp_path).data.params
    assert (params["target"], params["task"]) == ("price", "regression")
    assert (params["delimiter"], params["decimal"], params["features"]) == (";", ",", ["town", "size"])
    assert "column 'empty' has one value only; left out" in found.odd
    assert any(line.startswith("column 'id' differs in each row") for line in found.odd)


def test_a_guess_passes_the_checks_of_the_reader(tmp_path: Path) -> None:
    rows = [
        [
            i,
            f"2024-01-{i % 20 + 1:02}",
            f"0{1000 + i % 7}",
            ("yes", "Yes", "no")[i % 3],
            f"{i * 1.5:.1f}".replace(".", ","),
            "5 %" if i == 9 else i % 4,
            f"{i % 30}.339,48" if i % 30 else "339,48",
        ]
        for i in range(60)
    ]
    heading = ["", "when", "zip", "sold", "size", "rate", "price"]
    found = guess(write_table(tmp_path / "houses.csv", heading, rows, ";"))
    params = loaded(found, tmp_path).data.params
    assert (params["decimal"], params["thousands"], params["task"]) == (",", ".", "regression")
    assert params["features"] == ["zip", "sold", "size"]
    assert column_descriptions("table", params, tmp_path)
    for odd in (
        "left out: column '' has no name",
        "left out: column `when`: `2024-01-01` in line 2 is not a number here, but `2024-01-01` looks like a date",
        "left out: line 11, column `rate`: `5 %` is not a number, but `0` in line 2 is",
        "column `zip`: `01000` in line 2 is read as a number; list it in data.params.categorical",
        "column `sold`: `yes` and `Yes` are two categories",
    ):
        assert any(line.startswith(odd) for line in found.odd), odd


@pytest.mark.parametrize(
    ("delimiter", "value", "marks"),
    [
        (",", "1,234", (".", ",")),
        (";", "1,234", (",", None)),
        (";", "1 234.5", (".", " ")),
        (",", "1234.5", (".", None)),
    ],
)
def test_marks_of_numbers_are_guessed_and_doubts_told(
    tmp_path: Path, delimiter: str, value: str, marks: tuple[str, str | None]
) -> None:
    rows = [[f"{i % 7 + 1}{value[1:]}", i % 2] for i in range(20)]
    found = guess(write_table(tmp_path / "a.csv", ["x", "y"], rows, delimiter))
    params = loaded(found, tmp_path).data.params
    assert (params["decimal"], params["thousands"]) == marks
    assert any(line.startswith("numbers can be read in two ways") for line in found.odd) == (value == "1,234")


def test_a_table_without_a_usable_column_gives_one_message(tmp_path: Path) -> None:
    rows = [[f"{i % 5}:30", i % 2] for i in range(20)]
    with pytest.raises(DataError, match="no column to predict 'y' from: .*looks like a date or a time"):
        guess(write_table(tmp_path / "a.csv", ["at", "y"], rows))


def test_a_row_that_lacks_a_value_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,kind\n1,2,a\n1,2\n")
    with pytest.raises(DataError, match="line 3"):
        guess(tmp_path / "a.csv")


def test_a_first_line_of_numbers_is_a_doubt(tmp_path: Path) -> None:
    rows = [[i / 7, i * i / 3, i % 2] for i in range(40)]
    assert any(
        "if it is a row" in line for line in guess(write_table(tmp_path / "a.csv", ["0.5", "1.2", "0"], rows)).odd
    )
    years = guess(write_table(tmp_path / "b.csv", ["2019", "town", "class"], rows))
    assert not any("if it is a row" in line for line in years.odd)


def test_classes_are_counted_and_rare_ones_are_odd(tmp_path: Path) -> None:
    rows = [[i / 7, "rare" if i == 0 else "often", ("train", "val", "test")[i % 3]] for i in range(60)]
    found = guess(write_table(tmp_path / "a.csv", ["x", "kind", "part"], [[a, c, b] for a, b, c in rows]))
    assert found.data["params"]["split"] == "kind"
    found = guess(write_table(tmp_path / "b.csv", ["x", "class", "part"], rows))
    params = loaded(found, tmp_path).data.params
    assert (params["target"], params["task"], params["split"]) == ("class", "classification", "part")
    assert "2 classes: often 59, rare 1" in found.found
    assert any(line.startswith("fewer than 10 samples: rare") for line in found.odd)


def test_a_column_of_sentences_is_a_text_with_a_class(tmp_path: Path) -> None:
    rows = [[f"this is the {i}th of many sentences", "good" if i % 2 else "bad"] for i in range(40)]
    experiment = loaded(guess(write_table(tmp_path / "r.csv", ["review", "grade"], rows)), tmp_path)
    assert (experiment.data.name, experiment.data.params["text"]) == ("labelled_text", "review")
    assert experiment.training.batch_size == 4


def test_folders_of_images_have_a_size_colours_and_damaged_files(tmp_path: Path) -> None:
    for name, side in (("rose", 41), ("tulip", 53)):
        folder = tmp_path / "flowers" / name
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("L", (60, side)).save(folder / f"{number}.png")
    (tmp_path / "flowers" / "rose" / "broken.png").write_bytes(b"no image")
    found = guess(tmp_path / "flowers")
    experiment = loaded(found, tmp_path)
    assert (experiment.data.name, experiment.data.params["size"], experiment.data.params["channels"]) == (
        "image_folder", 48, "grey",
    )  # fmt: skip
    assert "2 classes: rose 13, tulip 12" in found.found
    assert any("to correct: " in line and "broken.png: not a readable PNG" in line for line in found.odd)
    assert any("different sizes, from 41 x 60 to 53 x 60" in line for line in found.odd)


@pytest.mark.parametrize(
    ("arrays", "task", "model"),
    [
        ({"train_labels": np.arange(40) % 2}, None, "cnn"),
        ({"train_labels": np.ones((40, 3), np.uint8)}, "multilabel", "cnn"),
        ({"train_masks": np.zeros((40, 16, 16), np.uint8)}, "segmentation", "unet"),
    ],
)
def test_an_npz_file_tells_its_task(tmp_path: Path, arrays: dict[str, Any], task: str | None, model: str) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros((40, 16, 16), np.uint8), **arrays)
    found = guess(tmp_path / "a.npz")
    assert (found.data["params"].get("task"), found.settings["model"]["name"]) == (task, model)
    assert loaded(found, tmp_path).training.batch_size == 4


def test_texts_without_classes_are_a_language(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("once upon a time")
    found = guess(tmp_path / "books")
    assert loaded(found, tmp_path).data.params["pattern"] == "*.txt"
    assert any("too little" in line for line in found.odd)


@pytest.mark.parametrize(
    ("name", "content"), [("a.xyz", b"1"), ("a.csv", b"only\n1\n"), ("a.npz", b"1"), ("a.csv", b"\xff\xfe")]
)
def test_what_cannot_be_guessed_gives_one_message(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: "):
        guess(tmp_path / name)
    with pytest.raises(DataError, match="no such file or folder"):
        guess(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.zip", "unpack it: `unzip {}/a.zip -d {}/a`"),
        ("b.tar.gz", "unpack it: `tar -xf {}/b.tar.gz`"),
        ("c.parquet.gz", "decompress it: `gunzip {}/c.parquet.gz`"),
        ("d.jsonl", 'pandas.read_json("{}/d.jsonl", lines=True).to_csv("{}/d.csv", index=False)'),
        ("e.npy", 'numpy.load("{}/e.npy") gives the array for numpy.savez("{}/e.npz", train_images=...'),
        ("F.MAT", 'scipy.io.loadmat("{}/F.MAT")'),
        ("g.hdf5", 'h5py.File("{}/g.hdf5")'),
        ("h.png", "give the folder of the images"),
    ],
)
def test_a_file_of_another_kind_is_answered_with_a_way_to_convert_it(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    for path in (tmp_path / name, *([tmp_path] if name != "h.png" else [])):
        with pytest.raises(DataError, match="; allowed: ") as rejected:
            guess(path)
        assert said.replace("{}", str(tmp_path)) in str(rejected.value)


def test_a_name_of_a_project_is_written_in_ascii(tmp_path: Path) -> None:
    for name, written in (("Projekt_Ö", "projekt_oe"), ("Café ßtraße", "cafe-sstrasse"), ("データ", "mine")):
        assert f"name: {written}\n" in first_experiment(name), name


def test_equal_numbers_in_the_first_line_are_no_names_to_change(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0.1,0.1,1\n0.2,0.3,0\n")
    with pytest.raises(DataError, match="must name the columns, but has numbers"):
        guess(tmp_path / "a.csv")


@pytest.mark.parametrize(("at", "found"), [("data/all", "data/all"), ("data", "data"), ("train", ".")])
def test_the_folder_of_the_classes_is_found(tmp_path: Path, at: str, found: str) -> None:
    for name in ("a", "b"):
        (tmp_path / at / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / at / name / "1.png")
    made = guess(tmp_path)
    assert made.data["params"]["path"] == str(tmp_path / found)
    assert "2 classes: a 1, b 1" in made.found


def test_equal_folders_in_the_classes_are_a_doubt(tmp_path: Path) -> None:
    for part in ("2024/a", "2024/b", "2025/a", "2025/b"):
        (tmp_path / part).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / part / "1.png")
    assert any("same sub-folders (a, b)" in line for line in guess(tmp_path).odd)


def test_a_new_project_is_small_and_overwrites_nothing(tmp_path: Path) -> None:
    files = new_project(tmp_path / "mine")
    assert {path.name for path in files} == {"Snakefile", "config.yaml", ".gitignore"}
    assert len((tmp_path / "mine" / "config" / "config.yaml").read_text().splitlines()) <= 15
    with pytest.raises(UserError, match="not an empty folder"):
        new_project(tmp_path / "mine")

"""Predictions for files that a model has not seen, by a run and by its exported model."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import workflow_lib
from tests.predict.conftest import folder_of
from tests.support.repository import ROOT
from tests.support.trained import Trained
from workflow_lib import data
from workflow_lib.cli.entry import main
from workflow_lib.errors import UserError
from workflow_lib.files import read_json


def everstep(*arguments: object) -> int:
    """Run the command in this process, without leaving its log handler behind."""
    package = logging.getLogger("workflow_lib")
    before, level = package.handlers[:], package.level
    try:
        return main([str(argument) for argument in arguments])
    finally:
        package.handlers[:] = before
        package.setLevel(level)


# Models


def test_a_run_is_found_by_its_id_its_digits_its_folder_and_its_statement(numbers: Trained) -> None:
    run, folder = numbers.runs[0], folder_of(numbers)
    digits = run.rpartition("-")[2]
    tables = [
        workflow_lib.predict(ref, "houses.csv") for ref in (run, digits, digits[:6], folder, folder / "train.json")
    ]
    for table in tables[1:]:
        pandas.testing.assert_frame_equal(table, tables[0])


def test_predictions_do_not_depend_on_the_size_of_the_batch(numbers: Trained) -> None:
    small, large = (workflow_lib.predict(numbers.runs[0], "houses.csv", batch_size=size) for size in (7, 1000))
    pandas.testing.assert_frame_equal(small, large, rtol=1e-6)
    assert small["row"].tolist() == list(range(300))


def test_an_exported_model_predicts_the_same_without_the_project(
    numbers: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv")
    shutil.copy(folder_of(numbers) / "model.onnx", tmp_path / "model.onnx")
    shutil.copy("houses.csv", tmp_path / "new.csv")
    monkeypatch.chdir(tmp_path)
    pandas.testing.assert_frame_equal(workflow_lib.predict("model.onnx", "new.csv"), expected, rtol=1e-5)


def test_exported_classes_and_texts_are_the_same_too(images: Trained, trained_text: Trained) -> None:
    manifest = data.Manifest.load(images.data)
    np.save("new.npy", data.map_split(manifest, "test", images.work).stored(slice(0, 40)))
    tables = [workflow_lib.predict(ref, "new.npy") for ref in (images.runs[0], folder_of(images) / "model.onnx")]
    pandas.testing.assert_frame_equal(tables[1], tables[0], atol=1e-4)
    assert list(tables[0].columns) == ["row", "predicted", *(f"p({digit})" for digit in range(10))]
    os.chdir(trained_text.root)
    tables = [
        workflow_lib.predict(ref, "rhyme.txt") for ref in (trained_text.runs[0], folder_of(trained_text) / "model.onnx")
    ]
    pandas.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-3)


def test_an_unknown_run_is_refused_with_what_is_allowed(numbers: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert everstep("predict", "abcdef", "houses.csv", "--output", "x.csv") == 2
    assert "no trained run in results has this id; allowed: the id of a run" in capsys.readouterr().err
    assert not Path("x.csv").exists()


def test_ambiguous_digits_are_refused(numbers: Trained, tmp_path: Path) -> None:
    shutil.copytree("results", tmp_path / "results")
    statements = sorted((tmp_path / "results").glob("*/runs/*/train.json"))
    digests = [read_json(path)["digest"] for path in statements]
    assert len(set(digests)) == 2
    for path, digest in zip(statements, digests, strict=True):
        path.write_text(path.read_text().replace(digest, "abcd" + digest[4:]))
    from workflow_lib.results.references import find_run

    with pytest.raises(UserError, match="abcd: 2 runs in .* have this name"):
        find_run("abcd", tmp_path / "results")


def test_damaged_weights_and_a_replaced_export_are_not_used(numbers: Trained, tmp_path: Path) -> None:
    folder = folder_of(numbers)
    copy = tmp_path / "model.onnx"
    shutil.copy(folder / "export.json", tmp_path)
    copy.write_bytes((folder / "model.onnx").read_bytes() + b" ")
    with pytest.raises(UserError, match="it is not the file that .*export.json describes"):
        workflow_lib.predict(copy, "houses.csv")
    copy.rename(tmp_path / "other.onnx")
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a model that onnxruntime can load"):
        workflow_lib.predict(tmp_path / "other.onnx", "houses.csv")


def test_damaged_weights_are_restored_before_they_predict(numbers: Trained) -> None:
    weights = folder_of(numbers) / "model.safetensors"
    before, expected = weights.read_bytes(), workflow_lib.predict(numbers.runs[0], "houses.csv")
    weights.write_bytes(before[:-8] + b"\0" * 8)
    pandas.testing.assert_frame_equal(workflow_lib.predict(numbers.runs[0], "houses.csv"), expected)
    assert weights.read_bytes() == before


def test_predictions_need_no_shards(numbers: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv")
    shutil.copytree(numbers.root, tmp_path / "copy", ignore=shutil.ignore_patterns("data-*", "*-000*"))
    shutil.rmtree(tmp_path / "copy" / "work" / "data")
    monkeypatch.chdir(tmp_path / "copy")
    pandas.testing.assert_frame_equal(workflow_lib.predict(numbers.runs[0], "houses.csv"), expected)


# Tables


def changed(name: str, **columns: object) -> str:
    """Write a copy of the table with other columns; None removes one."""
    frame = pandas.read_csv("houses.csv", dtype=str, keep_default_na=False)
    for column, values in columns.items():
        if values is None:
            frame = frame.drop(columns=column)
        else:
            frame[column] = values
    frame.to_csv(name, index=False)
    return name


def test_a_data_frame_is_predicted_as_its_file(numbers: Trained) -> None:
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv")
    frame = pandas.read_csv("houses.csv")[["kind", "age", "area"]].set_index(np.arange(300) + 7)
    for model in (numbers.runs[0], folder_of(numbers) / "model.onnx"):
        found = workflow_lib.predict(model, frame)
        assert found.index.tolist() == frame.index.tolist()
        np.testing.assert_allclose(found["predicted"], expected["predicted"], rtol=1e-5)
        empty = [workflow_lib.predict(model, frame.assign(age=missing)) for missing in (None, np.nan)]
        pandas.testing.assert_frame_equal(*empty)
    with pytest.raises(UserError, match="^the DataFrame: has no column `kind`"):
        workflow_lib.predict(numbers.runs[0], frame.drop(columns="kind"))
    with pytest.raises(UserError, match="the DataFrame cannot be written as Parquet"):
        workflow_lib.predict(numbers.runs[0], frame.assign(kind=[object()] * 300))


def test_an_array_is_predicted_as_its_file(images: Trained) -> None:
    manifest = data.Manifest.load(images.data)
    array = data.map_split(manifest, "test", images.work).stored(slice(0, 40))
    np.save("array.npy", array)
    found = workflow_lib.predict(images.runs[0], array)
    pandas.testing.assert_frame_equal(found, workflow_lib.predict(images.runs[0], "array.npy"))
    with pytest.raises(UserError, match="^the array: row 0: is float64; the model was trained on uint8"):
        workflow_lib.predict(images.runs[0], array.astype("float64"))
    with pytest.raises(UserError, match="^the array cannot be written as a .npy file: "):
        workflow_lib.predict(images.runs[0], np.array([object()]))


def test_the_target_and_the_order_of_columns_do_not_matter(numbers: Trained) -> None:
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv")
    frame = pandas.read_csv("houses.csv")[["age", "kind", "area"]].assign(more="x")
    frame.to_parquet("other.parquet")
    pandas.testing.assert_frame_equal(workflow_lib.predict(numbers.runs[0], "other.parquet"), expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": None}, r"has no column `kind`, from which the model predicts \(it needs: area, kind, age\)"),
        (
            {"kind": None, "age": None, "price": None, "area": "1;2"},
            "its only column is `area`: it must have the delimiter",
        ),
        ({"age": "old"}, r"line 2, column `age`: `old` is not a number, as all values were in the training"),
        ({"area": "1e+99"}, r"line 2, column `area`: 1e\+99 is too large"),
    ],
)
def test_a_table_that_does_not_fit_is_rejected_with_its_place(numbers: Trained, columns: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        workflow_lib.predict(numbers.runs[0], changed("changed.csv", **columns))


def test_an_unknown_category_is_told_and_read_as_in_the_training(
    numbers: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    path = changed("changed.csv", kind="castle")
    tables = [workflow_lib.predict(ref, path) for ref in (numbers.runs[0], folder_of(numbers) / "model.onnx")]
    assert "column `kind`: 300 rows have categories that train did not have, such as `castle`" in caplog.text
    pandas.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-5)


def test_missing_numbers_of_a_column_that_had_none_are_told(numbers: Trained, caplog: pytest.LogCaptureFixture) -> None:
    path = changed("changed.csv", area="", kind="")
    tables = [workflow_lib.predict(ref, path) for ref in (numbers.runs[0], folder_of(numbers) / "model.onnx")]
    assert "column `area`: 300 numbers are missing, but none was in the training: its mean is used" in caplog.text
    pandas.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-5)


# Other data


def test_an_array_of_another_type_or_shape_is_rejected(images: Trained) -> None:
    for array, message in (
        (np.zeros((3, 1, 8, 8), np.float32), "row 0: is float32; the model was trained on uint8"),
        (np.zeros((3, 1, 9, 8), np.uint8), r"row 0: is of shape \(1, 9, 8\); the model was trained on \(1, 8, 8\)"),
        (np.zeros((0, 1, 8, 8), np.uint8), "has no samples"),
    ):
        np.save("bad.npy", array)
        with pytest.raises(UserError, match=message):
            workflow_lib.predict(images.runs[0], "bad.npy")
    with pytest.raises(UserError, match=r"has no `open_inputs`, so samples are read from a .npy file: uint8 of shape"):
        workflow_lib.predict(images.runs[0], "experiment.yaml")


def test_a_text_is_predicted_passage_by_passage_and_short_ones_too(text: Trained) -> None:
    Path("texts").mkdir(exist_ok=True)
    Path("texts/a.txt").write_text("the cat sat on the mat & the rat")
    Path("texts/b.txt").write_text("t")
    table = workflow_lib.predict(text.runs[0], "texts")
    assert table[["file", "token", "tokens"]].values.tolist() == [["a.txt", 0, 16], ["a.txt", 16, 16], ["b.txt", 0, 1]]
    np.testing.assert_allclose(np.exp(table["loss"]), table["perplexity"])
    Path("texts/b.txt").write_text("")
    with pytest.raises(UserError, match="b.txt: is empty"):
        workflow_lib.predict(text.runs[0], "texts")
    Path("texts/b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="b.txt: has the byte 0xFF"):
        workflow_lib.predict(text.runs[0], "texts")


# Output


def test_csv_parquet_and_excel_hold_the_same_predictions(numbers: Trained) -> None:
    for name in ("out.csv", "deep/out.parquet", "out.xlsx"):
        assert everstep("predict", numbers.runs[0], "houses.csv", "--output", name, "--batch-size", 64) == 0
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv", batch_size=64)
    pandas.testing.assert_frame_equal(pandas.read_csv("out.csv"), expected, check_exact=True)
    pandas.testing.assert_frame_equal(pandas.read_parquet("deep/out.parquet"), expected, check_exact=True)
    pandas.testing.assert_frame_equal(pandas.read_excel("out.xlsx"), expected, check_exact=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["houses.csv", "--output", "x.json"],
            "--output x.json: allowed: a name that ends with .csv, .parquet or .xlsx",
        ),
        (["houses.csv", "--output", "houses.csv"], "--output houses.csv: is the data, which is not overwritten"),
        (["houses.csv", "--output", "houses.csv/x.csv"], "--output houses.csv/x.csv: no file can be written in "),
        (["none.csv", "--output", "x.csv"], "none.csv: there is no such file or folder"),
        (["houses.csv", "--output", "x.csv", "--batch-size", "0"], "--batch-size 0: allowed: 1 and more"),
        (["houses.csv", "--output", "x.csv", "--device", "tpu"], "--device: 'tpu' is not allowed; allowed: "),
    ],
)
def test_wrong_arguments_are_mistakes_of_the_user(
    numbers: Trained, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert everstep("predict", numbers.runs[0], *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.csv").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_prediction_leaves_no_file(numbers: Trained, tmp_path: Path, how: signal.Signals) -> None:
    """The data is a pipe-like file that never ends: the process is killed after it wrote its first rows."""
    lines = Path("houses.csv").read_text().splitlines()
    data_file = tmp_path / "long.csv"
    data_file.write_text("\n".join([lines[0], *lines[1:] * 2000]) + "\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p.csv").write_text("old")
    command = [sys.executable, "-m", "workflow_lib", "predict", numbers.runs[0], str(data_file), "--batch-size", "16"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out" / "p.csv")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    written = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None and not any(size_of(link) > 10_000 for link in written.iterdir()):
        pass
    process.send_signal(how)
    assert process.wait(60) != 0
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("p.csv", "old")]


def size_of(link: Path) -> int:
    """Return the size of an open file of a process that has no name; 0 for others."""
    try:
        return link.stat().st_size if "(deleted)" in os.readlink(link) and "/out/" in os.readlink(link) else 0
    except OSError:
        return 0


def test_predictions_have_no_more_rows_than_samples(numbers: Trained) -> None:
    everstep("predict", numbers.runs[0], "houses.csv", "--output", "out.csv")
    with Path("out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "predicted"]
    assert [int(row[0]) for row in rows] == list(range(300))


def test_the_names_of_the_evaluation_lead_to_the_same_predictions(numbers: Trained) -> None:
    """The rows of the test split, taken from the table by their names in predictions.csv, are predicted as there."""
    evaluated = pandas.read_csv(folder_of(numbers) / "predictions.csv")
    assert list(evaluated.columns) == ["row", "sample", "target", "predicted"]
    prices = pandas.read_csv("houses.csv")["price"]
    np.testing.assert_allclose(evaluated["target"], prices[evaluated["row"]], rtol=1e-6)
    table = workflow_lib.predict(numbers.runs[0], "houses.csv").set_index("row")
    np.testing.assert_allclose(table.loc[evaluated["row"], "predicted"], evaluated["predicted"], rtol=1e-6)

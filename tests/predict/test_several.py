"""Several targets of a table have their names in evaluation, report and predictions."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pandas
import pytest
from PIL import Image
from safetensors.numpy import load_file

import workflow_lib
from tests.predict.conftest import folder_of
from tests.support.trained import train, with_results
from workflow_lib.errors import UserError
from workflow_lib.files import read_json
from workflow_lib.prediction import write_predictions
from workflow_lib.prediction.masks import write_masks


def test_several_numbers_have_their_names_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = with_results(tmp_path, "several", monkeypatch)
    folder = folder_of(project)
    assert [row["target"] for row in read_json(folder / "evaluation.json")["per_target"]] == ["price", "area"]
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    assert header[-4:] == ["target(price)", "predicted(price)", "target(area)", "predicted(area)"]
    page = (project.results / "report.html").read_text(encoding="utf-8")
    assert "Predicted against true of price" in page
    assert '<th scope="row" class="n">area</th>' in page
    first = re.search(r"<li><b>price ([\d,]+), area (\d+)</b> <span", page)  # of the samples of the training split
    assert first
    assert f"\n{first[2]}," in Path("houses.csv").read_text(encoding="utf-8")
    assert f",{first[1].replace(',', '')}\n" in Path("houses.csv").read_text(encoding="utf-8")
    os.rename("houses.csv", "with.csv")
    pandas.read_csv("with.csv").drop(columns=["price", "area"]).to_csv("new.csv", index=False)
    tables = [workflow_lib.predict(model, "new.csv") for model in (project.runs[0], folder / "model.onnx")]
    assert list(tables[0].columns) == ["row", "predicted(price)", "predicted(area)"]
    assert tables[0]["predicted(price)"].between(200_000, 500_000).mean() > 0.9  # each in its own units
    assert tables[0]["predicted(area)"].between(0, 300).all()
    pandas.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-4)


def test_labels_of_a_table_are_predicted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = with_results(tmp_path, "labels", monkeypatch)
    evaluation = read_json(folder_of(project) / "evaluation.json")
    assert [row["label"] for row in evaluation["per_label"]] == ["large", "dear"]
    table = workflow_lib.predict(project.runs[0], "houses.csv")
    assert list(table.columns) == ["row", "predicted", "p(large)", "p(dear)"]
    assert set(table["predicted"]) <= {"", "large", "dear", "large;dear"}


def test_adapters_are_used_from_the_texts_to_the_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    tokenizers = pytest.importorskip("tokenizers")
    project = with_results(tmp_path, "adapters", monkeypatch)
    folder = folder_of(project)
    assert read_json(folder / "evaluation.json")["metrics"]["accuracy"]["value"] == 1
    saved = load_file(folder / "model.safetensors").keys()
    assert "bert.embeddings.word_embeddings.weight" not in saved  # frozen
    assert any("lora_A" in name for name in saved)
    assert "<b>up</b> <code>film very" in (project.results / "report.html").read_text(encoding="utf-8")
    Path("new.csv").write_text("text\nfilm very good\nplay very bad\n")
    tables = [workflow_lib.predict(model, "new.csv") for model in (project.runs[0], folder / "model.onnx")]
    assert tables[0]["predicted"].tolist() == ["up", "down"]
    pandas.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-3)
    # the graph takes the numbers of the tokenizer, in which 1 fills texts
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    described = json.loads(session.get_modelmeta().custom_metadata_map["everstep.inputs"])
    tokenizer = tokenizers.Tokenizer.from_file("bert/tokenizer.json")
    tokenizer.enable_padding(pad_id=described["filling"], length=described["most"])
    tokens = np.array([tokenizer.encode(text).ids for text in ("film very good", "play very bad")])
    _, probabilities = session.run(None, {"tokens": tokens})
    np.testing.assert_allclose(probabilities, tables[1][["p(down)", "p(up)"]], rtol=1e-5)


def test_masks_are_files_beside_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = train(tmp_path, task="masks")
    monkeypatch.chdir(tmp_path)
    write_predictions(project.runs[0], Path("photos"), tmp_path / "new.csv", batch_size=7)
    table = pandas.read_csv("new.csv")
    assert list(table.columns) == ["file", "mask", "share(dark)", "share(bright)"]
    assert table["mask"].tolist() == [f"{file}.png" for file in table["file"]]
    for row in table.itertuples():
        pixels = np.array(Image.open(tmp_path / "new_masks" / row.mask))
        assert pixels.shape == (8, 8)
        assert (pixels == 1).mean() == row[4]
        assert set(np.unique(pixels)) <= {0, 1}


def test_a_mask_is_not_written_outside_of_its_folder(tmp_path: Path) -> None:
    masks = np.zeros((1, 2, 2), np.uint8)
    assert write_masks(tmp_path / "masks", {"key": ["test"], "row": [3]}, masks) == ["test-3.png"]
    for name in ("../out", "/out", "a/../../out"):
        with pytest.raises(UserError, match="leads out of"):
            write_masks(tmp_path / "masks", {"file": [name]}, masks)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["test-3.png"]

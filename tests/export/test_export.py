"""Export of a trained run. The first graph of a process takes five seconds: the exporter compiles its operators."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.support.trained import Trained, train
from workflow_lib import data, evaluation, export, plugins
from workflow_lib.config.experiment import Export
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.export import raw
from workflow_lib.export.comparison import compared
from workflow_lib.export.metadata import manifest_of as manifest_in
from workflow_lib.files import read_json

TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained, and its first run evaluated."""
    project = train(tmp_path_factory.mktemp("project"))
    folder = folder_of(project)
    evaluation.evaluate(
        project.experiment,
        run=project.runs[0],
        data=project.data,
        work=project.work,
        model=folder / "model.safetensors",
        output=folder / "evaluation.json",
    )
    return project


@pytest.fixture(scope="module")
def exported(project: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an exported model."""
    folder = tmp_path_factory.mktemp("exported")
    export_run(project, folder / "export.json")
    return folder


def folder_of(project: Trained) -> Path:
    return project.results / "runs" / project.runs[0]


def export_run(project: Trained, output: Path, **changes) -> None:
    folder = folder_of(project)
    arguments = {
        "run": project.runs[0],
        "data": project.data,
        "work": project.work,
        "model": folder / "model.safetensors",
        "evaluation": folder / "evaluation.json",
        "output": output,
    }
    export.export(project.experiment, **{**arguments, **changes})


def held_out(project: Trained) -> data.MappedSplit:
    return data.map_split(manifest_of(project), "test", project.work)


def stored(project: Trained) -> np.ndarray:
    """Return the images of the test split as the data set reads them."""
    return held_out(project).stored(slice(None))


def converted(network: torch.nn.Module, project: Trained, opset: int | None = 18) -> onnx.ModelProto:
    """Return the graph of a network, with the preprocessing."""
    manifest, samples = manifest_of(project), torch.from_numpy(stored(project)[:2])
    return export.convert(raw.whole(network, manifest, None), raw.traced(manifest, samples), opset)


def manifest_of(project: Trained) -> data.Manifest:
    return data.Manifest.load(project.data)


def trained_model(project: Trained) -> evaluation.TrainedModel:
    return evaluation.load_trained(
        project.runs[0], project.data, project.work, folder_of(project) / "model.safetensors"
    )


def test_the_exported_model_makes_the_predictions_of_the_evaluation(
    project: Trained, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    export_run(project, tmp_path / "export.json")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    logits, probabilities = session.run(None, {"inputs": stored(project)})
    with (folder_of(project) / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert logits.argmax(axis=1).tolist() == [int(row["predicted"]) for row in rows]
    expected = [[float(row[f"p({name})"]) for name in manifest_of(project).classes] for row in rows]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_the_file_says_what_it_is(project: Trained, exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    said = session.get_modelmeta().custom_metadata_map
    measured = read_json(folder_of(project) / "evaluation.json")
    for name in ("run", "digest", "data", "model"):
        assert said[f"everstep.{name}"] == measured[name]
    assert json.loads(said["everstep.metrics"])["accuracy"] == measured["metrics"]["accuracy"]["value"]
    assert json.loads(said["everstep.classes"]) == measured["classes"]
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("inputs", "tensor(uint8)", ["batch", 1, 8, 8])
    assert json.loads(said["everstep.inputs"]) == {"names": ["inputs"], "type": "uint8", "shape": [1, 8, 8]}
    assert manifest_in(said, exported).digest == said["everstep.data"]


def test_another_normalisation_in_the_graph_is_caught(project: Trained) -> None:
    split, network, manifest = held_out(project), trained_model(project).network, manifest_of(project)
    other = manifest.model_copy(update={"mean": (manifest.mean[0] + 0.05,)})
    samples = torch.from_numpy(stored(project)[:2])
    proto = export.convert(raw.whole(network, other, None), raw.traced(manifest, samples), 18)
    with pytest.raises(EverstepError, match="at batch 1"):
        export.check(proto.SerializeToString(), network, split, manifest, Export())


def test_the_check_covers_the_batches_asked_for_and_the_whole_split(project: Trained, exported: Path) -> None:
    checked = read_json(exported / "export.json")["check"]
    assert [row["batch"] for row in checked["batches"]] == [1, 2, 7, 256]
    measured = read_json(folder_of(project) / "evaluation.json")
    assert checked["split"]["samples"] == measured["samples"]
    assert checked["split"]["onnx_accuracy"] == checked["split"]["torch_accuracy"]
    assert checked["split"]["torch_accuracy"] == measured["metrics"]["accuracy"]["value"]


def test_the_largest_batch_is_no_larger_than_the_test_split(project: Trained) -> None:
    split, network = held_out(project), trained_model(project).network
    content = converted(network, project).SerializeToString()

    class Few(data.MappedSplit):
        def __len__(self) -> int:
            return 5

    split.__class__ = Few
    checked = export.check(content, network, split, manifest_of(project), Export(batch_sizes=[1, 7]))
    assert [row["batch"] for row in checked["batches"]] == [1, 5]


def test_one_wrong_weight_is_caught_and_nothing_stays_published(project: Trained, tmp_path: Path) -> None:
    def convert_wrongly(network: torch.nn.Module, inputs: dict[str, torch.Tensor], *how) -> onnx.ModelProto:
        proto = export.convert(network, inputs, *how)
        weight = next(one for one in proto.graph.initializer if len(one.dims) == 2)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3, 5] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return proto

    export_run(project, tmp_path / "export.json")
    with pytest.raises(EverstepError, match=r"at batch \d+: sample .* nothing was published") as raised:
        export_run(project, tmp_path / "export.json", convert=convert_wrongly)
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_right_at_batch_1_only_is_caught(project: Trained) -> None:
    class Mixing(torch.nn.Module):
        """Samples of a batch influence each other."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits = self.inner(inputs)
            return logits + 0.1 * (logits - logits.mean(0, keepdim=True))

    split, network = held_out(project), trained_model(project).network
    content = converted(Mixing(network), project).SerializeToString()
    with pytest.raises(EverstepError, match="at batch 2"):
        export.check(content, network, split, manifest_of(project), Export())


def test_a_change_within_the_tolerance_that_flips_no_clear_prediction_passes() -> None:
    logits = np.array([[1.0, 1.00001], [3.0, -3.0]], dtype=np.float32)
    swapped = logits[:, ::-1].copy()
    swapped[1] = logits[1]
    close = compared(logits, swapped, "here", **TOLERANCE)
    assert close.agreement == 0.5
    with pytest.raises(EverstepError, match="1 of 2 predictions differ"):
        compared(logits, swapped, "here", atol=1e-9, rtol=0.0)


def test_a_nan_never_passes() -> None:
    logits = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(EverstepError, match="sample 1, class 0"):
        compared(logits, np.array([[0, 0], [np.nan, 0]], dtype=np.float32), "here", **TOLERANCE)


def test_the_same_weights_give_the_same_bytes_on_any_machine(project: Trained, exported: Path, tmp_path: Path) -> None:
    export_run(project, tmp_path / "export.json")
    content = (tmp_path / "model.onnx").read_bytes()
    assert content == (exported / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("opset", [18, 25, None])
def test_each_opset_exports_and_agrees(opset: int | None, project: Trained) -> None:
    plugin, split, manifest = plugins.load("models", "cnn"), held_out(project), manifest_of(project)
    network = plugin.build(plugin.Params(), manifest.spec)
    proto = converted(network, project, opset)
    assert opset in (None, proto.opset_import[0].version)
    content = proto.SerializeToString()
    export.check(content, network, split, manifest, Export(max_batch=9))


def test_a_model_that_is_too_large_for_a_file_is_refused(
    project: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"of weights, and a .onnx file holds at most .*: it is not exported; predict"):
        export_run(project, tmp_path / "export.json")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_of_other_weights_is_refused(project: Trained, tmp_path: Path) -> None:
    measured = read_json(folder_of(project) / "evaluation.json")
    (tmp_path / "evaluation.json").write_text(json.dumps({**measured, "model": "0" * 32}))
    with pytest.raises(UserError, match="is about other weights"):
        export_run(project, tmp_path / "export.json", evaluation=tmp_path / "evaluation.json")

"""Export of a trained model to ONNX, published only if its outputs agree with the trained model's on the test split.

    classification   normalised inputs, float32 [batch, ...]   to logits [batch, classes]
    regression       normalised inputs, float32 [batch, ...]   to predictions [batch, targets], in units of the data
    language         tokens, int64 [batch, sequence]           to logits [batch, sequence, vocabulary]

graph        conversion to a graph
metadata     origin of the model, normalisation of inputs, meaning of outputs
comparison   comparison of the graph with the trained model
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import tasks
from workflow_lib.errors import UserError
from workflow_lib.evaluation import load_test, load_trained
from workflow_lib.evaluation.computing import judged
from workflow_lib.export.comparison import check
from workflow_lib.export.graph import convert
from workflow_lib.export.metadata import describe
from workflow_lib.files import write_atomic
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.results import write_run as outputs
from workflow_lib.results.statements import Export, read_evaluation, write_export

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from workflow_lib.config import Experiment

__all__ = ["check", "convert", "export"]

logger = logging.getLogger(__name__)


def export(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    model: Path,
    evaluation: Path,
    output: Path,
    convert: Callable[[nn.Module, Tensor, int | None, str], onnx.ModelProto] = convert,
) -> None:
    """Write model.onnx beside `output`, then the comparison with the trained model to `output`.

    If the two models differ, neither file is left. If the run diverged, `output` says so, and model.onnx is empty.
    """
    import onnx
    import torch

    settings = experiment.export
    published = output.with_name(results_layout.ONNX)
    for stale in (output, published):
        stale.unlink(missing_ok=True)
    if outputs.pass_on_divergence(model, output, published.name):
        return
    trained = load_trained(run, data, work, model)
    measured = read_evaluation(evaluation)
    if measured["model"] != trained.identity["model"]:
        raise UserError(f"{evaluation} is about other weights than {model}: evaluate the model again")
    manifest, split = trained.manifest, load_test(experiment, trained.manifest, work)
    how_to = tasks.load(manifest.task).onnx
    network = how_to.wrap(trained.network, manifest)
    proto = convert(network, how_to.pairs(*split.batch(slice(0, 2)))[0], settings.opset, f"{how_to.output}s")
    describe(proto, trained.identity, manifest, measured["metrics"])
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString(deterministic=True)
    checked, how = judged(lambda: check(content, network, split, manifest, settings))
    write_atomic(published, content)
    statement: Export = {
        **trained.identity,
        "onnx": {
            "file": published.name,
            "digest": provenance.file_digest(published),
            "bytes": len(content),
            "opset": proto.opset_import[0].version,
            "input": _shape(proto.graph.input[0]),
            "output": _shape(proto.graph.output[0]),
        },
        "check": {**how, **checked},
        "provenance": provenance.record([data, model, evaluation], torch.device("cpu")),
    }
    write_export(output, statement)
    logger.info("%s: agrees with torch at every batch size tried, %d bytes", published, len(content))


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

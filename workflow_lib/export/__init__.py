"""Export of a trained model to ONNX, published only if its outputs agree with the trained model's on the test split.

    classification   to logits [batch, classes], and probabilities of the same shape
    regression       to predictions [batch, targets], in units of the data
    language         to logits [batch, sequence, vocabulary], and probabilities [batch, vocabulary] of the next token

The inputs are raw: the preprocessing of the training is a part of the graph.

raw          inputs of the graph, and the preprocessing inside it
graph        conversion to a graph
metadata     origin of the model, its inputs, meaning of its outputs, manifest of its data
comparison   comparison of the graph with the trained model
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import models, tasks
from workflow_lib.data import ensure, map_split
from workflow_lib.errors import UserError
from workflow_lib.evaluation import load_trained
from workflow_lib.evaluation.computing import judged
from workflow_lib.export import raw
from workflow_lib.export.comparison import check
from workflow_lib.export.graph import convert
from workflow_lib.export.metadata import describe
from workflow_lib.files import write_atomic
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.results import write_run as outputs
from workflow_lib.results.statements import Export, read_evaluation, write_export
from workflow_lib.text import byte_size

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from workflow_lib.config import Experiment

__all__ = ["check", "convert", "export"]

logger = logging.getLogger(__name__)
MOST_BYTES = (1 << 31) - 1  # of a protobuf message, which a .onnx file is


def export(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    model: Path,
    evaluation: Path,
    output: Path,
    convert: Callable[[nn.Module, Mapping[str, Tensor], int | None, Sequence[str]], onnx.ModelProto] = convert,
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
    _check_size(trained.network)
    measured = read_evaluation(evaluation)
    if measured["model"] != trained.identity["model"]:
        raise UserError(f"{evaluation} is about other weights than {model}: evaluate the model again")
    manifest, how_to = ensure(trained.manifest, work), tasks.load(trained.manifest.task).onnx
    split = trained.examples if trained.examples is not None else map_split(manifest, "test", work, verify=True)
    network = how_to.wrap(trained.network, manifest).cpu().eval()
    stored = how_to.pairs(torch.from_numpy(split.stored(slice(0, 2))), split.batch(slice(0, 2))[1])[0]
    names = [f"{how_to.output}s", *(["probabilities"] if how_to.probabilities else [])]
    merged = how_to.wrap(models.merged(trained.network), manifest).cpu().eval()
    whole = raw.whole(merged, manifest, how_to.probabilities)
    proto = convert(whole, raw.traced(manifest, stored), settings.opset, names)
    raw.read_categories(proto, manifest)
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
            "inputs": {value.name: _shape(value) for value in proto.graph.input},
            "outputs": {value.name: _shape(value) for value in proto.graph.output},
        },
        "check": {**how, **checked},
        "provenance": provenance.record([data, model, evaluation], torch.device("cpu")),
    }
    write_export(output, statement)
    logger.info("%s: agrees with torch at every batch size tried, %d bytes", published, len(content))


def _check_size(network: nn.Module) -> None:
    """Raise UserError if the weights do not fit into a .onnx file."""
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if size > MOST_BYTES:
        raise UserError(
            f"the model has {byte_size(size)} of weights, and a .onnx file holds at most {byte_size(MOST_BYTES)}: it "
            "is not exported; predict with the run instead (everstep predict RUN)"
        )


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]

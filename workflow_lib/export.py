"""An exported model is published only after it gave the numbers of the trained one on real test samples.

The graph takes normalised inputs, float32 [batch, *input_shape], and gives logits [batch, classes]; its
metadata says which run and data it comes from and how raw values are normalised. For the same weights and
versions the file has the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib import provenance, shards
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import load_subject, predict
from workflow_lib.files import read_json, write_atomic, write_json

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)


def convert(network: nn.Module, inputs: Tensor, opset: int | None = None) -> onnx.ModelProto:
    """The model as an ONNX graph with a free batch size, traced with the given inputs."""
    import torch

    with _quiet_exporter():
        program = torch.onnx.export(
            network.cpu().eval(),
            (inputs,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["input"],
            output_names=["logits"],
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise EverstepError("torch.onnx.export returned no program")
    proto = program.model_proto
    _forget_origin(proto)
    return proto


def export(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    model: Path,
    evaluation: Path,
    output: Path,
    convert: Callable[[nn.Module, Tensor, int | None], onnx.ModelProto] = convert,
) -> None:
    """The checked model is model.onnx beside `output`, which tells how it was checked; or neither exists."""
    import onnx
    import torch

    settings = experiment.export
    published = output.with_name("model.onnx")
    for stale in (output, published):
        stale.unlink(missing_ok=True)
    subject = load_subject(run, data, work, model)
    measured = read_json(evaluation, "model", "metrics")
    if measured["model"] != subject.identity["model"]:
        raise UserError(f"{evaluation} is about other weights than {model}: evaluate the model again")
    split = shards.load_split(subject.manifest, "test", work, in_memory=True)
    proto = convert(subject.network, split.inputs[:2], settings.opset)
    _describe(proto, subject.identity, subject.manifest, measured["metrics"])
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString(deterministic=True)
    checked = check(
        content,
        subject.network,
        split.inputs,
        split.targets.numpy(),
        batch_sizes=settings.batch_sizes,
        max_batch=settings.max_batch,
        atol=settings.atol,
        rtol=settings.rtol,
    )
    write_atomic(published, content)
    write_json(
        output,
        {
            **subject.identity,
            "onnx": {
                "file": published.name,
                "digest": provenance.file_digest(published),
                "bytes": len(content),
                "opset": proto.opset_import[0].version,
                "input": ["batch", *subject.manifest.spec.input_shape],
                "output": ["batch", subject.manifest.spec.outputs],
            },
            "check": checked,
            "provenance": provenance.record([data, model, evaluation], torch.device("cpu")),
        },
    )
    logger.info("%s: the same numbers as torch at every batch size tried, %d bytes", published, len(content))


def check(
    content: bytes,
    network: nn.Module,
    inputs: Tensor,
    targets: np.ndarray,
    *,
    batch_sizes: Sequence[int],
    max_batch: int,
    atol: float,
    rtol: float,
) -> dict[str, Any]:
    """How far the ONNX model is from torch, per batch size and on the whole split; EverstepError if too far.

    A logit passes when |onnx - torch| <= atol + rtol * |torch|. Over the whole split every prediction must be
    the same, except where torch's own first two logits lie closer together than the tolerance.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def ask(batch: Tensor) -> np.ndarray:
        return np.asarray(session.run(["logits"], {"input": batch.numpy()})[0])

    largest = min(len(inputs), max_batch)
    sizes = sorted({size for size in (*batch_sizes, largest) if size <= largest})
    batches = []
    for size in sizes:
        expected, given = predict(network, inputs[:size], size), ask(inputs[:size])
        batches.append({"batch": size, **_compare(expected, given, f"at batch {size}", atol=atol, rtol=rtol)})
    expected = predict(network, inputs, largest)
    given = np.concatenate([ask(part) for part in inputs.split(largest)])
    whole = _compare(expected, given, "on the whole test split", atol=atol, rtol=rtol)
    return {
        "atol": atol,
        "rtol": rtol,
        "batches": batches,
        "split": {
            "samples": len(inputs),
            **whole,
            "torch_accuracy": float((expected.argmax(axis=1) == targets).mean()),
            "onnx_accuracy": float((given.argmax(axis=1) == targets).mean()),
        },
    }


def _compare(expected: np.ndarray, given: np.ndarray, where: str, *, atol: float, rtol: float) -> dict[str, float]:
    """Largest errors and the share of equal predictions; EverstepError beyond the tolerance."""
    if given.shape != expected.shape:
        raise EverstepError(
            f"the ONNX model gives shape {given.shape} {where}, torch {expected.shape}; nothing was published"
        )
    error = np.abs(given.astype(np.float64) - expected)
    allowed = atol + rtol * np.abs(expected)
    relative = error / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    worst = int(np.argmax(error - allowed))  # NaN counts as the largest
    ordered = np.sort(expected, axis=1)
    close = ordered[:, -1] - ordered[:, -2] <= 2 * allowed.max(axis=1)
    same = given.argmax(axis=1) == expected.argmax(axis=1)
    if not (error <= allowed).all() or not (same | close).all():
        sample, label = divmod(worst, expected.shape[1])
        raise EverstepError(
            f"the ONNX model differs from torch {where}: test sample {sample}, class {label}: "
            f"onnx {given[sample, label]:.6g}, torch {expected[sample, label]:.6g}, "
            f"error {error[sample, label]:.3g}, allowed {allowed[sample, label]:.3g} "
            f"(export.atol={atol:g}, export.rtol={rtol:g}); "
            f"{int((~same).sum())} of {len(same)} predictions differ; nothing was published"
        )
    return {
        "max_abs_error": float(error.max()),
        "max_rel_error": float(relative.max()),
        "agreement": float(same.mean()),
    }


def _describe(
    proto: onnx.ModelProto,
    identity: dict[str, Any],
    manifest: shards.Manifest,
    metrics: dict[str, Any],
) -> None:
    """The graph's metadata says what it is: run, data, weights, classes, normalisation, test metrics."""
    import onnx

    described = {
        **{f"everstep.{key}": value for key, value in identity.items()},
        "everstep.classes": json.dumps(manifest.classes, ensure_ascii=False),
        "everstep.normalisation": json.dumps({"scale": manifest.scale, "mean": manifest.mean, "std": manifest.std}),
        "everstep.metrics": json.dumps({name: metric["value"] for name, metric in metrics.items()}),
    }
    onnx.helper.set_model_props(proto, described)
    proto.producer_name = "everstep"


def _forget_origin(proto: onnx.ModelProto) -> None:
    """The graph keeps nothing of the machine that made it: the exporter notes source paths in every node."""
    graph = proto.graph
    nodes = (*graph.node, *(node for function in proto.functions for node in function.node))
    values = (*graph.input, *graph.output, *graph.initializer, *graph.value_info)
    for part in (proto, graph, *proto.functions, *nodes, *values):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter does not talk: it warns of a missing torchvision and of torch's own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

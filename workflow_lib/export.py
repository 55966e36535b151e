"""An exported model is published only after it gave the numbers of the trained one on real test samples.

    classification   normalised inputs, float32 [batch, ...]   to logits [batch, classes]
    regression       normalised inputs, float32 [batch, ...]   to predictions [batch, targets], in units of the data
    language         tokens, int64 [batch, sequence]           to logits [batch, sequence, vocabulary]

The metadata says which run and data it comes from, how raw values are normalised, and what the numbers mean. For the
same weights and versions the file has the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.data import Manifest
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import AnySplit, load_subject, load_test, slices
from workflow_lib.evaluation.computing import judged
from workflow_lib.evaluation.language import rows_at_once
from workflow_lib.files import read_json, write_atomic, write_json
from workflow_lib.plugins import Task
from workflow_lib.results import provenance
from workflow_lib.results import write_run as outputs

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)


def convert(network: nn.Module, inputs: Tensor, opset: int | None = None, output: str = "logits") -> onnx.ModelProto:
    """The model as an ONNX graph with a free batch size, of tokens also a free length; traced with the inputs."""
    import torch

    free = {0: torch.export.Dim("batch")}
    if not inputs.is_floating_point() and inputs.shape[1] > 1:
        free[1] = torch.export.Dim("sequence", min=1, max=inputs.shape[1])
    with _quiet_exporter():
        program = torch.onnx.export(
            network.cpu().eval(),
            (inputs,),
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=["input"],
            output_names=[output],
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise EverstepError("torch.onnx.export returned no program")
    proto = program.model_proto
    _forget_origin(proto)
    return proto


def in_units(network: nn.Module, manifest: Manifest) -> nn.Module:
    """The model with its outputs in the units of the data."""
    import torch
    from torch import nn

    class InUnits(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for name, values in (("mean", manifest.target_mean), ("std", manifest.target_std)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs) * self.std + self.mean

    return InUnits()


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
    """The checked model is model.onnx beside `output`, which tells how it was checked; or neither exists.

    Of a run that diverged, `output` says that it did, and model.onnx is empty.
    """
    import onnx
    import torch

    settings = experiment.export
    published = output.with_name("model.onnx")
    for stale in (output, published):
        stale.unlink(missing_ok=True)
    if outputs.hand_on_divergence(model, output, published.name):
        return
    subject = load_subject(run, data, work, model)
    measured = read_json(evaluation, "model", "metrics")
    if measured["model"] != subject.identity["model"]:
        raise UserError(f"{evaluation} is about other weights than {model}: evaluate the model again")
    manifest = subject.manifest
    split = load_test(experiment, manifest, work)
    is_numbers = manifest.task == "regression"
    network = in_units(subject.network, manifest) if is_numbers else subject.network
    inputs = _seen(split, slice(0, 2), manifest.task)[0]
    proto = convert(network, inputs, settings.opset, "predictions" if is_numbers else "logits")
    _describe(proto, subject.identity, manifest, measured["metrics"])
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString(deterministic=True)
    checked, how = judged(
        lambda: check(
            content,
            network,
            split,
            manifest,
            batch_sizes=settings.batch_sizes,
            max_batch=settings.max_batch,
            atol=settings.atol,
            rtol=settings.rtol,
        )
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
                "input": _shape(proto.graph.input[0]),
                "output": _shape(proto.graph.output[0]),
            },
            "check": {**how, **checked},
            "provenance": provenance.record([data, model, evaluation], torch.device("cpu")),
        },
    )
    logger.info("%s: the same numbers as torch at every batch size tried, %d bytes", published, len(content))


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]


def _seen(split: AnySplit, rows: slice, task: Task) -> tuple[Tensor, np.ndarray]:
    """What the model sees of these samples, and what it is compared with."""
    inputs, targets = split.batch(rows)
    if task == "language":
        return inputs[:, :-1], inputs[:, 1:].numpy()
    return inputs, targets.numpy()


def check(
    content: bytes,
    network: nn.Module,
    split: AnySplit,
    manifest: Manifest,
    *,
    batch_sizes: Sequence[int],
    max_batch: int,
    atol: float,
    rtol: float,
) -> dict[str, Any]:
    """How far the ONNX model is from torch, per batch size and on the whole split; EverstepError if too far.

    A number passes when |onnx - torch| <= atol + rtol * |torch|, atol in deviations of the target in a regression.
    Every prediction must be the same, except where torch's own first two logits lie closer together than the
    tolerance. Of a language, whose logits are large, no more than `max_batch` samples are compared, some cut short.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    network, task, spec = network.cpu().eval(), manifest.task, manifest.spec
    unit = np.array(manifest.target_std or 1.0)

    def compare(inputs: Tensor, first: int, where: str) -> Compared:
        with torch.inference_mode():
            expected = network(inputs).float().numpy()
        given = np.asarray(session.run(None, {"input": inputs.numpy()})[0])
        has_labels = task != "regression"
        return _compare(expected, given, where, atol=atol * unit, rtol=rtol, has_labels=has_labels, first=first)

    largest, samples = min(len(split), max_batch), len(split)
    if task == "language":
        largest, samples = min(largest, rows_at_once(max_batch, spec.input_shape[0], spec.outputs)), largest
    batches = []
    for size in sorted({size for size in (*batch_sizes, largest) if size <= largest}):
        inputs, _ = _seen(split, slice(0, size), task)
        batches.append({"batch": size, **compare(inputs, 0, f"at batch {size}").told()})
    for length in sorted({1, (spec.input_shape[0] + 1) // 2}) if task == "language" else ():
        compared = compare(_seen(split, slice(0, 1), task)[0][:, :length], 0, f"at {length} tokens")
        batches.append({"batch": 1, "sequence": length, **compared.told()})
    whole, torch_score, onnx_score = [], 0.0, 0.0
    for rows in slices(samples, largest):
        inputs, targets = _seen(split, rows, task)
        whole.append(compare(inputs, rows.start, f"in samples {rows.start} to {rows.stop} of the test split"))
        torch_score += _score(whole[-1].expected, targets, manifest)
        onnx_score += _score(whole[-1].given, targets, manifest)
    score = "mae" if task == "regression" else "accuracy"
    return {
        "atol": atol,
        "rtol": rtol,
        "batches": batches,
        "split": {
            "samples": samples,
            **_together(whole),
            f"torch_{score}": torch_score / samples,
            f"onnx_{score}": onnx_score / samples,
        },
    }


def _score(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """The sum over the samples of what was right, or of the errors of numbers."""
    if manifest.task == "regression":
        true = targets * np.array(manifest.target_std) + np.array(manifest.target_mean)
        return float(np.abs(outputs - true).mean(axis=1).sum())
    right = outputs.argmax(axis=-1) == targets
    return float(right.sum()) / (right.size // len(right))


@dataclass(frozen=True)
class Compared:
    """Outputs of torch and of ONNX for the same samples, and how far they are apart."""

    expected: np.ndarray
    given: np.ndarray
    max_abs_error: float
    max_rel_error: float
    agreement: float | None  # share of equal predictions, where there are labels

    def told(self) -> dict[str, float | None]:
        """The figures."""
        return {name: getattr(self, name) for name in ("max_abs_error", "max_rel_error", "agreement")}


def _together(parts: Sequence[Compared]) -> dict[str, float | None]:
    """The figures of all parts as one."""
    shares = [(part.agreement, len(part.given)) for part in parts if part.agreement is not None]
    return {
        "max_abs_error": max(part.max_abs_error for part in parts),
        "max_rel_error": max(part.max_rel_error for part in parts),
        "agreement": sum(share * size for share, size in shares) / sum(size for _, size in shares) if shares else None,
    }


def _compare(
    expected: np.ndarray,
    given: np.ndarray,
    where: str,
    *,
    atol: float | np.ndarray,
    rtol: float,
    has_labels: bool = True,
    first: int = 0,
) -> Compared:
    """How far the outputs are apart; EverstepError beyond the tolerance. The batch begins with sample ``first``."""
    if given.shape != expected.shape:
        raise EverstepError(
            f"the ONNX model gives shape {given.shape} {where}, torch {expected.shape}; nothing was published"
        )
    error = np.abs(given.astype(np.float64) - expected)
    allowed = atol + rtol * np.abs(expected)
    relative = error / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    same = given.argmax(axis=-1) == expected.argmax(axis=-1)
    if has_labels:
        highest = np.partition(expected, -2, axis=-1)[..., -2:]
        is_alike = same | (highest[..., 1] - highest[..., 0] <= 2 * allowed.max(axis=-1))
    else:
        is_alike = np.True_
    if not (error <= allowed).all() or not np.all(is_alike):
        worst = np.unravel_index(np.argmax(error - allowed), error.shape)  # NaN counts as the largest
        sample, *place = (int(one) for one in worst)
        words = ("place", "token") if place[1:] else ("class" if has_labels else "target",)
        named = "".join(f", {word} {number}" for word, number in zip(words, place, strict=True))
        differ = f"{int((~same).sum())} of {same.size} predictions differ; " if has_labels else ""
        raise EverstepError(
            f"the ONNX model differs from torch {where}: test sample {first + sample}{named}: "
            f"onnx {given[worst]:.6g}, torch {expected[worst]:.6g}, error {error[worst]:.3g}, "
            f"allowed {allowed[worst]:.3g} (export.atol, export.rtol); {differ}nothing was published"
        )
    agreement = float(same.mean()) if has_labels else None
    return Compared(expected, given, float(error.max()), float(relative.max()), agreement)


def _describe(
    proto: onnx.ModelProto,
    identity: dict[str, Any],
    manifest: Manifest,
    metrics: dict[str, Any],
) -> None:
    """The graph's metadata says what it is: run, data, weights, meaning of the numbers, test metrics."""
    import onnx

    described = {
        **{f"everstep.{key}": value for key, value in identity.items()},
        "everstep.task": manifest.task,
        **{
            f"everstep.{name}": json.dumps(value, ensure_ascii=False)
            for name, value in manifest.model_dump(mode="json", include={"classes", "features", "vocabulary"}).items()
            if value
        },
        "everstep.normalisation": json.dumps({"scale": manifest.scale, "mean": manifest.mean, "std": manifest.std}),
        "everstep.metrics": json.dumps({name: metric["value"] for name, metric in metrics.items()}),
    }
    if manifest.task == "regression":
        units = {"mean": manifest.target_mean, "std": manifest.target_std}
        described["everstep.target"] = json.dumps({**units, "output": "in units of the data"})
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

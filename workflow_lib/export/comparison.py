"""Comparison of an exported model with the trained one, on the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workflow_lib import tasks
from workflow_lib.errors import EverstepError
from workflow_lib.export import raw
from workflow_lib.metrics.outputs import slices

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.config.experiment import Export
    from workflow_lib.data import Manifest


class Comparable(Protocol):
    """Samples to compare both models on: a split, or example inputs."""

    def __len__(self) -> int: ...

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]: ...

    def stored(self, rows: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class Compared:
    """Outputs of both models for the same samples, and their largest differences.

    agreement   share of equal predictions; None where the outputs are numbers
    """

    torch: np.ndarray
    onnx: np.ndarray
    max_abs_error: float
    max_rel_error: float
    agreement: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return the differences, as in export.json."""
        return {name: getattr(self, name) for name in ("max_abs_error", "max_rel_error", "agreement")}


def check(
    content: bytes, network: nn.Module, split: Comparable, manifest: Manifest, settings: Export
) -> dict[str, Any]:
    """Return the differences between both models for each batch size, and for the whole split.

    The graph gets raw inputs, and the network the same samples as the training normalised them.

    A number passes if |onnx - torch| <= atol + rtol * |torch|; for regression, atol is in standard deviations of the
    target. Predictions must be equal, unless the two largest outputs of torch are closer than the tolerance. Language
    models, whose logits are large, are compared on at most `max_batch` samples, and also on shorter sequences.

    Raises EverstepError if a difference is too large.
    """
    import torch

    onnx, spec = tasks.load(manifest.task).onnx, manifest.spec
    compare = _comparing(content, network, manifest, settings)

    def rows_of(rows: slice) -> tuple[Tensor, np.ndarray, np.ndarray]:
        normal, targets = split.batch(rows)
        inputs, compared_with = onnx.pairs(normal, targets)
        return inputs, onnx.pairs(torch.from_numpy(split.stored(rows)), targets)[0].numpy(), compared_with.numpy()

    largest, samples = min(len(split), settings.max_batch), len(split)
    if onnx.at_most is not None:
        largest = samples = min(largest, onnx.at_most(spec, settings.max_batch))
    batches: list[dict[str, Any]] = []
    for size in sorted({size for size in (*settings.batch_sizes, largest) if size <= largest}):
        inputs, stored, _ = rows_of(slice(0, size))
        compared = compare(inputs, stored, 0, f"at batch {size}")
        batches.append({"batch": size, **compared.as_dict()})
    for length in onnx.lengths(spec):
        inputs, stored, _ = rows_of(slice(0, 1))
        compared = compare(inputs[:, :length], stored[:, :length], 0, f"at {length} tokens")
        batches.append({"batch": 1, "sequence": length, **compared.as_dict()})
    whole, torch_score, onnx_score = [], 0.0, 0.0
    for rows in slices(samples, largest):
        inputs, stored, targets = rows_of(rows)
        whole.append(compare(inputs, stored, rows.start, f"in samples {rows.start} to {rows.stop}"))
        torch_score += onnx.score_of(whole[-1].torch, targets, manifest)
        onnx_score += onnx.score_of(whole[-1].onnx, targets, manifest)
    scores = {f"torch_{onnx.score[0]}": torch_score / samples, f"onnx_{onnx.score[0]}": onnx_score / samples}
    return {
        "atol": settings.atol,
        "rtol": settings.rtol,
        "batches": batches,
        "split": {"samples": samples, **combined(whole), **scores},
    }


def _comparing(
    content: bytes, network: nn.Module, manifest: Manifest, settings: Export
) -> Callable[[Tensor, np.ndarray, int, str], Compared]:
    """Return a function that runs both models on normalised and on stored inputs, and compares their outputs."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    network, atol = network.cpu().eval(), settings.atol * np.array(manifest.target_std or 1.0)
    how_to = tasks.load(manifest.task).onnx
    has_labels, probabilities = how_to.has_labels, how_to.probabilities
    axis = how_to.class_axis if how_to.class_axis >= 0 else -1

    def compare(inputs: Tensor, stored: np.ndarray, first: int, where: str) -> Compared:
        given, *more = session.run(None, raw.feeds(manifest, stored))
        with torch.inference_mode():
            outputs = network(inputs)
            shares = None if probabilities is None else np.moveaxis(probabilities(outputs).numpy(), axis, -1)
        rtol = settings.rtol
        expected, given = np.moveaxis(outputs.numpy(), axis, -1), np.moveaxis(given, axis, -1)
        found = compared(expected, given, where, atol=atol, rtol=rtol, has_labels=has_labels, first=first)
        if shares is not None and more:
            chances, named = np.moveaxis(more[0], axis, -1), f"{where} (probabilities)"
            compared(shares, chances, named, atol=settings.atol, rtol=rtol, has_labels=has_labels, first=first)
        return replace(found, torch=np.moveaxis(found.torch, -1, axis), onnx=np.moveaxis(found.onnx, -1, axis))

    return compare


def combined(parts: Sequence[Compared]) -> dict[str, float | None]:
    """Return the differences over all parts."""
    shares = [(part.agreement, len(part.onnx)) for part in parts if part.agreement is not None]
    return {
        "max_abs_error": max(part.max_abs_error for part in parts),
        "max_rel_error": max(part.max_rel_error for part in parts),
        "agreement": sum(share * size for share, size in shares) / sum(size for _, size in shares) if shares else None,
    }


def compared(
    expected: np.ndarray,
    given: np.ndarray,
    where: str,
    *,
    atol: float | np.ndarray,
    rtol: float,
    has_labels: bool = True,
    first: int = 0,
) -> Compared:
    """Return the differences between torch's and ONNX's outputs for a batch that begins with sample `first`.

    Raises EverstepError if one is larger than the tolerance.
    """
    if given.shape != expected.shape:
        raise EverstepError(
            f"the ONNX model gives shape {given.shape} {where}, torch {expected.shape}; nothing was published"
        )
    error = np.abs(given.astype(np.float64) - expected)
    allowed = atol + rtol * np.abs(expected)
    relative = error / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    same = given.argmax(axis=-1) == expected.argmax(axis=-1)
    is_alike = same | _is_tie(expected, allowed) if has_labels else np.True_
    if not (error <= allowed).all() or not np.all(is_alike):
        worst = np.unravel_index(np.argmax(error - allowed), error.shape)  # NaN counts as the largest
        sample, *place = (int(index) for index in worst)
        words = ("place", "token") if place[1:] else ("class" if has_labels else "target",)
        named = "".join(f", {word} {number}" for word, number in zip(words, place, strict=True))
        differ = f"{int((~same).sum())} of {same.size} predictions differ; " if has_labels else ""
        raise EverstepError(
            f"the ONNX model differs from torch {where}: sample {first + sample}{named}: "
            f"onnx {given[worst]:.6g}, torch {expected[worst]:.6g}, error {error[worst]:.3g}, "
            f"allowed {allowed[worst]:.3g} (export.atol, export.rtol); {differ}nothing was published"
        )
    agreement = float(same.mean()) if has_labels else None
    return Compared(expected, given, float(error.max()), float(relative.max()), agreement)


def _is_tie(outputs: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return where the two largest outputs are so close that a difference within the tolerance may swap them."""
    highest = np.partition(outputs, -2, axis=-1)[..., -2:]
    tie: np.ndarray = highest[..., 1] - highest[..., 0] <= 2 * allowed.max(axis=-1)
    return tie

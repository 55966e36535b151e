"""`training.metrics` and `training.loss` on the test split, with bootstrap intervals from outputs that are kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workflow_lib import tasks
from workflow_lib.config.measures import OWN_LOSS
from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outputs import slices
from workflow_lib.metrics.own import Measures
from workflow_lib.training.loss import UserLoss

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.measures import Metric
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest
    from workflow_lib.tasks import AnySplit

MAX_KEPT_BYTES = 1 << 30  # of outputs; larger ones are not resampled


def measure(
    training: Training,
    network: nn.Module,
    manifest: Manifest,
    split: AnySplit,
    settings: Evaluate,
    where: torch.device,
) -> dict[str, dict[str, Any]]:
    """Return the own loss and each metric by its label, with their intervals, as in evaluation.json."""
    given = (network, manifest, split, settings, where)
    found = {} if training.loss is None else {OWN_LOSS: _loss(training.loss, training.loss_params, *given)}
    return found | (_metrics(training.metrics, *given) if training.metrics else {})


def _metrics(
    sections: Sequence[Metric],
    network: nn.Module,
    manifest: Manifest,
    split: AnySplit,
    settings: Evaluate,
    where: torch.device,
) -> dict[str, dict[str, Any]]:
    pairs, measures = tasks.load(manifest.task).onnx.pairs, Measures.of(sections, manifest)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    network, size = network.to(where).eval(), 0
    with torch.inference_mode(), closing(split.stream(slices(len(split), settings.batch_size))) as batches:
        for batch in batches:
            inputs, targets = pairs(*batch)
            outputs = network(inputs.to(where)).float()
            measures.add(measures.contribution(outputs, targets.to(where)))
            size += outputs.nbytes
            if size <= MAX_KEPT_BYTES:
                kept.append((outputs.cpu(), targets.cpu()))
    values = measures.values()
    reasons = {label: "it has no finite value on this split" for label, value in values.items() if value is None}
    if size > MAX_KEPT_BYTES:
        reason = f"no interval: the outputs of the test split are larger than {MAX_KEPT_BYTES >> 20} MiB"
        return {
            label: {"value": value, "low": None, "high": None, "reason": reasons.get(label, reason)}
            for label, value in values.items()
        }
    outputs, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
    measures.reset()

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each metric for each column of weights: of the samples, as often as they were drawn."""
        found = []
        for column in weights.T:
            rows = torch.from_numpy(np.repeat(np.arange(len(column)), column))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of classes that a resample lacks
                measures.add(measures.contribution(outputs[rows], targets[rows]))
            found.append(measures.values())
            measures.reset()
        return {
            label: np.array([np.nan if each[label] is None else each[label] for each in found], dtype=np.float64)
            for label in values
        }

    how = Resampling.of(settings)
    return intervals(scores, len(split), how, reasons=reasons, lacking="give it no finite value")


def _loss(
    target: str,
    params: Mapping[str, Any],
    network: nn.Module,
    manifest: Manifest,
    split: AnySplit,
    settings: Evaluate,
    where: torch.device,
) -> dict[str, Any]:
    """Return the loss with its interval; one number for a batch has none, and may depend on how the split is cut."""
    pairs, function = tasks.load(manifest.task).onnx.pairs, UserLoss(target, params, where)
    values: list[torch.Tensor] = []
    is_of_batch, network = False, network.to(where).eval()
    with torch.inference_mode(), closing(split.stream(slices(len(split), settings.batch_size))) as batches:
        for batch in batches:
            inputs, targets = pairs(*batch)
            value = function(network(inputs.to(where)).float(), targets.to(where)).double()
            is_of_batch |= value.dim() == 0
            values.append((value.flatten(1).mean(1) if value.dim() > 1 else value.expand(len(inputs))).cpu())
    losses = torch.cat(values).numpy()
    if not np.isfinite(losses).all():
        return {"value": None, "low": None, "high": None, "reason": "it has no finite value on this split"}
    if is_of_batch:
        reason = f"no interval: it is one number for a batch, here of {settings.batch_size} samples"
        return {"value": float(losses.mean()), "low": None, "high": None, "reason": reason}

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {OWN_LOSS: losses @ weights / weights.sum(axis=0)}

    return intervals(scores, len(split), Resampling.of(settings))[OWN_LOSS]

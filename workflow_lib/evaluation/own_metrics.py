"""The metrics of `training.metrics` on the test split, with bootstrap intervals from the outputs, which are kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workflow_lib import tasks
from workflow_lib.metrics.bootstrap import Resampling, intervals
from workflow_lib.metrics.outputs import slices
from workflow_lib.metrics.own import Measures

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.measures import Metric
    from workflow_lib.data import Manifest
    from workflow_lib.tasks import AnySplit

MAX_KEPT_BYTES = 1 << 30  # of outputs; larger ones are not resampled


def measure(
    sections: Sequence[Metric],
    network: nn.Module,
    manifest: Manifest,
    split: AnySplit,
    settings: Evaluate,
    where: torch.device,
) -> dict[str, dict[str, Any]]:
    """Return each metric by its label with its interval, as in evaluation.json."""
    pairs, measures = tasks.load(manifest.task).onnx.pairs, Measures(sections, manifest)
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

"""Gradients, weights and images of every few steps, for TensorBoard and other tools (`tracking.every_steps`).

Nothing here changes the training: the generators and the buffers are as before, and the device is waited for only in a
step that is recorded. A summary is a function of the state after its step, so a step that is computed again after a
crash has the same one; those after the checkpoint that an attempt resumes from are removed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from workflow_lib import tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.metrics.numbers import six_digits
from workflow_lib.metrics.pictures import coloured, pixels
from workflow_lib.metrics.sheets import Caption, sheet
from workflow_lib.metrics.targets import target_text
from workflow_lib.results import summaries
from workflow_lib.runtime.seed import capture_rng, restore_rng
from workflow_lib.store import layout
from workflow_lib.tasks import Columns, Objective
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.augment import augmented, epoch_key, is_augmenting, is_mixing
from workflow_lib.training.batches import Batches, MicroBatch
from workflow_lib.training.histograms import statistics
from workflow_lib.training.state import State

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.config.tracking import Tracking
    from workflow_lib.data import Manifest, MappedSplit, Split

MOST = 500  # summaries of a run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """The settings of summaries, and the data that they show: no images if the inputs are none."""

    every: int
    images: int
    manifest: Manifest

    @classmethod
    def of(cls, section: Tracking, manifest: Manifest) -> Recording | None:
        """Return the recording that the experiment asks for, or None."""
        if section.every_steps is None:
            return None
        is_shown = len(manifest.input_shape) == 3 and not manifest.has_tokens
        return cls(section.every_steps, section.images if is_shown else 0, manifest)


class Summaries:
    """The summaries of a run, on each of its ranks. All ranks call each method."""

    def __init__(
        self,
        recording: Recording | None,
        state: State,
        objective: Objective,
        batches: Batches,
        agreement: Agreement,
        *,
        train: Split | MappedSplit,
        validation: Split | MappedSplit,
        workspace: Path,
        store: CheckpointStore,
    ) -> None:
        self._state, self._objective, self._batches, self._agreement = state, objective, batches, agreement
        self._train, self._validation, self._workspace, self._store = train, validation, workspace, store
        self._recording, self._is_main = recording, state.ranks.is_main
        self._every = 0 if recording is None else interval(recording.every, batches.length.total)
        shown, step = 0 if recording is None else recording.images, state.step
        # the outputs of a user's step may be others than those of the task
        is_own = step is not None and (step.has_own_validation() or step.has_own_inputs())
        self._shown, self._predicted = shown, 0 if is_own else min(shown, len(validation))
        self._has_failed = False

    def begin(self) -> None:
        """Remove the summaries of steps after the one that this attempt begins at, and tell what is recorded."""
        if not self._is_main:
            return
        step = self._state.progress.cursor.step
        for number, path in layout.summary_files(self._workspace):
            if number > step:
                self._store.check_ownership()
                path.unlink(missing_ok=True)
        if self._recording is not None:
            wanted = self._recording.every
            logger.log(
                logging.INFO if self._every == wanted else logging.WARNING,
                "gradients, weights%s of every %s step are recorded%s",
                " and images" if self._shown else " (no images: there are none)",
                f"{self._every:,}th",
                "" if self._every == wanted else f": every {wanted:,}th would be more than {MOST} records",
            )

    def add(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Record the step that was committed last if it is due; its micro-batches are those of this rank."""
        step = self._state.progress.cursor.step
        if self._recording is None or step % self._every:
            return
        is_shared = self._state.parallel.is_shared
        found = (
            statistics(self._tensors(), self._agreement.all_gather if is_shared else None)
            if (self._is_main or is_shared)
            else {}
        )
        images = (
            {"predictions": self._predictions(self._recording.manifest)}
            if self._predicted and (self._is_main or is_shared)
            else {}
        )
        if not self._is_main:
            return
        if self._shown:
            images["inputs"] = self._inputs(micro_batches[0], self._recording.manifest)
        try:
            self._store.check_ownership()
            summaries.write(layout.summary_file(self._workspace, step), found, images)
        except OSError as error:
            if not self._has_failed:
                logger.warning("the gradients and weights of step %d are not recorded: %s", step, error)
            self._has_failed = True

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the gradients, as the optimizer took them, and the trained weights; a tied weight once."""
        weights = {id(weight): (name, weight) for name, weight in reversed([*self._state.parallel.names()])}
        named = dict(reversed([*weights.values()]))
        gradients = {f"gradients/{name}": weight.grad for name, weight in named.items() if weight.grad is not None}
        return gradients | {f"parameters/{name}": weight.detach() for name, weight in named.items()}

    def _inputs(self, micro_batch: MicroBatch, manifest: Manifest) -> bytes:
        """Return the first images of a micro-batch, augmented and mixed as in its step."""
        section, epoch, first = self._state.run.augment, self._state.progress.cursor.epoch, slice(0, self._shown)
        partners = micro_batch.mixing_partners
        chosen = MicroBatch(
            micro_batch.samples[first],
            micro_batch.occurrence_ids[first],
            None if partners is None else partners[first],
        )
        inputs, targets = self._objective.parts(*self._train.batch(chosen.rows))
        if is_augmenting(section) or is_mixing(section):
            key = epoch_key(self._state.run.seed, epoch)
            inputs, *_ = augmented(section, inputs, targets, chosen.occurrence_ids, chosen.mixing_partners, key=key)
        return sheet([_pictures(inputs, manifest)])

    def _predictions(self, manifest: Manifest) -> bytes:
        """Return images of the validation split, with their targets and what the model predicts in validation."""
        rows = torch.arange(self._predicted) * len(self._validation) // self._predicted
        loaded, own = self._validation.batch(rows)
        inputs, targets = self._objective.parts(loaded, own)
        outputs = self._outputs(inputs)
        task = tasks.load(manifest.task)
        told = task.onnx.wrap(_Given(outputs), manifest)(inputs).numpy()
        pictures = _pictures(inputs, manifest)
        if task.masks is not None:
            masks = own.cpu().numpy(), task.masks(told)
            return sheet([pictures, *([coloured(mask) for mask in kind] for kind in masks)])
        columns = task.predicted(told, targets.cpu().numpy(), manifest)
        return sheet([pictures], [_caption(columns, own[place], place, manifest) for place in range(self._predicted)])

    @torch.inference_mode()
    def _outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the model in validation, on the CPU; nothing of the state changes by it."""
        state = self._state
        drawn = capture_rng(state.device)
        buffers = [(buffer, buffer.detach().clone(), buffer._version) for buffer in state.module.buffers()]
        state.module.eval()
        with state.autocast():
            outputs: torch.Tensor = state.parallel.eval_forward(inputs, state.ema).float().cpu()
        state.set_training()
        for buffer, before, version in buffers:
            if buffer._version != version:
                buffer.copy_(before)
        restore_rng(drawn)
        return outputs


class _Given(nn.Module):
    """A network whose outputs are known."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.outputs


def interval(every: int, total: int) -> int:
    """Return the steps from one summary to the next: a multiple of ``every`` that gives at most MOST of them."""
    return every * math.ceil(max(1, total // every) / MOST)


def _pictures(inputs: torch.Tensor, manifest: Manifest) -> list[np.ndarray]:
    return [pixels(image, manifest) for image in inputs.float().cpu().numpy()]


def _caption(columns: Columns, target: torch.Tensor, place: int, manifest: Manifest) -> Caption:
    """Return the target and the prediction of a sample in two lines."""
    true = target_text(target, manifest)
    values = {name: column[place] for name, column in columns.items()}
    if "predicted" in values and manifest.kind in ("classes", "labels"):
        said = str(values["predicted"])
        if manifest.kind == "labels":
            said = said.replace(";", ", ") or "no label"
        share = values.get(f"p({said})")
        return [f"true {true}", f"pred. {said}" + ("" if share is None else f" {share:.0%}")], said == true
    said = ", ".join(six_digits(float(value)) if isinstance(value, Real) else str(value) for value in values.values())
    return [f"true {true}", f"pred. {said}"], None

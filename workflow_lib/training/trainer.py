"""The training loop: a state machine that can stop at any instruction and continue from the last commit.

    train ──validation due──► validate ──steps left──► train
                                 └──last step, early stop──► finish

The loop polls for a stop and for a due save before each optimizer step, between the micro-batches of a step, and before
each validation batch. At these points the last commit is complete in memory, and can be saved at once; a resume repeats
at most one step.

The order of the data is a function of seed and epoch. The ranks decide together, by one small all-reduce; only rank 0
reads a clock.

``sys.audit("everstep", point, ...)`` names the points at which tests inject faults; without a hook it does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.config.length import is_counted_in_steps
from workflow_lib.config.measures import maximized
from workflow_lib.config.optimization import Plateau
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import DivergedError
from workflow_lib.runtime.determinism import kernels_watched
from workflow_lib.runtime.seed import capture_rng, restore_rng
from workflow_lib.store.events import EventLog
from workflow_lib.tasks import Objective
from workflow_lib.training import selection
from workflow_lib.training.agreement import Agreement
from workflow_lib.training.augment import check_augmentation
from workflow_lib.training.batches import Batches, MicroBatch
from workflow_lib.training.checkpoints import Checkpoints
from workflow_lib.training.divergence import Divergence, check_finite
from workflow_lib.training.graphed import GraphedPasses
from workflow_lib.training.graphs import Graph
from workflow_lib.training.hooks import View
from workflow_lib.training.metrics_file import Curve
from workflow_lib.training.model import explain, explain_single_value
from workflow_lib.training.own_passes import OwnPasses
from workflow_lib.training.parameter_groups import learning_rate_of
from workflow_lib.training.passes import Passes, Steps
from workflow_lib.training.progress import ProgressDisplay
from workflow_lib.training.state import Cursor, EpochMetrics, Losses, State
from workflow_lib.training.step_log import StepLog
from workflow_lib.training.summaries import Recording, Summaries
from workflow_lib.training.validation import Validation

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, ModelSpec, Split
    from workflow_lib.metrics.own import Measures
    from workflow_lib.plan import RunConfig

logger = logging.getLogger(__name__)

StopEarly = Callable[[list[EpochMetrics]], bool]
End = Literal["finished", "stopped", "pruned"]


class StopRequested(Exception):
    """Raised inside the loop when all ranks have agreed to stop."""


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt, as rank 0 returns it to the launcher."""

    ended: End
    step: int
    epoch: int
    resumed_step: int | None
    checkpoint: str | None
    history: list[EpochMetrics]


class Trainer:
    """One training process of a run."""

    def __init__(
        self,
        run: RunConfig,
        *,
        spec: ModelSpec,
        objective: Objective,
        train: Split | MappedSplit,
        validation: Split | MappedSplit,
        ranks: Ranks,
        device: torch.device,
        shared_state: SharedState,
        store: CheckpointStore,
        saver: Saver,
        events: EventLog,
        environment: Mapping[str, Any],
        metrics_file: Path,
        weights: Mapping[str, Path] | None = None,
        stop_early: StopEarly | None = None,
        measures: Measures | None = None,
        graph: Graph | None = None,
        is_graph_required: bool = False,
        recording: Recording | None = None,
    ) -> None:
        self.run, self.ranks, self._objective, self._train_split = run, ranks, objective, train
        self._shared_state, self._store, self._saver, self._events = shared_state, store, saver, events
        self._stop_early = stop_early
        self._batches = Batches(run, train, ranks)
        self._agreement = Agreement(ranks)
        self._curve = Curve(metrics_file, store)
        self._maximized = maximized(run.training)
        self._pruned = False
        self._display: ProgressDisplay | None = None
        self._resumed_step: int | None = None
        check_augmentation(run.augment, spec)
        self.state = State(
            run,
            spec,
            ranks=ranks,
            peers=self._agreement.peers,
            device=device,
            environment=environment,
            weights=weights,
            measures=measures,
        )
        self._checkpoints = Checkpoints(self.state, store, saver, self._curve)
        batch_size = -(-self._batches.size // run.training.accumulation_steps)
        self._validation = Validation(self.state, objective, validation, self._agreement, batch_size=batch_size)
        waits = device.type != "cpu" or graph is not None
        self._divergence = Divergence(
            *(self.state, self._batches, self._agreement), saver=saver, events=events, waits_for_device=waits
        )
        given = (self.state, objective, self._batches, shared_state, self._divergence, saver)
        self._passes: Steps
        if self.state.step is not None:
            self._passes = OwnPasses(*given, self._agreement)
        elif graph is None:
            self._passes = Passes(*given)
        else:
            self._passes = GraphedPasses(
                Passes(*given, is_captured=True),
                graph,
                self.state,
                divergence=self._divergence,
                saver=saver,
                events=events,
                is_required=is_graph_required,
                split=train,
                batches=self._batches,
                keeps_gradients=recording is not None,
            )
        self._summaries = Summaries(
            *(recording, self.state, objective, self._batches, self._agreement),
            train=train,
            validation=validation,
            workspace=metrics_file.parent,
            store=store,
        )
        self._log = StepLog(self.state, self._agreement, self._batches, metrics_file.parent, store, events)

    def fit(self) -> Outcome:
        """Train until the run is finished, pruned, or asked to stop, and save the last commit."""
        ended: End = "finished"
        try:
            with self._kernels_watched():
                self.enter()
                self._train()
            ended = "pruned" if self._pruned else "finished"
        except DivergedError:
            self._log.add_pending()  # the end of the curve shows why
            raise
        except StopRequested:
            ended = "stopped"
            if self.state.progress.cursor.step == 0:
                return self._outcome(ended)
        except Exception as error:
            self._divergence.explain(error)
            if isinstance(error, RuntimeError | ValueError):
                explain(error)
                explain_single_value(error, self.run.training, self.ranks.world_size)
            raise
        finally:
            if self._display is not None:
                self._display.close()
        self._read_pending()
        self._checkpoints.save_last()
        return self._outcome(ended)

    def _kernels_watched(self) -> contextlib.AbstractContextManager[None]:
        """Tell once of each operation without a deterministic kernel, with which the training is not exact."""
        if self.run.training.determinism != "warn":
            return contextlib.nullcontext()
        told: set[str] = set()

        def met(operation: str) -> None:
            self.state.progress.exact = False
            if operation not in told:
                told.add(operation)
                logger.warning(
                    "%s has no deterministic kernel here: another training may give other weights (exact: false)",
                    operation,
                )

        return kernels_watched(met)

    def enter(self) -> None:
        """Set the state to that of the newest checkpoint, or of a new run; the warm-up leaves no trace in it."""
        if self.ranks.is_main:
            self._store.remove_leftovers()
        loaded = self._checkpoints.load()
        self._passes.warm_up(self._train_split, self._poll)
        self._checkpoints.restore(loaded)
        progress = self.state.progress
        step, epoch = progress.cursor.step, progress.cursor.epoch
        self._divergence.begin_at(step)
        self._resumed_step = step if loaded else None
        if self.ranks.is_main:
            logger.info("%s at step %d, epoch %d", "resumes" if loaded else "starts", step, epoch + 1)
            self._curve.write(progress.history)
            self._log.write()
            self._summaries.begin()
            self._saver.begin_at(step, self._saver.latest)
            self._shared_state.start_at(step)
            self._display = ProgressDisplay(
                self._batches.length,
                is_counted_in_steps=is_counted_in_steps(self.run.training),
                batch_size=self._batches.size,
                step=step,
                events=self._events,
            )
        _at("entered")

    def _train(self) -> None:
        cursor = self.state.progress.cursor
        if cursor.phase == "finish":
            return
        before = capture_rng(self.state.device)
        self._call("on_train_start")
        restore_rng(before)  # every attempt calls the hook, so its draws must not change the training
        self._pruned = self._is_pruned()
        while cursor.phase in ("train", "validate") and not self._pruned:
            if cursor.phase == "train":
                self.train_epoch()
            else:
                self._validate()
        if not self._pruned:
            self._call("on_train_end")

    def _outcome(self, ended: End) -> Outcome:
        latest, progress = self._saver.latest, self.state.progress
        # until the state is restored, the run's place is that of the checkpoint
        cursor = Cursor(**latest.about["cursor"]) if latest and not progress.cursor.step else progress.cursor
        return Outcome(
            ended,
            step=cursor.step,
            epoch=cursor.epoch,
            resumed_step=self._resumed_step,
            checkpoint=str(latest.path) if latest else None,
            history=progress.history,
        )

    def train_epoch(self) -> None:
        """Train from the cursor to the next validation or the end of the epoch, whichever comes first."""
        cursor, size, length = self.state.progress.cursor, self._batches.size, self._batches.length
        steps = min(length.next_validation(cursor.step) - cursor.step, length.steps_per_epoch - cursor.sample // size)
        end = cursor.sample + steps * size
        epoch = self._batches.epoch(cursor.epoch)
        starts = range(cursor.sample, end, size)
        rows = (micro_batch.rows for start in starts for micro_batch in epoch.micro_batches(start))
        self.state.set_training()
        self._passes.begin_epoch(cursor.epoch, epoch)
        with contextlib.closing(self._train_split.stream(rows)) as batches:
            while cursor.sample < end:
                if self._poll():
                    self._start_save()
                self._step(epoch.micro_batches(cursor.sample), batches)
        if length.is_validated(cursor.step):
            self._divergence.check_pending()
            cursor.phase = "validate"
            self._validation.start()
        elif self._next_epoch():
            self._call("on_epoch_end")

    def _next_epoch(self) -> bool:
        """Move the cursor to the next epoch if this one is done. A validation at its end belongs to it."""
        cursor = self.state.progress.cursor
        is_done = cursor.sample == self._batches.steps_per_epoch * self._batches.size
        if is_done:
            cursor.epoch, cursor.sample = cursor.epoch + 1, 0
        return is_done

    def _step(self, micro_batches: list[MicroBatch], batches: Iterator[Batch]) -> None:
        state, cursor = self.state, self.state.progress.cursor
        _at("window")
        losses = self._passes.step(micro_batches, batches, self._poll)
        state.commit(self._batches.size)
        self._divergence.check_if_due()
        self._log.add()
        self._summaries.add(micro_batches)
        if state.hooks is not None and state.hooks.has("on_step_end"):
            self._call("on_step_end", _mean(losses))
        _at("commit", state)
        self._shared_state.tick(self.ranks.local_rank, cursor.step)
        if self._display is not None:
            samples = state.progress.steps_since_validation * self._batches.size
            self._display.update(cursor.step, state.loss_sum, samples // self.ranks.world_size)

    @torch.inference_mode()
    def _validate(self) -> None:
        self._validation.run(self._save_if_due, self._tick)
        self._judge()

    def _save_if_due(self) -> None:
        if self._poll():
            with torch.inference_mode(False):  # the memory for copies outlives this mode, and must not belong to it
                self._start_save()
            self._saver.wait_copied()  # before a shared model swaps weights and averages in place, to validate

    def _tick(self) -> None:
        self._shared_state.tick(self.ranks.local_rank, self.state.progress.cursor.step)

    def _judge(self) -> None:
        """Record and judge the validation, and choose the next phase. All ranks decide alike."""
        state, progress, training = self.state, self.state.progress, self.run.training
        cursor, metric = progress.cursor, training.select_metric
        loss_sum = sum(value.item() for value in self._agreement.all_gather(state.loss_sum.detach().cpu()))
        row: EpochMetrics = {
            "epoch": self._batches.length.epoch_at(cursor.step),
            "step": cursor.step,
            "lr": learning_rate_of(state.optimizer),
            "train_loss": loss_sum / (progress.steps_since_validation * self._batches.size),
            **state.logged_means(self._agreement.all_gather),
            **self._validation.metrics(),
            **self._validation.own_metrics(),
        }
        check_finite(row)
        progress.history.append(row)
        is_best = selection.update_best(progress, row, metric, self._maximized)
        if is_best:
            if self._checkpoints.are_written_here:
                weights = state.inference_weights().items()
                state.best = {name: weight.detach().to("cpu", copy=True) for name, weight in weights}
            _at("best")
        if self.ranks.is_main:
            _at("metrics")
            self._curve.write(progress.history)
        if self._display is not None:
            self._display.validated(row, is_best=is_best)
        if isinstance(self.run.schedule, Plateau):
            progress.plateau.observe(metric, row[metric], self.run.schedule, self._maximized)
        is_exhausted = selection.is_exhausted(progress, row, training.early_stopping, self._maximized)
        is_last = cursor.step == self._batches.length.total or is_exhausted
        if is_last:
            selection.check_chosen(progress, metric)
        state.loss_sum.zero_()
        state.logged.zero_()
        cursor.val_index, cursor.phase = 0, "finish" if is_last else "train"
        is_epoch_done = self._next_epoch()
        self._pruned = not is_last and self._is_pruned()
        self._call("on_validation_end")
        if is_epoch_done:
            self._call("on_epoch_end")
        _at("epoch")

    def _is_pruned(self) -> bool:
        return self._stop_early is not None and self._stop_early(self.state.progress.history)

    def _call(self, hook: str, loss: torch.Tensor | None = None) -> None:
        """Call the user's function of that name, if there is one."""
        if self.state.hooks is None:
            return
        progress = self.state.progress
        self.state.hooks.call(
            hook,
            View(
                step=progress.cursor.step,
                epoch=progress.cursor.epoch,
                learning_rate=self._passes.learning_rate,
                loss=loss,
                history=tuple(progress.history),
                model=self.state.model,
            ),
        )

    def _poll(self) -> bool:
        """Return True if a save is due. All ranks get one answer.

        Raises StopRequested if any rank was asked to stop, and DivergedError if any has found that it diverged.
        """
        _at("poll")
        stop = bool(self._shared_state.stop_signal)
        due = False
        if self.ranks.is_main:
            stop = stop or self._shared_state.is_past_deadline(self._saver.longest_write_s)
            due = self._saver.is_due(self.state.progress.cursor.step)
        inexact = (not self.state.progress.exact,) if self.run.training.determinism == "warn" else ()
        stop, due, is_diverged, *met = self._agreement.any_of(stop, due, self._divergence.is_found, *inexact)
        if any(met):
            self.state.progress.exact = False  # of any rank
        if is_diverged:
            self._divergence.raise_found()
        if stop:
            raise StopRequested
        return due

    def _start_save(self) -> None:
        self._read_pending()
        self._checkpoints.start_save()

    def _read_pending(self) -> None:
        """Read what the device has computed so far, so that the state is complete and known to be finite."""
        self._divergence.check_pending()
        self._validation.add_pending()
        self._log.add_pending()


def _mean(losses: Losses) -> torch.Tensor:
    """Return the mean loss of the samples of several micro-batches."""
    return torch.stack([loss * samples for loss, samples in losses]).sum() / sum(samples for _, samples in losses)


def _at(point: str, *seen: object) -> None:
    sys.audit("everstep", point, *seen)

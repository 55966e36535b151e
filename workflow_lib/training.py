"""The training loop: a state machine that can be left at any instruction and entered again at the last commit.

    train ──epoch done──► validate ──epochs left──► train
                             └──last epoch, early stop──► finish

Between two optimizer steps parameters and moments do not change. What a forward pass does change, the generators and
the buffers of the model, is set aside at the start of a window of more than one micro-batch. So whenever the loop
looks up (before each optimizer step, between the micro-batches of a window, before each validation batch) the last
commit is whole in memory and can be saved at once; a resume repeats at most one window.

The order of the data is a function of seed and epoch. The ranks agree by one small all_reduce on a gloo group of
their own; only rank 0 looks at a clock, and only rank 0 writes.

``sys.audit("everstep", point, ...)`` names the places between which the tests kill; without a hook it does nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from workflow_lib import parallel, plugins
from workflow_lib.augment import Mixing, augmented, is_augmenting, is_mixing, numbered, refuse_unfit
from workflow_lib.checkpoint import CheckpointStore, read_state, read_tensors
from workflow_lib.config.parts import is_lower_better
from workflow_lib.errors import ConfigError, DivergedError, SaveError
from workflow_lib.files import write_atomic
from workflow_lib.hooks import Hooks, View
from workflow_lib.optim import Plateau, bare_step, build_optimizer, learning_rate
from workflow_lib.recompute import recompute_blocks
from workflow_lib.runtime.control import Control
from workflow_lib.runtime.log import EventLog
from workflow_lib.runtime.progress import Progress
from workflow_lib.runtime.ranks import Peers, Ranks
from workflow_lib.runtime.seed import capture_rng, derive, restore_rng, seed_everything
from workflow_lib.saver import Saver
from workflow_lib.tasks import Task, balanced_order

if TYPE_CHECKING:
    from workflow_lib.plan import RunConfig
    from workflow_lib.shards import Batch, MappedSplit, ModelSpec, Split

logger = logging.getLogger(__name__)

Phase = Literal["train", "validate", "finish"]
Row = dict[str, float]
StopEarly = Callable[[list[Row]], bool]

WARM_UP_PASSES = 2
PROBED_TOKENS = 8
UNSEEN_STEPS = 64  # on a device, so many steps may be done before one is seen to have diverged
SHOWN_SAMPLES = 20
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StopRequested(Exception):
    """Raised inside the loop when all ranks have agreed to stop."""


@dataclass
class Cursor:
    """Where the run is: optimizer steps done, samples of the epoch used, validation batches done."""

    phase: Phase = "train"
    epoch: int = 0
    step: int = 0
    sample: int = 0
    val_index: int = 0


@dataclass
class Progressing:
    """What the run knows besides its tensors; exactly this is ``state.json``."""

    cursor: Cursor = field(default_factory=Cursor)
    history: list[Row] = field(default_factory=list)
    best: Row | None = None
    bad_epochs: int = 0
    watched: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    validation: dict[str, float] = field(default_factory=dict)
    exact: bool = True

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progressing:
        """The state that ``dataclasses.asdict`` made."""
        fields = dict(value)
        return cls(**{**fields, "cursor": Cursor(**fields["cursor"]), "plateau": Plateau(**fields["plateau"])})


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as rank 0 tells the launcher."""

    ended: Literal["finished", "stopped", "pruned"]
    step: int
    epoch: int
    resumed_step: int | None
    checkpoint: str | None
    history: list[Row]


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether the metric improved: an accuracy by rising, anything else by falling."""
    if than is None:
        return True
    return value < than if is_lower_better(metric) else value > than


class Trainer:
    """One training process of a run."""

    def __init__(
        self,
        run: RunConfig,
        *,
        spec: ModelSpec,
        task: Task,
        train: Split | MappedSplit,
        validation: Split | MappedSplit,
        ranks: Ranks,
        device: torch.device,
        control: Control,
        store: CheckpointStore,
        saver: Saver,
        events: EventLog,
        environment: Mapping[str, Any],
        metrics_file: Path,
        stop_early: StopEarly | None = None,
    ) -> None:
        self.run, self.ranks, self.device, self._task = run, ranks, device, task
        self._train_split, self._validation_split = train, validation
        self._control, self._store, self._saver, self._events = control, store, saver, events
        self._environment = dict(environment)
        self._metrics_file = metrics_file
        self._stop_early = stop_early
        self._batch = run.training.batch_size
        self._steps_per_epoch = len(train) // self._batch
        if self._batch < ranks.world_size * run.training.accumulation:
            raise ConfigError(
                f"training.batch_size = {self._batch} is less than one sample for each of {ranks.world_size} ranks x "
                f"{run.training.accumulation} micro-batches"
            )
        self._windows = _micro_batches(self._batch, ranks, run.training.accumulation)
        self._validation_batch = math.ceil(self._batch / run.training.accumulation)
        self.state = Progressing()
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._peers = Peers(ranks.rank, ranks.world_size, self._group)
        self._set_aside: dict[str, dict[str, torch.Tensor]] | None = None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._best: dict[str, torch.Tensor] = {}
        self._pruned = False
        self._progress: Progress | None = None
        self._resumed_step: int | None = None
        self._waits_for_device = device.type != "cpu"
        self._unseen: list[tuple[int, torch.Tensor]] = []
        self._is_augmenting = is_augmenting(run.augment) or is_mixing(run.augment)
        refuse_unfit(run.augment, spec)
        hooks = run.training.hooks if ranks.is_main else None
        self._hooks = Hooks(plugins.load_hooks(hooks)) if hooks is not None else None
        self._build(spec)

    # -- one attempt ---------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains until the run is finished, pruned, or asked to stop; what was done is saved."""
        ended: Literal["finished", "stopped", "pruned"] = "finished"
        try:
            self.enter()
            self._go()
            ended = "pruned" if self._pruned else "finished"
        except RuntimeError as error:
            _explain(error)
            raise
        except StopRequested:
            ended = "stopped"
            if self.state.cursor.step == 0:
                return self._outcome(ended)
        finally:
            if self._progress is not None:
                self._progress.close()
        self._save_now()
        return self._outcome(ended)

    def _go(self) -> None:
        cursor = self.state.cursor
        if cursor.phase == "finish":
            return
        drawn = capture_rng(self.device)
        self._call("on_train_start")
        restore_rng(drawn)  # every attempt calls it: what it draws must not move the training
        self._pruned = self._is_pruned()
        while cursor.phase != "finish" and not self._pruned:
            if cursor.phase == "train":
                self.train_epoch()
            else:
                self._validate()
        if not self._pruned:
            self._call("on_train_end")

    def train_epoch(self) -> None:
        """The rest of the epoch, from the cursor."""
        cursor = self.state.cursor
        split, end = self._train_split, self._steps_per_epoch * self._batch
        order = self._order(cursor.epoch)
        is_repeating = self._is_augmenting and self.run.training.sampling == "balanced"
        numbers = (numbered(order, len(split)) if is_repeating else order).to(split.rows_on)
        order = order.to(split.rows_on)
        starts = range(cursor.sample, end, self._batch)
        parts = (order[at + start : at + stop] for at in starts for start, stop in self._windows)
        self._model.train()
        with contextlib.closing(split.stream(parts)) as batches:
            while cursor.sample < end:
                if self._look_up():
                    self._start_save()
                self._step(order, numbers, batches)
        self._look_back()
        cursor.phase, cursor.val_index = "validate", 0
        self.state.validation = dict.fromkeys(self._task.sums, 0.0)

    def _order(self, epoch: int) -> torch.Tensor:
        if self.run.training.sampling == "balanced":
            return balanced_order(self.run.seed, epoch, self._train_split.targets.cpu())
        return epoch_order(self.run.seed, epoch, len(self._train_split))

    def _step(self, order: torch.Tensor, numbers: torch.Tensor, batches: Iterator[Batch]) -> None:
        training, cursor = self.run.training, self.state.cursor
        _at("window")
        if len(self._windows) > 1:
            self._set_aside = {"rng": capture_rng(self.device), "buffers": self._buffers()}
        losses = []
        self._parallel.zero_grad()
        for number, (start, stop) in enumerate(self._windows):
            if number:
                self._look_up()
            part = slice(cursor.sample + start, cursor.sample + stop)
            _at("fetch", order[part])
            inputs, targets = self._task.parts(*next(batches))
            mixed = None
            if self._is_augmenting:
                key: Any = {"seed": self.run.seed, "epoch": cursor.epoch}
                inputs, mixed = augmented(self.run.augment, self._train_split, inputs, numbers[part], **key)
            is_last = number == len(self._windows) - 1
            with contextlib.nullcontext() if is_last else self._parallel.no_sync():
                # ranks wait for each other from here on: this tells who has not come
                self._control.tick(self.ranks.local_rank, cursor.step)
                _at("forward", inputs)
                with self._autocast():
                    outputs = self._parallel.forward(inputs)
                    loss = self._task.loss(outputs, targets) if mixed is None else self._mixed(outputs, targets, *mixed)
                _at("backward")
                share = (stop - start) * self.ranks.world_size / self._batch
                self._scaler.scale(loss if share == 1.0 else loss * share).backward()
            losses.append((loss.detach(), stop - start))
        self._parallel.take_gradients()
        self._saver.wait_copied()
        _at("optimizer")
        lr = self.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if training.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            norm = self._parallel.clip(training.clip_norm)
        self._watch(losses, norm)
        if self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._bare_step()
        _at("stepped")
        if self._ema is not None and training.ema_decay is not None:
            live = [parameter.detach() for parameter in self._parameters]
            torch._foreach_lerp_(list(self._ema.values()), live, 1 - training.ema_decay)
            _at("averaged")
        for one, samples in losses:
            self._loss_sum.add_(one, alpha=samples)
        cursor.step += 1
        cursor.sample += self._batch
        self._set_aside = None
        if self._hooks is not None and self._hooks.has("on_step_end"):
            self._call("on_step_end", _mean(losses))
        _at("commit", self)
        self._control.tick(self.ranks.local_rank, cursor.step)
        if self._progress is not None:
            self._progress.update(cursor.step, self._loss_sum, cursor.sample // self.ranks.world_size)

    def _mixed(self, outputs: torch.Tensor, targets: torch.Tensor, others: torch.Tensor, pairs: Mixing) -> torch.Tensor:
        mine, theirs = self._task.losses(outputs, targets), self._task.losses(outputs, others)
        return (pairs.weights * mine + (1 - pairs.weights) * theirs).mean()

    def _watch(self, losses: list[tuple[torch.Tensor, int]], norm: torch.Tensor | None) -> None:
        """A loss or gradient that is no number ends the training: on the CPU now, else at the next look back.

        A gradient that only overflowed the loss scale is not one: its step is left out, and the scale lowered.
        """
        seen = [one for one, _ in losses]
        if norm is not None and not self._scaler.is_enabled():
            seen.append(norm)
        elif not self._scaler.is_enabled():
            seen += [one.grad.sum() for one in self._parameters if one.grad is not None]
        if self._waits_for_device:
            self._unseen.append((self.state.cursor.step, torch.stack([one.float() for one in seen]).sum()))
            if len(self._unseen) == UNSEEN_STEPS:
                self._look_back()
        elif not all(math.isfinite(one.item()) for one in seen):
            self._diverge(self.state.cursor.step, [math.isfinite(one.item()) for one, _ in losses])

    def _look_back(self) -> None:
        """All steps up to here had finite losses and gradients: asked of a device that runs ahead, before each save."""
        if not self._unseen:
            return
        (steps, sums), self._unseen = zip(*self._unseen, strict=True), []
        for step, is_finite in zip(steps, torch.stack(sums).isfinite().tolist(), strict=True):
            if not is_finite:
                self._diverge(step, [])

    def _diverge(self, step: int, are_finite: list[bool]) -> NoReturn:
        """Ends the training before the step is saved, and names its samples; of a loss, those that it is of."""
        begun = (step - self.state.cursor.epoch * self._steps_per_epoch) * self._batch
        batch = self._order(self.state.cursor.epoch)[begun : begun + self._batch]
        guilty = [window for window, is_finite in zip(self._windows, are_finite, strict=False) if not is_finite]
        rows = [row for start, stop in guilty or [(0, self._batch)] for row in batch[start:stop].tolist()]
        what = "loss" if guilty else "gradient" if are_finite else "loss or gradient"
        where = {"step": step + 1, "epoch": self.state.cursor.epoch + 1, "samples": rows}
        self._events.append("diverged", what=what, **where)
        if not self._parallel.is_shared:
            self._saver.wait()  # a save that is under way is of an earlier state
        shown = ", ".join(map(str, rows[:SHOWN_SAMPLES])) + (", ..." if len(rows) > SHOWN_SAMPLES else "")
        raise DivergedError(
            f"the training diverged: a {what} of step {step + 1} (epoch {where['epoch']}) is not finite, and nothing "
            f"was saved since. Its samples, by their number in the training split (all are in events.jsonl): {shown}. "
            f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
        )

    @torch.inference_mode()
    def _validate(self) -> None:
        cursor, sums = self.state.cursor, self.state.validation
        split, size, world = self._validation_split, self._validation_batch, self.ranks.world_size
        self._model.eval()
        self._agree_on_buffers()
        number = math.ceil(len(split) / size)
        mine = range(cursor.val_index + self.ranks.rank, number, world)
        with contextlib.closing(split.stream(slice(one * size, (one + 1) * size) for one in mine)) as batches:
            while cursor.val_index < number:
                if self._look_up():
                    with torch.inference_mode(False):  # memory kept for copies must not belong to this mode
                        self._start_save()
                    self._saver.wait_copied()  # a shared model exchanges its weights for the averages to compute
                _at("validate")
                batch = next(batches, None)
                found = self._measure(*batch) if batch else torch.zeros(len(sums), dtype=torch.float64)
                if batch is None and self._parallel.is_shared:  # the others cannot compute without this rank's part
                    self._measure(*split.batch(slice(0, 1)))
                for one in self._of_each_rank(found):
                    for name, value in zip(self._task.sums, one.tolist(), strict=True):
                        sums[name] += value
                cursor.val_index += world
                self._refuse_divergence({"epoch": cursor.epoch + 1, "step": cursor.step, "val_loss": sums["loss"]})
                self._control.tick(self.ranks.local_rank, cursor.step)
        _at("validated")
        self._end_epoch()

    def _measure(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        inputs, targets = self._task.parts(inputs, targets)
        with self._autocast():
            outputs = self._parallel.serve(inputs, self._ema).float()
        return self._task.measure(outputs, targets)

    def _end_epoch(self) -> None:
        """The epoch's row is written and judged; the next phase is chosen. All ranks decide alike."""
        state, cursor, training = self.state, self.state.cursor, self.run.training
        loss_sum = sum(one.item() for one in self._of_each_rank(self._loss_sum.detach().cpu()))
        row: Row = {
            "epoch": cursor.epoch + 1,
            "step": cursor.step,
            "lr": self._optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / (self._steps_per_epoch * self._batch),
            **self._task.metrics(state.validation),
        }
        self._refuse_divergence(row)
        state.history.append(row)
        metric = training.select_metric
        is_best = is_better(metric, row[metric], state.best[metric] if state.best else None)
        if is_best:
            state.best = row
            self._best = {name: one.detach().cpu().clone() for name, one in self._served().items()}
            _at("best")
        if self.ranks.is_main:
            _at("metrics")
            self._keep_metrics()
        if self._progress is not None:
            self._progress.epoch(row, is_best=is_best)
        if self.run.schedule.name == "plateau":
            schedule = self.run.schedule
            state.plateau.observe(row[metric], not is_lower_better(metric), schedule.factor, schedule.patience)
        is_last = cursor.epoch + 1 == training.epochs or self._is_exhausted(row)
        self._loss_sum.zero_()
        cursor.epoch, cursor.sample, cursor.val_index = cursor.epoch + 1, 0, 0
        cursor.phase = "finish" if is_last else "train"
        self._pruned = not is_last and self._is_pruned()
        self._call("on_epoch_end")
        _at("epoch")

    def _is_exhausted(self, row: Row) -> bool:
        """Whether early stopping ends the run here."""
        stopping = self.run.training.early_stopping
        if stopping is None:
            return False
        value, state = row[stopping.metric], self.state
        margin = stopping.min_delta if is_lower_better(stopping.metric) else -stopping.min_delta
        if state.watched is None or is_better(stopping.metric, value + margin, state.watched):
            state.watched, state.bad_epochs = value, 0
        else:
            state.bad_epochs += 1
        return state.bad_epochs > stopping.patience

    def _is_pruned(self) -> bool:
        """Whether the caller, who sees the curve so far, has seen enough."""
        return self._stop_early is not None and self._stop_early(self.state.history)

    def _refuse_divergence(self, row: Row) -> None:
        for name, value in row.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"the training diverged: {name} is {value} after epoch {row['epoch']} (step {row['step']}). "
                    f"A lower optimizer.lr, a warm-up or training.clip_norm may help"
                )

    # -- agreement ------------------------------------------------------------------------------------------------

    def _look_up(self) -> bool:
        """Whether a save is due; raises StopRequested when any rank was asked to stop. All ranks get one answer."""
        _at("poll")
        stop = bool(self._control.stop_signal)
        due = False
        if self.ranks.is_main:
            stop = stop or self._control.is_past_deadline(self._saver.longest_write_s)
            due = self._saver.is_due(self.state.cursor.step)
        if self._group is not None:
            vote = torch.tensor([stop, due], dtype=torch.int32)
            dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self._group)
            stop, due = (bool(one) for one in vote.tolist())
        if stop:
            raise StopRequested
        return due

    def _of_each_rank(self, value: torch.Tensor) -> list[torch.Tensor]:
        """The value of every rank, in the order of ranks: sums over it do not depend on timing."""
        if self._group is None:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.ranks.world_size)]
        dist.all_gather(values, value, group=self._group)
        return values

    def _agree_on_buffers(self) -> None:
        """Every rank has the buffers of rank 0, the ones that are saved: each has seen its own samples only."""
        if self._group is not None:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, src=0)

    # -- state ----------------------------------------------------------------------------------------------------

    def _start_save(self) -> None:
        self._look_back()
        _at("save")
        ranks = self._rank_states()
        if self._writes:
            self._saver.start(*self._save(ranks))

    def _save_now(self) -> None:
        """The last commit is durable."""
        self._look_back()
        _at("final save")
        ranks = self._rank_states()
        if not self._writes:
            return
        self._saver.wait()
        is_sealed = self.state.cursor.phase == "finish"
        if self.ranks.is_main and is_sealed:
            self._seal_metrics()
        latest = self._saver.latest
        if self._agreed(latest is None or latest.about["cursor"] != asdict(self.state.cursor)):
            self._saver.finish(*self._save(ranks))
            if self._agreed(is_sealed and self._store.is_alone()):
                self._saver.finish(*self._save(ranks))  # one damaged file must not cost a finished run

    @property
    def _writes(self) -> bool:
        return self.ranks.is_main or self._parallel.is_shared

    def _agreed(self, answer: bool) -> bool:
        """The answer of rank 0, on all ranks that write."""
        return bool(self._peers.announce(answer)) if self._parallel.is_shared else answer

    def _save(self, ranks: list[dict[str, torch.Tensor]]) -> tuple[Any, ...]:
        """What the saver is given: step, tensors that move and rest, state, and where this rank's parts begin."""
        moving, places = self._parallel.files("moving", self._moving())
        resting, more = self._parallel.files("resting", self._resting(ranks))
        return self.state.cursor.step, moving, resting, self.record(), self._about(), {**places, **more}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """All tensors of this process that a checkpoint keeps, by group: for a look from outside at a commit."""
        rng = capture_rng(self.device)
        return {**self._moving(), "generators": rng, "loss": {"sum": self._loss_sum}}

    def _moving(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the next step changes."""
        buffers = self._set_aside["buffers"] if self._set_aside else {}
        optimizer = {
            f"{index}.{name}": value
            for index, values in self._optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if value is not None
        }
        moving = {"model": {**self._parallel.state(), **buffers}, "optimizer": optimizer}
        return moving if self._ema is None else {**moving, "ema": self._ema}

    def _resting(self, ranks: list[dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """What is replaced as a whole, never changed in place."""
        of_ranks = {f"{rank}.{name}": value for rank, values in enumerate(ranks) for name, value in values.items()}
        return {"ranks": of_ranks, **({"best": self._best} if self._best else {})}

    def _rank_states(self) -> list[dict[str, torch.Tensor]]:
        """Generators and loss sum of every rank, on rank 0."""
        rng = self._set_aside["rng"] if self._set_aside else capture_rng(self.device)
        _at("gather")
        return self._peers.collect({**rng, "loss_sum": self._loss_sum.detach().cpu().clone()})

    def record(self) -> dict[str, Any]:
        """All that a checkpoint keeps besides tensors, as JSON values."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._optimizer.state_dict()["param_groups"]]
        scaler = self._scaler.state_dict() if self._scaler.is_enabled() else None
        kept = {"hooks": self._hooks.state()} if self._hooks is not None else {}
        return {"progress": asdict(self.state), "optimizer": groups, "scaler": scaler, **kept}

    def _about(self) -> dict[str, Any]:
        cursor = self.state.cursor
        return {
            "cursor": asdict(cursor),
            "exact": self.state.exact,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "environment": self._environment,
        }

    def enter(self) -> None:
        """The state is that of the newest checkpoint, or of the start; nothing of the warm-up is left in it."""
        if self.ranks.is_main:
            self._store.remove_leftovers()
        _at("load")
        loaded = self._load()
        self._warm_up()
        if loaded is None:
            self._parallel.load(self._initial)
            seed_everything(derive(self.run.seed, "train"), self.ranks.rank)
        else:
            self._restore(*loaded)
        del self._initial
        if self.ranks.is_main:
            cursor = self.state.cursor
            logger.info("%s at step %d, epoch %d", "goes on" if loaded else "starts", cursor.step, cursor.epoch + 1)
            self._keep_metrics()
            self._saver.begin_at(self.state.cursor.step, self._saver.latest)
            self._control.start_at(self.state.cursor.step)
            self._progress = Progress(
                epochs=self.run.training.epochs,
                steps_per_epoch=self._steps_per_epoch,
                batch_size=self._batch,
                step=self.state.cursor.step,
                events=self._events,
            )
        _at("entered")

    def _load(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], dict[str, Any]] | None:
        """What rank 0 finds, on every rank: they never look at the disk one by one."""
        if self._parallel.is_shared:
            return self._load_shared()
        found = None
        if self.ranks.is_main and (latest := self._store.load_latest()):
            checkpoint, tensors, record = latest
            self._saver.latest = checkpoint
            found = (tensors, record, dict(checkpoint.about))
        return self._peers.announce(found)

    def _load_shared(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], dict[str, Any]] | None:
        latest = self._store.find_shared()
        if latest is None:
            return None
        self._saver.latest = latest
        tensors = self._parallel.read(latest.path, self._group)
        return {**tensors, "ranks": read_tensors(latest, "ranks")}, read_state(latest), dict(latest.about)

    def _restore(
        self, tensors: dict[str, dict[str, torch.Tensor]], record: dict[str, Any], about: dict[str, Any]
    ) -> None:
        self.state = Progressing.from_json(record["progress"])
        self._resumed_step = self.state.cursor.step
        self._parallel.load(tensors["model"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        shapes = self._optimizer.state_dict()["param_groups"]
        groups = [{**kept, "params": now["params"]} for kept, now in zip(record["optimizer"], shapes, strict=True)]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        if record["scaler"] is not None:
            self._scaler.load_state_dict(record["scaler"])
        if self._ema is not None:
            for name, value in tensors["ema"].items():
                self._ema[name].copy_(value)
        self._best = tensors.get("best", {})
        if self._hooks is not None:
            self._hooks.restore(record["hooks"])
        self._restore_ranks(tensors["ranks"], about)

    def _restore_ranks(self, ranks: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        """Generators as they were; with other ranks than before they start anew, and the run is no longer exact."""
        mine = {k.split(".", 1)[1]: v for k, v in ranks.items() if k.split(".", 1)[0] == str(self.ranks.rank)}
        changed = sorted(k for k in self._environment if self._environment[k] != about["environment"].get(k))
        if "world_size" not in changed:
            self._loss_sum.copy_(mine.pop("loss_sum"))
        else:
            total = sum((v for k, v in ranks.items() if k.endswith(".loss_sum")), torch.zeros((), dtype=torch.float64))
            self._loss_sum.copy_(total if self.ranks.is_main else torch.zeros_like(total))
        if changed and self.ranks.is_main:
            logger.warning("not exact from here: %s changed since the checkpoint", ", ".join(changed))
        self.state.exact = self.state.exact and not changed
        seed_everything(derive(self.run.seed, "train", self.state.cursor.step), self.ranks.rank)
        if "world_size" not in changed:
            restore_rng(mine)

    def _keep_metrics(self) -> None:
        """The file holds exactly the rows of the state: what a lost attempt wrote after its last save is cut off.

        Where the disk refuses, a warning says so, and the next epoch makes it good.
        """
        rows = self._metrics()
        try:
            self._store.refuse_if_taken_over()
            present = self._metrics_file.read_bytes() if self._metrics_file.exists() else b""
            if not rows.startswith(present):
                write_atomic(self._metrics_file, rows)
            elif present != rows:
                with self._metrics_file.open("ab") as file:
                    file.write(rows[len(present) :])
        except OSError as error:
            logger.warning("cannot write the metrics: %s. Training goes on", error)

    def _seal_metrics(self) -> None:
        """The metrics file is whole and durable: once the run is sealed, nobody would mend it."""
        try:
            self._store.refuse_if_taken_over()
            write_atomic(self._metrics_file, self._metrics())
        except OSError as error:
            raise SaveError(f"cannot write {self._metrics_file}: {error}") from error

    def _metrics(self) -> bytes:
        return "".join(_line(row) for row in self.state.history).encode()

    def _outcome(self, ended: Literal["finished", "stopped", "pruned"]) -> Outcome:
        latest = self._saver.latest
        # before the state is loaded, the place of the run is that of the checkpoint
        cursor = Cursor(**latest.about["cursor"]) if latest and not self.state.cursor.step else self.state.cursor
        return Outcome(
            ended,
            step=cursor.step,
            epoch=cursor.epoch,
            resumed_step=self._resumed_step,
            checkpoint=str(latest.path) if latest else None,
            history=self.state.history,
        )

    # -- construction ---------------------------------------------------------------------------------------------

    def _build(self, spec: ModelSpec) -> None:
        run = self.run
        seed_everything(derive(run.seed, "initial"))
        plugin = plugins.load("models", run.model.name)
        params = plugin.Params.model_validate(run.model.params)
        self._model: nn.Module = plugin.build(params, spec)
        _refuse_unfit(run.model.name, self._model, spec)
        if run.training.activation_checkpointing:
            recompute_blocks(self._model, self.device)
        compiled = self._compiled if run.training.compile else None
        self._parallel = parallel.build(run.training.parallel, self._model, self.device, self.ranks, compiled)
        self._parameters = self._parallel.parameters
        self._initial = {name: value.detach().clone() for name, value in self._parallel.state().items()}
        self._optimizer = build_optimizer(run.optimizer, self._model, self._parameters)
        self._bare_step = bare_step(self._optimizer)
        self._scaler = self._parallel.scaler(enabled=run.training.precision == "fp16")
        averaged = run.training.ema_decay is not None
        firsts = {id(p): name for name, p in reversed([*self._parallel.names()])}  # a tied weight has several names
        self._ema = {firsts[id(p)]: p.detach().clone() for p in self._parameters} if averaged else None

    def _compiled(self, model: nn.Module) -> nn.Module:
        """The model for the training steps; the first call with a shape compiles, always to the same code."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"training.compile: needs a C++ compiler, and there is no `{compiler}` here; install g++, or let CXX "
                f"name one, or leave training.compile false"
            )
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no processes of its own
        inductor.deterministic = self.run.training.determinism == "strict"  # nothing is chosen by its speed
        # a graph for each shape: one for all would be used or not by what came before, which a resume has not seen
        compiled: Any = torch.compile(model, dynamic=False)
        wrapped: nn.Module = compiled
        return wrapped

    def _warm_up(self) -> None:
        """No step is a first one: DDP sums gradients in other buckets in its first pass, and a compiler may fail."""
        if self.ranks.world_size == 1 and not self._parallel.is_shared and not self.run.training.compile:
            return
        try:
            self._pass_twice()
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                reason = str(error).partition("\n")[0]
                raise ConfigError(f"training.compile: this model cannot be compiled here: {reason}") from error
            raise

    def _pass_twice(self) -> None:
        self._model.train()
        inputs, targets = self._task.parts(*self._train_split.batch(slice(*self._windows[0])))
        for _ in range(WARM_UP_PASSES):
            self._look_up()
            _at("warm-up")
            with self._autocast():
                self._task.loss(self._parallel.forward(inputs), targets).backward()
        self._parallel.zero_grad()

    def _call(self, hook: str, loss: torch.Tensor | None = None) -> None:
        """The person's function of that name has run, if there is one."""
        if self._hooks is None:
            return
        cursor = self.state.cursor
        self._hooks.call(
            hook,
            View(
                step=cursor.step,
                epoch=cursor.epoch,
                learning_rate=self.learning_rate,
                loss=loss,
                history=tuple(self.state.history),
                model=self._model,
            ),
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(
            self.run.schedule,
            self.run.optimizer.lr,
            self.state.cursor.step,
            steps_per_epoch=self._steps_per_epoch,
            epochs=self.run.training.epochs,
            plateau=self.state.plateau,
        )

    def _served(self) -> dict[str, torch.Tensor]:
        """Weights and buffers that are validated and handed out: averaged ones where there is an average."""
        served = self._parallel.state()
        if self._ema is not None:
            averages = dict(zip(self._parameters, self._ema.values(), strict=True))
            served.update({name: averages[one] for name, one in self._parallel.names()})
        return served

    def _buffers(self) -> dict[str, torch.Tensor]:
        kept = self._model.state_dict().keys()
        return {name: one.detach().clone() for name, one in self._model.named_buffers() if name in kept}

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = DTYPES.get(self.run.training.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()


def _refuse_unfit(name: str, model: Any, spec: ModelSpec) -> None:
    """The model is one that can be trained, and gives what the data is compared with; asked with two small inputs."""
    if not isinstance(model, nn.Module) or not any(one.requires_grad for one in model.parameters()):
        what = "has no weights to train" if isinstance(model, nn.Module) else "is no torch.nn.Module"
        raise ConfigError(f"model.name: what build() of {name} returned {what}")
    is_language = spec.task == "language"
    shape = (2, min(spec.input_shape[0], PROBED_TOKENS)) if is_language else (2, *spec.input_shape)
    expected = (*shape, spec.outputs) if is_language else (2, spec.outputs)
    try:
        with torch.no_grad():
            given = model.eval()(torch.zeros(shape, dtype=torch.int64 if is_language else torch.float32))
    except RuntimeError as error:
        _explain(error)
        raise
    model.train()
    if not isinstance(given, torch.Tensor) or tuple(given.shape) != expected or not given.is_floating_point():
        shown = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        raise ConfigError(f"model.name: {name} gives {shown} for inputs {shape}; the data needs floats {expected}")


def epoch_order(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """The order of the samples in an epoch: a function, so that a resume is an index."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


def _micro_batches(batch_size: int, ranks: Ranks, accumulation: int) -> list[tuple[int, int]]:
    """Where this rank's micro-batches begin and end inside a global batch: consecutive, as equal as can be."""
    parts = ranks.world_size * accumulation
    edges = [batch_size * part // parts for part in range(parts + 1)]
    first = ranks.rank * accumulation
    return [(edges[part], edges[part + 1]) for part in range(first, first + accumulation)]


def _mean(losses: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """The mean loss of the samples of several micro-batches."""
    return torch.stack([one * samples for one, samples in losses]).sum() / sum(samples for _, samples in losses)


def _explain(error: RuntimeError) -> None:
    """Raises ConfigError where it was the strict determinism that refused a kernel."""
    if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
        raise ConfigError(
            f"training.determinism: strict refuses `{found[1]}`, which has no deterministic implementation here. Take "
            f"standard, with which runs are alike only up to rounding, or a model without it"
        ) from error


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def _at(point: str, *seen: object) -> None:
    sys.audit("everstep", point, *seen)

"""The training loop: a state machine that can be left at any instruction and entered again at the last commit.

    train ──epoch done──► validate ──epochs left──► train
                             └──last epoch, early stop──► finish

Whenever the loop looks up (before each optimizer step, between the micro-batches of a window, before each validation
batch) the last commit is whole in memory, as ``State`` has it, and can be saved at once; a resume repeats at most one
window.

The order of the data is a function of seed and epoch. The ranks agree by one small all_reduce on a gloo group of
their own; only rank 0 looks at a clock, and only rank 0 writes.

``sys.audit("everstep", point, ...)`` names the places between which the tests kill; without a hook it does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from workflow_lib.checkpoint import CheckpointStore, read_state, read_tensors
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.config.metrics import is_better, is_lower_better
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.runtime.seed import capture_rng, restore_rng
from workflow_lib.runtime.torch_internals import foreach_lerp_, unwrapped_step
from workflow_lib.store.events import EventLog
from workflow_lib.tasks import Objective
from workflow_lib.training.augment import augmented, is_augmenting, is_mixing, numbered, partners, refuse_unfit
from workflow_lib.training.divergence import Divergence, refuse_divergence
from workflow_lib.training.hooks import View
from workflow_lib.training.metrics_file import Curve
from workflow_lib.training.model import explain, explain_compiler, explain_single_value
from workflow_lib.training.optimizers import learning_rate
from workflow_lib.training.progress import Progress
from workflow_lib.training.sampling import Sampling
from workflow_lib.training.state import Cursor, Loaded, Row, State

if TYPE_CHECKING:
    from workflow_lib.data import Batch, MappedSplit, ModelSpec, Split
    from workflow_lib.plan import RunConfig

logger = logging.getLogger(__name__)

StopEarly = Callable[[list[Row]], bool]

WARM_UP_PASSES = 2
UNREAD = 32  # batches of a validation between two reads of its sums, since each read waits for the device
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StopRequested(Exception):
    """Raised inside the loop when all ranks have agreed to stop."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as rank 0 tells the launcher."""

    ended: Literal["finished", "stopped", "pruned"]
    step: int
    epoch: int
    resumed_step: int | None
    checkpoint: str | None
    history: list[Row]


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
        stop_early: StopEarly | None = None,
    ) -> None:
        self.run, self.ranks, self.device, self._objective = run, ranks, device, objective
        self._train_split, self._validation_split = train, validation
        self._shared_state, self._store, self._saver, self._events = shared_state, store, saver, events
        self._stop_early = stop_early
        self._sampling = Sampling(run, train, ranks)
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._peers = Peers(ranks.rank, ranks.world_size, self._group)
        self._curve = Curve(metrics_file, store)
        self._pruned = False
        self._progress: Progress | None = None
        self._resumed_step: int | None = None
        self._measured: list[torch.Tensor] = []  # sums of batches that are not added to ``validation`` yet
        self._is_augmenting = is_augmenting(run.augment) or is_mixing(run.augment)
        refuse_unfit(run.augment, spec)
        self.state = State(run, spec, ranks=ranks, peers=self._peers, device=device, environment=environment)
        self._unwrapped_step = unwrapped_step(self.state.optimizer)
        self._divergence = Divergence(
            self.state, self._sampling, saver=saver, events=events, waits_for_device=device.type != "cpu"
        )

    # -- one attempt ---------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains until the run is finished, pruned, or asked to stop; what was done is saved."""
        ended: Literal["finished", "stopped", "pruned"] = "finished"
        try:
            self.enter()
            self._go()
            ended = "pruned" if self._pruned else "finished"
        except (RuntimeError, ValueError) as error:
            explain(error)
            explain_single_value(error, self.run.training, self.ranks.world_size)
            raise
        except StopRequested:
            ended = "stopped"
            if self.state.progress.cursor.step == 0:
                return self._outcome(ended)
        finally:
            if self._progress is not None:
                self._progress.close()
        self._save_now()
        return self._outcome(ended)

    def _go(self) -> None:
        cursor = self.state.progress.cursor
        if cursor.phase == "finish":
            return
        drawn = capture_rng(self.device)
        self._call("on_train_start")
        restore_rng(drawn)  # every attempt calls it: what it draws must not move the training
        self._pruned = self._is_pruned()
        while cursor.phase in ("train", "validate") and not self._pruned:
            if cursor.phase == "train":
                self.train_epoch()
            else:
                self._validate()
        if not self._pruned:
            self._call("on_train_end")

    def train_epoch(self) -> None:
        """The rest of the epoch, from the cursor."""
        cursor, sampling, split = self.state.progress.cursor, self._sampling, self._train_split
        end = sampling.steps_per_epoch * sampling.batch
        order = sampling.order(cursor.epoch)
        is_repeating = self._is_augmenting and self.run.training.sampling == "balanced"
        numbers = (numbered(order, len(split)) if is_repeating else order).to(split.index_device)
        order = order.to(split.index_device)
        others = partners(self.run.augment, numbers, seed=self.run.seed, epoch=cursor.epoch, samples=len(split))
        needed = [order] if others is None else [order, others]
        starts = range(cursor.sample, end, sampling.batch)
        spans = (slice(at + start, at + stop) for at in starts for start, stop in sampling.windows)
        parts = (torch.cat([rows[span] for rows in needed]) for span in spans)
        self.state.model.train()
        with contextlib.closing(split.stream(parts)) as batches:
            while cursor.sample < end:
                if self._poll():
                    self._start_save()
                self._step(order, numbers, others, batches)
        self._divergence.look_back()
        cursor.phase, cursor.val_index = "validate", 0
        self.state.progress.validation = dict.fromkeys(self._objective.sums, 0.0)

    def _step(
        self, order: torch.Tensor, numbers: torch.Tensor, others: torch.Tensor | None, batches: Iterator[Batch]
    ) -> None:
        run, objective, state, sampling = self.run, self._objective, self.state, self._sampling
        training, cursor, parallel, scaler = run.training, state.progress.cursor, state.parallel, state.scaler
        _at("window")
        if len(sampling.windows) > 1:
            state.set_aside()
        losses = []
        parallel.zero_grad()
        for number, (start, stop) in enumerate(sampling.windows):
            if number:
                self._poll()
            part = slice(cursor.sample + start, cursor.sample + stop)
            _at("fetch", order[part])
            inputs, targets = objective.parts(*next(batches))
            mixed = None
            if self._is_augmenting:
                own, other = numbers[part], None if others is None else others[part]
                key: Any = {"seed": run.seed, "epoch": cursor.epoch}
                inputs, targets, mixed = augmented(run.augment, inputs, targets, own, other, **key)
            is_last = number == len(sampling.windows) - 1
            with contextlib.nullcontext() if is_last else parallel.no_sync():
                # ranks wait for each other from here on: this tells who has not come
                self._shared_state.tick(self.ranks.local_rank, cursor.step)
                _at("forward", inputs)
                with self._autocast():
                    outputs = parallel.forward(inputs)
                    if mixed is None:
                        loss = objective.loss(outputs, targets)
                    else:
                        loss = objective.mixed_loss(outputs, targets, *mixed)
                _at("backward")
                share = (stop - start) * self.ranks.world_size / sampling.batch
                scaler.scale(loss if share == 1.0 else loss * share).backward()
            losses.append((loss.detach(), stop - start))
        parallel.take_gradients()
        self._saver.wait_copied()
        _at("optimizer")
        lr = self.learning_rate
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if training.clip_norm is not None:
            scaler.unscale_(state.optimizer)
            norm = parallel.clip(training.clip_norm)
        self._divergence.watch(losses, norm)
        if scaler.is_enabled():
            scaler.step(state.optimizer)
            scaler.update()
        else:
            self._unwrapped_step()
        _at("stepped")
        if state.ema is not None and training.ema_decay is not None:
            live = [parameter.detach() for parameter in parallel.parameters]
            # with few steps done, so that the first weights, drawn at random, do not stay in the average
            decay = min(training.ema_decay, (1 + cursor.step) / (10 + cursor.step))
            foreach_lerp_(list(state.ema.values()), live, 1 - decay)
            _at("averaged")
        for one, samples in losses:
            state.loss_sum.add_(one, alpha=samples)
        state.commit(sampling.batch)
        if state.hooks is not None and state.hooks.has("on_step_end"):
            self._call("on_step_end", _mean(losses))
        _at("commit", state)
        self._shared_state.tick(self.ranks.local_rank, cursor.step)
        if self._progress is not None:
            self._progress.update(cursor.step, state.loss_sum, cursor.sample // self.ranks.world_size)

    @torch.inference_mode()
    def _validate(self) -> None:
        state, cursor = self.state, self.state.progress.cursor
        split, world = self._validation_split, self.ranks.world_size
        nothing = torch.zeros(len(self._objective.sums), dtype=torch.float64, device=self.device)
        state.model.eval()
        self._agree_on_buffers()
        size = math.ceil(self._sampling.batch / self.run.training.accumulation_steps)
        number = math.ceil(len(split) / size)
        mine = range(cursor.val_index + self.ranks.rank, number, world)
        with contextlib.closing(split.stream(slice(one * size, (one + 1) * size) for one in mine)) as batches:
            while cursor.val_index < number:
                if self._poll():
                    with torch.inference_mode(False):  # memory kept for copies must not belong to this mode
                        self._start_save()
                    self._saver.wait_copied()  # a shared model exchanges its weights for the averages to compute
                _at("validate")
                batch = next(batches, None)
                self._measured.append(self._measure(*batch) if batch else nothing)
                if batch is None and state.parallel.is_shared:  # the other ranks need this rank's part of the weights
                    self._measure(*split.batch(slice(0, 1)))
                cursor.val_index += world
                if len(self._measured) == UNREAD:
                    self._add_up()
                self._shared_state.tick(self.ranks.local_rank, cursor.step)
        self._add_up()
        _at("validated")
        self._end_epoch()

    def _add_up(self) -> None:
        """Add the measured batches to the sums of the validation, in the order of batches, then of ranks.

        A collective: all ranks call it, with the same number of measured batches.
        """
        if not self._measured:
            return
        cursor, sums = self.state.progress.cursor, self.state.progress.validation
        by_rank = self._of_each_rank(torch.stack(self._measured).cpu())
        self._measured = []
        for batch in zip(*(values.tolist() for values in by_rank), strict=True):
            for values in batch:
                for name, value in zip(self._objective.sums, values, strict=True):
                    sums[name] += value
        refuse_divergence({"epoch": cursor.epoch + 1, "step": cursor.step, "val_loss": sums["loss"]})

    def _measure(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        inputs, targets = self._objective.parts(inputs, targets)
        with self._autocast():
            outputs = self.state.parallel.eval_forward(inputs, self.state.ema).float()
        return self._objective.measure(outputs, targets)

    def _end_epoch(self) -> None:
        """The epoch's row is written and judged; the next phase is chosen. All ranks decide alike."""
        state, progress, training = self.state, self.state.progress, self.run.training
        cursor = progress.cursor
        loss_sum = sum(one.item() for one in self._of_each_rank(state.loss_sum.detach().cpu()))
        row: Row = {
            "epoch": cursor.epoch + 1,
            "step": cursor.step,
            "lr": state.optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / (self._sampling.steps_per_epoch * self._sampling.batch),
            **self._objective.metrics(progress.validation),
        }
        refuse_divergence(row)
        progress.history.append(row)
        metric = training.select_metric
        is_best = is_better(metric, row[metric], progress.best[metric] if progress.best else None)
        if is_best:
            progress.best = row
            if self._writes:
                state.best = {name: one.detach().to("cpu", copy=True) for name, one in state.served().items()}
            _at("best")
        if self.ranks.is_main:
            _at("metrics")
            self._curve.keep(progress.history)
        if self._progress is not None:
            self._progress.epoch(row, is_best=is_best)
        if self.run.schedule.name == "plateau":
            schedule = self.run.schedule
            progress.plateau.observe(row[metric], not is_lower_better(metric), schedule.factor, schedule.patience)
        is_last = cursor.epoch + 1 == training.epochs or self._is_exhausted(row)
        state.loss_sum.zero_()
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
        value, progress = row[stopping.metric], self.state.progress
        margin = stopping.min_delta if is_lower_better(stopping.metric) else -stopping.min_delta
        if progress.watched is None or is_better(stopping.metric, value + margin, progress.watched):
            progress.watched, progress.bad_epochs = value, 0
        else:
            progress.bad_epochs += 1
        return progress.bad_epochs > stopping.patience

    def _is_pruned(self) -> bool:
        """Whether the caller, who sees the curve so far, has seen enough."""
        return self._stop_early is not None and self._stop_early(self.state.progress.history)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(
            self.run.schedule,
            self.run.optimizer.lr,
            self.state.progress.cursor.step,
            steps_per_epoch=self._sampling.steps_per_epoch,
            epochs=self.run.training.epochs,
            plateau=self.state.progress.plateau,
        )

    def _call(self, hook: str, loss: torch.Tensor | None = None) -> None:
        """The person's function of that name has run, if there is one."""
        if self.state.hooks is None:
            return
        progress = self.state.progress
        self.state.hooks.call(
            hook,
            View(
                step=progress.cursor.step,
                epoch=progress.cursor.epoch,
                learning_rate=self.learning_rate,
                loss=loss,
                history=tuple(progress.history),
                model=self.state.model,
            ),
        )

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = DTYPES.get(self.run.training.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    # -- agreement ------------------------------------------------------------------------------------------------

    def _poll(self) -> bool:
        """Whether a save is due; raises StopRequested when any rank was asked to stop. All ranks get one answer."""
        _at("poll")
        stop = bool(self._shared_state.stop_signal)
        due = False
        if self.ranks.is_main:
            stop = stop or self._shared_state.is_past_deadline(self._saver.longest_write_s)
            due = self._saver.is_due(self.state.progress.cursor.step)
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
            for buffer in self.state.model.buffers():
                dist.broadcast(buffer, src=0)

    # -- saves ----------------------------------------------------------------------------------------------------

    def _start_save(self) -> None:
        self._divergence.look_back()
        self._add_up()
        _at("save")
        ranks = self.state.of_ranks()
        if self._writes:
            self._saver.start(*self.state.snapshot(ranks))

    def _save_now(self) -> None:
        """The last commit is durable."""
        self._divergence.look_back()
        self._add_up()
        _at("final save")
        ranks, progress = self.state.of_ranks(), self.state.progress
        if not self._writes:
            return
        self._saver.wait()
        is_sealed = progress.cursor.phase == "finish"
        if self.ranks.is_main and is_sealed:
            self._curve.seal(progress.history)
        latest = self._saver.latest
        if self._agreed(latest is None or latest.about["cursor"] != asdict(progress.cursor)):
            self._saver.finish(*self.state.snapshot(ranks))
            if self._agreed(is_sealed and self._store.is_alone()):
                self._saver.finish(*self.state.snapshot(ranks))  # one damaged file must not cost a finished run

    @property
    def _writes(self) -> bool:
        return self.ranks.is_main or self.state.parallel.is_shared

    @property
    def _reserves(self) -> bool:
        """True if memory for saves is allocated before the first step, since pinning it would delay the first save."""
        return self._writes and self._saver.device.type == "cuda"

    def _agreed(self, answer: bool) -> bool:
        """The answer of rank 0, on all ranks that write."""
        return bool(self._peers.broadcast(answer)) if self.state.parallel.is_shared else answer

    # -- entry ----------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """The state is that of the newest checkpoint, or of the start; nothing of the warm-up is left in it."""
        if self.ranks.is_main:
            self._store.remove_leftovers()
        _at("load")
        loaded = self._load()
        self._warm_up()
        shapes = self.state.layout() if loaded is None and self._reserves else None
        self.state.begin(loaded)
        if self._reserves:
            self._saver.reserve(shapes or self.state.moving())
        progress = self.state.progress
        step, epoch = progress.cursor.step, progress.cursor.epoch
        self._resumed_step = step if loaded else None
        if self.ranks.is_main:
            logger.info("%s at step %d, epoch %d", "goes on" if loaded else "starts", step, epoch + 1)
            self._curve.keep(progress.history)
            self._saver.begin_at(step, self._saver.latest)
            self._shared_state.start_at(step)
            self._progress = Progress(
                epochs=self.run.training.epochs,
                steps_per_epoch=self._sampling.steps_per_epoch,
                batch_size=self._sampling.batch,
                step=step,
                events=self._events,
            )
        _at("entered")

    def _load(self) -> Loaded | None:
        """What rank 0 finds, on every rank: they never look at the disk one by one."""
        if self.state.parallel.is_shared:
            return self._load_shared()
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        found = None
        if self.ranks.is_main and (latest := self._store.load_latest()):
            checkpoint, tensors, record = latest
            self._saver.latest = checkpoint
            found = (record, dict(checkpoint.about))
        told = self._peers.broadcast(found)
        if told is None:
            return None
        best = {"best": tensors.pop("best")} if "best" in tensors else {}  # only rank 0 saves the best weights
        return {**self._peers.broadcast_tensors(tensors), **best}, *told

    def _load_shared(self) -> Loaded | None:
        latest = self._store.find_shared()
        if latest is None:
            return None
        self._saver.latest = latest
        tensors = self.state.parallel.read(latest.path)
        return {**tensors, "ranks": read_tensors(latest, "ranks")}, read_state(latest), dict(latest.about)

    def _warm_up(self) -> None:
        """No step is a first one: DDP sums gradients in other buckets in its first pass, and a compiler may fail."""
        if self.ranks.world_size == 1 and not self.state.parallel.is_shared and not self.run.training.compile:
            return
        try:
            is_compiled = self.run.training.compile
            with self._shared_state.working(self.ranks.local_rank) if is_compiled else contextlib.nullcontext():
                self._pass_twice()
        except RuntimeError as error:
            explain_compiler(error)
            raise

    def _pass_twice(self) -> None:
        self.state.model.train()
        windows = {stop - start: slice(start, stop) for start, stop in self._sampling.windows}
        for window in windows.values():  # each size is compiled separately
            inputs, targets = self._objective.parts(*self._train_split.batch(window))
            for _ in range(WARM_UP_PASSES):
                self._poll()
                _at("warm-up")
                with self._autocast():
                    self._objective.loss(self.state.parallel.forward(inputs), targets).backward()
        self.state.parallel.zero_grad()

    def _outcome(self, ended: Literal["finished", "stopped", "pruned"]) -> Outcome:
        latest, progress = self._saver.latest, self.state.progress
        # before the state is loaded, the place of the run is that of the checkpoint
        cursor = Cursor(**latest.about["cursor"]) if latest and not progress.cursor.step else progress.cursor
        return Outcome(
            ended,
            step=cursor.step,
            epoch=cursor.epoch,
            resumed_step=self._resumed_step,
            checkpoint=str(latest.path) if latest else None,
            history=progress.history,
        )


def _mean(losses: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """The mean loss of the samples of several micro-batches."""
    return torch.stack([one * samples for one, samples in losses]).sum() / sum(samples for _, samples in losses)


def _at(point: str, *seen: object) -> None:
    sys.audit("everstep", point, *seen)

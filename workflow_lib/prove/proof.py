"""Test of exact resume on the user's own model and data: train without faults, train with kills, compare every bit.

Both trainings write a trace of digests: samples, inputs, generators, loss, weights, optimizer. In this order, a
difference in one explains those after it, so the first one names the state that was not restored, and the step.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import checkpoint, plan
from workflow_lib.data import Manifest, prepare
from workflow_lib.errors import EverstepError, TryAgain
from workflow_lib.launch import commands
from workflow_lib.plan import user_code
from workflow_lib.prove import faults
from workflow_lib.prove.child import forked, tail
from workflow_lib.prove.trace import Tracer, first_difference, read_trace
from workflow_lib.results import source_weights
from workflow_lib.results.layout import RESULTS
from workflow_lib.runtime import device, forking
from workflow_lib.store import final_checkpoint, layout
from workflow_lib.store.layout import workspace_path
from workflow_lib.store.lease import Lease

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

# points that every step passes; saves are not among them: a short run on a slow disk may not reach one
POINTS = ("fetch", "forward", "backward", "optimizer", "stepped", "commit", "poll")
TARGETS: tuple[faults.Target, ...] = ("self", "self", "launcher", "group")
MAX_IDLE = 20  # attempts in a row without a new checkpoint, after which the test gives up


@dataclass(frozen=True)
class Verdict:
    """The result of the test: how many kills struck of those asked for, and the first difference, None without one."""

    steps: int
    kills: int
    asked: int
    attempts: int
    difference: str | None

    def __str__(self) -> str:
        if self.difference is not None:
            return f"NOT exact after {self.kills} kills: {self.difference}"
        left = f" (the training ended before the other {self.asked - self.kills})" if self.kills < self.asked else ""
        return (
            f"exact: {self.steps} steps, {self.kills} kills{left}, {self.attempts} attempts; weights, optimizer, "
            f"generators, samples and metrics are the same bits"
        )


def prove(
    experiment: Experiment,
    *,
    kills: int,
    folder: Path,
    seed: int = 0,
    show: Callable[[str], None] = print,
) -> Verdict:
    """Test the experiment's first run. ``folder`` must not exist; it is kept only if something differs.

    Raises ConfigError, before anything is written, if forked attempts could not use the device.
    """
    _import_once()
    runtime = experiment.runtime
    if device.resolve(runtime.device, runtime.nproc - 1).type == "cuda":
        forking.check_cuda_not_started()
    folder.mkdir(parents=True)
    with Lease.acquire(folder, "prove", timeout_s=60.0):  # `everstep clean` leaves leased folders alone
        return _prove(experiment, kills, folder, seed, show)


def _prove(experiment: Experiment, kills: int, folder: Path, seed: int, show: Callable[[str], None]) -> Verdict:
    run = plan.expand(experiment)[0]
    data = _prepare(run, folder)
    if isinstance(data, str):
        return Verdict(0, 0, kills, 0, data)
    straight = Training(experiment, run, data, folder / "straight")
    show(f"{run.id}: training without faults")
    straight.attempt(None)
    steps = straight.final().step
    broken = Training(
        _with_frequent_saves(experiment, max(1, steps // (3 * (kills + 1)))), run, data, folder / "killed"
    )
    done, attempts = _train_under_kills(broken, kills, steps, random.Random(seed), show)
    difference = compare(straight, broken)
    if difference is not None:
        # are kills the cause, or does the training differ from itself without them?
        again = Training(experiment, run, data, folder / "again")
        again.attempt(None)
        if (unkilled := compare(straight, again)) is not None:
            difference = f"two trainings that nothing interrupted differ: {unkilled}"
    else:
        shutil.rmtree(folder)
    return Verdict(steps, done, kills, attempts, difference)


def _import_once() -> None:
    """Import in the parent what every forked attempt needs."""
    from torch.distributed.launcher import api  # noqa: F401

    import workflow_lib.orchestrator
    import workflow_lib.training.trainer  # noqa: F401
    from workflow_lib.runtime.torch_internals import import_compiler

    import_compiler()  # by far the slowest


def _train_under_kills(
    training: Training, kills: int, steps: int, rng: random.Random, show: Callable[[str], None]
) -> tuple[int, int]:
    """Train to the end; return the number of kills that struck, and of attempts."""
    struck, attempts, idle = 0, 0, 0
    while True:
        fault = None
        if struck < kills:
            after = (struck + 1) * steps // (kills + 1)
            # metrics of the user have a state only in a validation, so the first stop is in one
            is_first = struck == 0 and training.has_own_metrics
            fault = _in_validation(after) if is_first else _choose(rng, after, training)
        code = training.attempt(fault)
        attempts += 1
        if code == 0:
            if struck == 0:
                raise EverstepError(f"no kill struck before the end of the training ({steps} steps): nothing is proved")
            return struck, attempts
        idle = 0 if training.has_moved() else idle + 1
        if idle > MAX_IDLE:
            raise EverstepError(f"{MAX_IDLE} attempts in a row saved nothing; their log: {training.log}")
        if fault is not None:
            struck += 1
            where = f"{fault.signal} to {fault.target} at {fault.point!r}"
            show(f"kill {struck}/{kills}: {where}; step {training.step()}/{steps} saved")


def _in_validation(step: int) -> faults.Fault:
    """Return a stop in the first validation after that step, once it has measured a batch."""
    return faults.Fault("validate", 2, "SIGTERM", from_step=step)


def _choose(rng: random.Random, step: int, training: Training) -> faults.Fault:
    """Return a fault soon after that step, at a random point of the loop, with a random signal and target."""
    point = rng.choice(POINTS)
    count = rng.randint(1, training.accumulation_steps) if point in ("fetch", "forward", "backward") else 1
    name = rng.choice(("SIGKILL", "SIGTERM"))
    return faults.Fault(point, count, name, from_step=max(step - 1, training.step()), target=rng.choice(TARGETS))


class Training:
    """One training of the run in its own store. Each attempt is a forked process."""

    def __init__(self, experiment: Experiment, run: plan.Run, data: Path, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.accumulation_steps = run.config.training.accumulation_steps
        self.has_own_metrics = bool(run.config.training.metrics)
        self._experiment, self._run, self._data, self.folder = experiment, run, data, folder
        self._work = folder / "work"
        self._seen: str | None = None
        folder.mkdir()
        self._work.mkdir()
        # all trainings share the prepared data, but no run and no checkpoint
        layout.data_dir(self._work).symlink_to(layout.data_dir(data.parent / "work").resolve())
        plan.freeze(run.config, self._work)
        weights = source_weights.required(run.config, RESULTS, experiment.name)
        code = user_code.digest(run.config, source_weights.digests_of(weights))
        self.workspace = workspace_path(self._work, run.digest, Manifest.load(data).digest, code)

    def attempt(self, fault: faults.Fault | None) -> int:
        """Run one attempt and return its exit code, 0 if the run is finished.

        Raises EverstepError if it fails although there is no fault.
        """
        with forked(self.log) as child:
            if child.is_here:
                faults.install([fault] if fault else [])
                sys.addaudithook(Tracer(self.folder).watch)
                commands.train(
                    self._experiment,
                    run=self._run.digest,
                    data=self._data,
                    work=self._work,
                    output=self.folder / "outputs" / "train.json",
                )
        if child.code not in (0, TryAgain.exit_code) and fault is None:
            raise EverstepError(f"the training fails without a fault; its log: {self.log}\n{tail(self.log)}")
        return child.code

    def step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        paths = checkpoint.published(layout.checkpoints_dir(self.workspace))
        return checkpoint.read_manifest(paths[-1]).step if paths else 0

    def has_moved(self) -> bool:
        """Return True if there is a newer checkpoint than at the last call."""
        paths = checkpoint.published(layout.checkpoints_dir(self.workspace))
        newest = paths[-1].name if paths else None
        moved, self._seen = newest != self._seen, newest
        return moved

    def final(self) -> checkpoint.Checkpoint:
        """Return the final checkpoint."""
        found = final_checkpoint.find_final_checkpoint(self.workspace)
        if found is None:
            raise EverstepError(f"the training ended without a final checkpoint; its log: {self.log}")
        return found


def compare(straight: Training, other: Training) -> str | None:
    """Return the first difference and where it is, or None."""
    if (difference := first_difference(read_trace(straight.folder), read_trace(other.folder))) is not None:
        return difference
    first, second = straight.final(), other.final()
    if first.step != second.step:
        return f"step: the training without faults ended at step {first.step}, the other at step {second.step}"
    for name, entry in first.manifest["files"].items():
        if name not in second.manifest["files"]:
            return f"{name} is missing from the final state (step {first.step})"
        if second.manifest["files"].get(name) != entry:
            return f"{_difference(first, second, name)} of the final state (step {first.step})"
    if layout.metrics_file(straight.workspace).read_bytes() != layout.metrics_file(other.workspace).read_bytes():
        return "metrics.jsonl: the curves differ"
    logs = [layout.steps_file(training.workspace) for training in (straight, other)]
    if any(path.exists() for path in logs) and logs[0].read_bytes() != logs[1].read_bytes():
        return "steps.jsonl: the logs of steps differ"
    return None


def _difference(first: checkpoint.Checkpoint, second: checkpoint.Checkpoint, name: str) -> str:
    if name == checkpoint.STATE:
        return f"{name}: {_first_key(checkpoint.read_state(first), checkpoint.read_state(second))}"
    from safetensors.torch import load_file

    ours, theirs = load_file(first.path / name), load_file(second.path / name)
    for key in sorted(ours):
        if key not in theirs or ours[key].numpy().tobytes() != theirs[key].numpy().tobytes():
            return f"{name}: {key}"
    return name


def _first_key(first: Any, second: Any, path: str = "") -> str:
    """Return the path of the first key at which two JSON values differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                return _first_key(first.get(key), second.get(key), f"{path}.{key}" if path else key)
    return path


def _prepare(run: plan.Run, folder: Path) -> Path | str:
    """Prepare the data twice. Return the path of its manifest or, if they differ, a sentence that says so."""
    manifests = []
    for name in ("first", "second"):
        path = folder / name / "manifest.json"
        with forked(folder / "data.txt") as child:
            if child.is_here:
                settings = plan.data_settings(run.config)
                prepare(settings, Path.cwd(), folder / name / "work").save(path)
        if child.code != 0:
            raise EverstepError(f"the data cannot be prepared: {tail(folder / 'data.txt')}")
        manifests.append(Manifest.load(path))
    if manifests[0].digest != manifests[1].digest:
        return "data: preparing it twice gives different data (a random number that does not come from a seed?)"
    return folder / "first" / "manifest.json"


def _with_frequent_saves(experiment: Experiment, steps: int) -> Experiment:
    often = experiment.checkpoint.model_copy(update={"interval_steps": steps, "max_stalled_attempts": 10_000})
    return experiment.model_copy(update={"checkpoint": often})

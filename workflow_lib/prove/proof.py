"""Proof of exact resume on a person's own model and data: train straight, train under kills, compare every bit.

Both trainings leave a trace, one line for each optimizer step and rank, of digests in the order of cause: the samples
chosen, the inputs, the generators, the loss, the weights, the optimizer. A step that a kill made the run repeat leaves
its line again. The first line that differs from the straight run names what was not restored, and where.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import checkpoint, plan
from workflow_lib.checkpoint import safetensors
from workflow_lib.data import Manifest, prepare
from workflow_lib.errors import EverstepError, TryAgain
from workflow_lib.launch import commands
from workflow_lib.plan import user_code
from workflow_lib.prove import faults
from workflow_lib.runtime import device, forking
from workflow_lib.store import final_checkpoint, layout
from workflow_lib.store.layout import workspace_path
from workflow_lib.store.lease import Lease
from workflow_lib.store.orphans import exit_with_parent

if TYPE_CHECKING:
    import torch

    from workflow_lib.config import Experiment
    from workflow_lib.training.state import State

ORDER = ("samples", "inputs", "generators", "loss", "model", "optimizer", "ema", "state")
# each comes in every step; a save does not, where the disk is slow: a kill there might never strike
POINTS = ("fetch", "forward", "backward", "optimizer", "stepped", "commit", "poll")
TARGETS: tuple[faults.Target, ...] = ("self", "self", "launcher", "group")
UNPRODUCTIVE = 20  # attempts without a kill or an end, after which the proof itself gives up


@dataclass(frozen=True)
class Verdict:
    """What the proof found; ``difference`` is None when every bit is equal."""

    steps: int
    kills: int
    attempts: int
    difference: str | None

    def __str__(self) -> str:
        if self.difference is None:
            return (
                f"exact: {self.steps} steps, {self.kills} kills, {self.attempts} attempts; weights, optimizer, "
                f"generators, samples and metrics are the same bits"
            )
        return f"NOT exact after {self.kills} kills: {self.difference}"


def prove(
    experiment: Experiment,
    *,
    kills: int,
    folder: Path,
    seed: int = 0,
    show: Callable[[str], None] = print,
) -> Verdict:
    """The verdict on the experiment's first run. ``folder`` is new, and is kept only when something differs.

    Raises ConfigError, before anything is written, where its attempts could not use the device.
    """
    _import_once()
    runtime = experiment.runtime
    if device.resolve(runtime.device, runtime.nproc - 1).type == "cuda":
        forking.refuse_started_cuda()
    folder.mkdir(parents=True)
    with Lease.acquire(folder, "prove", timeout_s=60.0):  # so that nobody takes it for a leftover
        return _prove(experiment, kills, folder, seed, show)


def _prove(experiment: Experiment, kills: int, folder: Path, seed: int, show: Callable[[str], None]) -> Verdict:
    run = plan.expand(experiment)[0]
    data = _prepare(run, folder)
    if isinstance(data, str):
        return Verdict(0, 0, 0, data)
    straight = Training(experiment, run, data, folder / "straight")
    show(f"{run.id}: training straight")
    straight.attempt(None)
    steps = straight.sealed().step
    broken = Training(
        _with_frequent_saves(experiment, max(1, steps // (3 * (kills + 1)))), run, data, folder / "killed"
    )
    done, attempts = _train_under_kills(broken, kills, steps, random.Random(seed), show)
    difference = compare(straight, broken)
    if difference is not None:
        again = Training(experiment, run, data, folder / "again")
        again.attempt(None)
        if (unkilled := compare(straight, again)) is not None:
            difference = f"two trainings that nothing interrupted differ already: {unkilled}"
    else:
        shutil.rmtree(folder)
    return Verdict(steps, done, attempts, difference)


def _import_once() -> None:
    """What every attempt needs is imported here, in their parent."""
    from torch.distributed.launcher import api  # noqa: F401

    import workflow_lib.orchestrator
    import workflow_lib.training.trainer  # noqa: F401
    from workflow_lib.runtime.torch_internals import import_compiler

    import_compiler()  # by far the slowest


def _train_under_kills(
    training: Training, kills: int, steps: int, dice: random.Random, show: Callable[[str], None]
) -> tuple[int, int]:
    """How many kills struck and how many attempts it took to finish."""
    struck, attempts, idle = 0, 0, 0
    while True:
        fault = None
        if struck < kills:
            fault = _choose(dice, (struck + 1) * steps // (kills + 1), training)
        code = training.attempt(fault)
        attempts += 1
        if code == 0:
            return struck, attempts
        idle = 0 if training.has_moved() else idle + 1
        if idle > UNPRODUCTIVE:
            raise EverstepError(f"the run does not get on any more; its log: {training.log}")
        if fault is not None:
            struck += 1
            where = f"{fault.signal} to {fault.target} at {fault.point!r}"
            show(f"kill {struck}/{kills}: {where}; step {training.step()}/{steps} saved")


def _choose(dice: random.Random, step: int, training: Training) -> faults.Fault:
    """A kill soon after that step of the run, at a random place of the loop, with a random signal."""
    point = dice.choice(POINTS)
    count = dice.randint(1, training.windows) if point in ("fetch", "forward", "backward") else 1
    name = dice.choice(("SIGKILL", "SIGTERM"))
    return faults.Fault(point, count, name, from_step=max(step - 1, training.step()), target=dice.choice(TARGETS))


class Training:
    """One training of the run, in a store of its own, by attempts in processes of their own."""

    def __init__(self, experiment: Experiment, run: plan.Run, data: Path, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.windows = run.config.training.accumulation_steps
        self._experiment, self._run, self._data, self._folder = experiment, run, data, folder
        self._work = folder / "work"
        self._seen: str | None = None
        folder.mkdir()
        self._work.mkdir()
        layout.data_dir(self._work).symlink_to(layout.data_dir(data.parent / "work").resolve())
        plan.freeze(run.config, self._work)
        self.workspace = workspace_path(
            self._work, run.digest, Manifest.load(data).digest, user_code.digest(run.config)
        )

    def attempt(self, fault: faults.Fault | None) -> int:
        """The exit code of one attempt; 0 when the run is finished. Raises the error of an attempt without a fault."""
        with _child(self.log) as child:
            if child.is_here:
                faults.install([fault] if fault else [])
                sys.addaudithook(Tracer(self._folder).watch)
                commands.train(
                    self._experiment,
                    run=self._run.digest,
                    data=self._data,
                    work=self._work,
                    output=self._folder / "outputs" / "train.json",
                )
        if child.code not in (0, TryAgain.exit_code) and fault is None:
            raise EverstepError(f"the training fails by itself; its log: {self.log}\n{_tail(self.log)}")
        return child.code

    def step(self) -> int:
        """Optimizer steps that are saved."""
        paths = checkpoint.published(layout.checkpoints_dir(self.workspace))
        return checkpoint.read_manifest(paths[-1]).step if paths else 0

    def has_moved(self) -> bool:
        """Whether there is a newer checkpoint than at the last call."""
        paths = checkpoint.published(layout.checkpoints_dir(self.workspace))
        newest = paths[-1].name if paths else None
        moved, self._seen = newest != self._seen, newest
        return moved

    def sealed(self) -> checkpoint.Checkpoint:
        """The final state."""
        sealed = final_checkpoint.find_final_checkpoint(self.workspace)
        if sealed is None:
            raise EverstepError(f"the training ended without a final state; its log: {self.log}")
        return sealed

    def trace(self) -> dict[tuple[int, int], list[dict[str, str]]]:
        """For each step and rank, what was traced; more than once where the step was repeated."""
        lines: dict[tuple[int, int], list[dict[str, str]]] = {}
        for path in sorted(self._folder.glob("trace-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    one = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill
                lines.setdefault((one.pop("step"), one.pop("rank")), []).append(one)
        return lines


def compare(straight: Training, other: Training) -> str | None:
    """The first thing that differs, and where; None when all is equal."""
    expected, found = straight.trace(), other.trace()
    for step, rank in sorted(expected):
        for line in found.get((step, rank), []):
            for name in ORDER:
                if line.get(name) != expected[step, rank][0].get(name):
                    return f"{name} of rank {rank} is the first state that differs, at step {step} of the training"
    first, second = straight.sealed(), other.sealed()
    if first.step != second.step:
        return f"step: the straight run ended at step {first.step}, the other at step {second.step}"
    for name, entry in first.manifest["files"].items():
        if name not in second.manifest["files"]:
            return f"{name} is missing from the final state (step {first.step})"
        if second.manifest["files"].get(name) != entry:
            return f"{_what_differs(first, second, name)} of the final state (step {first.step})"
    if layout.metrics_file(straight.workspace).read_bytes() != layout.metrics_file(other.workspace).read_bytes():
        return "metrics.jsonl: the curves differ"
    return None


def _what_differs(first: checkpoint.Checkpoint, second: checkpoint.Checkpoint, name: str) -> str:
    if name == checkpoint.STATE:
        one, two = (checkpoint.read_state(each) for each in (first, second))
        return f"{name}: {_first_key(one, two)}"
    from safetensors.torch import load_file

    ours, theirs = load_file(first.path / name), load_file(second.path / name)
    for key in sorted(ours):
        if key not in theirs or ours[key].numpy().tobytes() != theirs[key].numpy().tobytes():
            return f"{name}: {key}"
    return name


def _first_key(one: Any, two: Any, path: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                return _first_key(one.get(key), two.get(key), f"{path}.{key}" if path else key)
    return path


class Tracer:
    """An audit hook that writes digests of what each step used and made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._samples: Any = None
        self._inputs: Any = None

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called at every audited event; acts at the points of the training loop."""
        if event != "everstep":
            return
        match arguments:
            case ("fetch", rows):
                self._samples = _chain(self._samples, rows)
            case ("forward", inputs):
                self._inputs = _chain(self._inputs, inputs)
            case ("commit", state):
                self._write(state)
                self._samples = self._inputs = None

    def _write(self, state: State) -> None:
        groups = state.tensors()
        rank = state.ranks.rank
        line = {
            "step": state.progress.cursor.step,
            "rank": rank,
            "samples": self._samples.hexdigest(),
            "inputs": self._inputs.hexdigest(),
            "state": hashlib.blake2b(json.dumps(state.record(), sort_keys=True).encode(), digest_size=8).hexdigest(),
            **{name: _digest(tensors) for name, tensors in groups.items()},
        }
        with (self._folder / f"trace-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _chain(hasher: Any, tensor: torch.Tensor) -> Any:
    hasher = hasher or hashlib.blake2b(digest_size=8)
    hasher.update(safetensors.bytes_of(tensor.cpu()))
    return hasher


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(safetensors.bytes_of(tensors[name].detach().cpu()))
    return hasher.hexdigest()


def _prepare(run: plan.Run, folder: Path) -> Path | str:
    """The data's manifest; or, as text, that preparing it twice gives different data."""
    manifests = []
    for name in ("first", "second"):
        path = folder / name / "manifest.json"
        with _child(folder / "data.txt") as child:
            if child.is_here:
                settings = plan.data_settings(run.config)
                prepare(settings, Path.cwd(), folder / name / "work").save(path)
        if child.code != 0:
            raise EverstepError(f"the data cannot be prepared: {_tail(folder / 'data.txt')}")
        manifests.append(Manifest.load(path))
    if manifests[0].digest != manifests[1].digest:
        return "data: preparing it twice gives different data (a random number that does not come from a seed?)"
    return folder / "first" / "manifest.json"


def _with_frequent_saves(experiment: Experiment, steps: int) -> Experiment:
    often = experiment.checkpoint.model_copy(update={"interval_steps": steps, "max_stalled_attempts": 10_000})
    return experiment.model_copy(update={"checkpoint": often})


@dataclass
class Child:
    """A forked process: ``is_here`` is true in it, and ``code`` is its exit code, in the parent, afterwards."""

    is_here: bool
    code: int = 0


@contextmanager
def _child(log: Path) -> Iterator[Child]:
    """The block runs in a process of its own, forked from this one, whose imports are done; it logs to the file."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        child = Child(is_here=False)
        yield child
        child.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return
    code = 1
    try:
        exit_with_parent(parent)
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.getLogger().handlers.clear()
        yield Child(is_here=True)
        code = 0
    except (EverstepError, OSError) as error:
        with suppress(OSError):  # the log may lie on a full disk
            print(error, file=sys.stderr, flush=True)
        code = getattr(error, "exit_code", 1)
    except BaseException:  # of a person's code, sys.exit too: nothing of this process may go on in the parent's frames
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:]) if log.exists() else ""

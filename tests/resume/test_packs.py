"""The runs of a pack: each ends as in its own job, and a pack that is killed loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.plugins import paced
from tests.support.project import FAILED, FINISHED, KILLED, NAME, SETTINGS, STOPPED, merged
from tests.support.warm import Order, Warm, members, until
from workflow_lib import checkpoint, plan, ready
from workflow_lib.store import accounting, layout
from workflow_lib.store.attempts import Attempt, list_attempts

HOOKS = """\
import time
from pathlib import Path

def on_step_end(state):
    if state.step == 20:
        {}

def take_too_much():
    import resource, torch
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 28),) * 2)
    torch.zeros(1 << 28)  # 1 GiB

def once(name):
    there = Path(name).exists()
    Path(name).touch()
    return not there
"""
FAULTS = {
    "raises": "raise LookupError('no such table')",
    "hangs": "once('hung') and time.sleep(3600)",
    "killed": "import os; os.kill(os.getpid(), 9)",  # as the kernel does when memory is out
    "memory": "once('taken') and take_too_much()",
}
FULL = """\
from pathlib import Path

import torch

def on_step_end(state):
    if state.step == 20 and not Path("full-once").exists():
        Path("full-once").touch()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""
THREADED = """\
import threading

threading.Thread(target=threading.Event().wait, name="reader", daemon=True).start()

def on_train_end(state):
    pass
"""
# fails once: the trial whose learning rate is in a file
STUMBLING = """\
from pathlib import Path

def on_step_end(state):
    rate = Path("stumble")
    if state.step == 5 and rate.exists() and float(rate.read_text()) == state.learning_rate:
        rate.unlink()
        raise LookupError("no such table")
"""
FAILING: dict[str, Any] = {
    "runtime": {"pack": "auto", "hang_timeout_s": 10},
    "sweep": {
        "list": [
            {"seed": 1},
            {"training.hooks": "raises"},
            {"training.hooks": "hangs"},
            {"optimizer.lr": 1e30},
            {"training.hooks": "killed"},
            {"seed": 2},
            {"training.hooks": "memory"},
            {"seed": 3},
        ]
    },
}
STEPS = 51  # of a run; one that has made them all when its pack is killed is only handed out
SLOW: dict[str, Any] = {
    "model": {"name": "tests.plugins.paced"},
    "runtime": {"pack": 4},
    "sweep": {"grid": {"seed": [1, 2, 3, 4]}},
}
STUDY = "demo"
TUNED: dict[str, Any] = {
    "runtime": {"pack": "auto"},
    "sweep": {"list": [{"seed": 9}]},
    "training": {"hooks": "stumbling"},
    "schedule": {"name": "constant", "warmup_epochs": 0},
    "tune": {
        "trials": 4,
        "window": 2,
        "pruner": "median",
        "min_trials": 1,
        "warmup_epochs": 0,
        "space": {"optimizer.lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    },
}


class Sweep:
    """A project with the runs of a sweep, which are trained by a pack or one by one."""

    def __init__(self, folder: Path, warm: Warm, changes: dict[str, Any]) -> None:
        self.folder, self.warm = folder, warm
        folder.mkdir()
        (folder / "Snakefile").touch()
        for name, fault in FAULTS.items():
            (folder / f"{name}.py").write_text(HOOKS.format(fault))
        (folder / "full.py").write_text(FULL)
        (folder / "threaded.py").write_text(THREADED)
        (folder / "stumbling.py").write_text(STUMBLING)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(merged(SETTINGS, changes)))
        assert self.command("freeze", "--output", f"results/{NAME}/plan.json") == FINISHED
        self.runs = json.loads((folder / f"results/{NAME}/plan.json").read_text())["runs"]
        data = self.runs[0]["data_id"]
        self.pack = plan.Pack(tuple((run["id"], run["data_id"]) for run in self.runs))
        if "tune" in changes:
            self.pack = plan.Pack(self.pack.runs, (STUDY, data))
        plan.freeze_pack(self.pack, folder / "work")
        self.data = f"results/{NAME}/data/{data}.json"
        assert self.command("preprocess", "--data", data, "--output", self.data) == FINISHED

    def order(self, *arguments: str, **environment: str) -> Order:
        return Order(
            [arguments[0], "--experiment", "experiment.yaml", *arguments[1:]],
            str(self.folder),
            str(self.folder / "log.txt"),
            environment=environment,
        )

    def command(self, *arguments: str) -> int:
        """Run the command and return its exit code."""
        return self.warm.run(self.order(*arguments))

    def start_pack(self, *more: str, **environment: str) -> int:
        """Start the job of the pack and return its process, which is also the group of all its forks."""
        return self.warm.start(self.order(*self.packing(), *more, **environment))

    def packing(self) -> tuple[str, ...]:
        """Return the arguments of the job of the pack."""
        return ("pack", "--pack", self.pack.id, "--threads", "3", "--output", "results/pack.json")

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def written(self) -> dict[str, Any]:
        """Return what the pack wrote at its end."""
        content: dict[str, Any] = json.loads((self.folder / "results/pack.json").read_text())
        return content

    def codes(self) -> list[int]:
        """Return the exit code of each run that the pack wrote, in the order of the sweep."""
        codes = self.written()["runs"]
        return [codes[run["id"]] for run in self.runs]

    def train(self, index: int) -> int:
        """Run the job of a run as its rule does."""
        return self.command(*self.training(index))

    def training(self, index: int) -> tuple[str, ...]:
        """Return the arguments of the job of a run."""
        run = self.runs[index]["id"]
        output = f"results/{NAME}/runs/{run}/train.json"
        return ("train", "--run", run, "--data", self.data, "--output", output)

    def result(self, index: int) -> dict[str, bytes]:
        """Return the weights, the curve and the metrics of a run."""
        folder = self.folder / "results" / NAME / "runs" / self.runs[index]["id"]
        files = [folder / "model.safetensors", folder / "history.csv", self.workspace(index) / "metrics.jsonl"]
        return {path.name: path.read_bytes() for path in files}

    def workspace(self, index: int) -> Path:
        (found,) = layout.workspaces(self.folder / "work", self.runs[index]["digest"])
        return found

    def attempts(self, index: int) -> tuple[Attempt, ...]:
        if not layout.workspaces(self.folder / "work", self.runs[index]["digest"]):
            return ()
        return list_attempts(self.workspace(index))

    def reused(self) -> int:
        """Return how often a finished run was requested again, of all runs and trials."""
        workspaces = {path.parent for path in (self.folder / "work").glob("runs/*/*/attempts")}
        return accounting.total(map(accounting.account, workspaces)).reused

    def saved(self, index: int) -> int:
        """Return the step of the newest checkpoint of a run; 0 without one."""
        if not self.attempts(index):
            return 0
        newest = checkpoint.read_newest(layout.checkpoints_dir(self.workspace(index)))
        return newest.step if newest else 0


def test_runs_of_a_pack_end_as_in_their_own_jobs(tmp_path: Path, warm: Warm) -> None:
    packed = Sweep(tmp_path / "packed", warm, FAILING)
    checkpoints = f"{packed.folder / 'work' / 'runs' / packed.runs[7]['digest']}/*/checkpoints/*"
    full = {"mode": "ENOSPC", "operation": "write", "path": checkpoints, "times": 0}
    assert warm.wait(warm.start(replace(packed.order(*packed.packing()), faults=[full]))) == FINISHED, packed.log()
    assert packed.codes() == [FINISHED, *[FAILED] * 4, FINISHED, FAILED, FAILED]
    ends = [str(packed.attempts(index)[-1].reason) for index in range(8)]
    expected = ["finished", "raised", "failed", "diverged", "failed", "finished", "failed", "failed"]
    assert [end.partition(":")[0] for end in ends] == expected
    assert "killed by SIGKILL (out of memory?)" in ends[4]
    assert "no such table" in ends[1]
    assert "no rank has made a step for 10 s" in ends[2]
    assert "can't allocate memory" in ends[6]
    assert "No space left on device" in ends[7]
    # the job of each run hands the result out, reports the divergence as the point's result, or tries again
    assert [packed.train(index) for index in (0, 3, 5)] == [FINISHED] * 3
    assert [len(packed.attempts(index)) for index in (0, 3, 5)] == [1, 1, 1]
    alone = Sweep(tmp_path / "alone", warm, FAILING)
    for done in ("hung", "taken"):
        (alone.folder / done).touch()
    for index in (2, 6, 7):
        assert packed.train(index) == FINISHED, "its job goes on with a run that hung, or had no memory or disk"
    assert packed.attempts(2)[-1].resumed_step
    for index in (0, 2, 5, 6, 7):
        assert alone.train(index) == FINISHED
        assert packed.result(index) == alone.result(index)


def test_runs_of_a_pack_that_cannot_fork_are_left_to_their_own_jobs(tmp_path: Path, warm: Warm) -> None:
    changes = {"training": {"hooks": "threaded", "epochs": 2}, "sweep": {"grid": {"seed": [1, 2]}}}
    packed = Sweep(tmp_path / "packed", warm, changes)
    assert warm.wait(packed.start_pack()) == FINISHED, packed.log()
    assert packed.written() == {"runs": {}, "computed": [], "trials": {}}
    assert packed.log().count("has started a thread (reader), so it cannot fork") == 1
    assert packed.train(0) == FINISHED, packed.log()


def test_runs_on_a_gpu_are_as_many_at_once_as_its_memory_holds(tmp_path: Path, warm: Warm) -> None:
    """One runs out of memory in its first attempt, and goes on alone."""
    hooks = {"training.hooks": "full"}
    sweep = {"sweep": {"list": [{"seed": 1}, hooks, *({"seed": seed} for seed in (2, 3, 4))]}}
    packed, alone = (Sweep(tmp_path / name, warm, SLOW | sweep) for name in ("packed", "alone"))
    pack = warm.start(replace(packed.order(*packed.packing()), plant="tests.support.shared_gpu:plant"))
    running = []

    def has_ended() -> bool:
        attempts = [attempt for index in range(5) for attempt in packed.attempts(index)]
        running.append(sum(attempt.state == "running" for attempt in attempts))
        return (packed.folder / "results/pack.json").exists()

    until(has_ended, "the pack to end")
    assert warm.wait(pack) == FINISHED, packed.log()
    assert packed.codes() == [FINISHED] * 5
    assert len(packed.written()["computed"]) == 5, (
        "evaluate.device: auto takes the CPU, since the trainings use the GPU"
    )
    assert max(running) == 2
    log = packed.log()
    assert "needs 4.0 GB of the GPU's memory: 2 like it at once" in log
    out = packed.runs[1]["id"]
    assert f"{out}: ran out of the GPU's memory; it goes on alone" in log
    assert [str(attempt.reason)[:8] for attempt in packed.attempts(1)] == ["failed: ", "finished"]
    assert packed.attempts(1)[1].resumed_step
    (alone.folder / "full-once").touch()
    for index in (0, 1):
        assert [packed.train(index), alone.train(index)] == [FINISHED] * 2
        assert packed.result(index) == alone.result(index)


def test_a_pack_that_is_killed_or_stopped_goes_on_where_each_run_is(tmp_path: Path, warm: Warm) -> None:
    packed = Sweep(tmp_path / "packed", warm, SLOW)
    slowly = {paced.PAUSE: "0.3"}  # longer than all that the pack imports meanwhile
    pack = packed.start_pack(**slowly)
    until(lambda: all(packed.saved(index) for index in range(3)), "checkpoints of the first three runs")
    os.kill(packed.attempts(0)[0].pid, signal.SIGKILL)
    until(lambda: packed.saved(3), "a checkpoint of the fourth run, which begins when another has ended")
    os.kill(pack, signal.SIGTERM)
    assert warm.wait(pack) == STOPPED
    until(lambda: not members(pack), "the forks to end")
    stopped = [packed.attempts(index)[-1] for index in range(1, 4)]
    assert [(attempt.reason, attempt.step) for attempt in stopped] == [
        ("stopped by SIGTERM", attempt.reached) for attempt in stopped
    ]
    saved = [packed.saved(index) for index in range(4)]

    pack = packed.start_pack(**slowly)
    until(lambda: all(packed.saved(index) > saved[index] for index in range(3)), "new checkpoints")
    os.kill(pack, signal.SIGKILL)
    assert warm.wait(pack) == KILLED
    until(lambda: not members(pack), "the forks to end")
    assert warm.wait(packed.start_pack("--deadline-minutes", "0.05", **slowly)) == STOPPED
    assert "the pack was stopped by its time limit" in packed.log()
    saved = [packed.saved(index) for index in range(4)]

    single = warm.start(packed.order(*packed.training(0), **{paced.PAUSE: "1"}))  # a single job goes on, too
    until(lambda: packed.saved(0) > saved[0], "a checkpoint of the single job")
    earlier = len(packed.log())
    pack = packed.start_pack("--on-stop", "requeue", **slowly)
    until(lambda: "exit code 75; its own" in packed.log()[earlier:], "the run of another owner to end")
    (packed.folder / paced.HURRY).touch()
    assert warm.wait(pack) == STOPPED, "its job goes back to the queue, since one run is not its own"
    assert warm.wait(single) == FINISHED
    assert not (packed.folder / "results/pack.json").exists()
    assert warm.wait(packed.start_pack()) == FINISHED
    assert packed.codes() == [FINISHED] * 4
    resumed = [packed.attempts(index)[-1].resumed_step for index in range(4)]
    assert [there for there in zip(resumed, saved, strict=True) if there[0] != there[1] < STEPS] == []
    alone = Sweep(tmp_path / "alone", warm, SLOW)
    (alone.folder / paced.HURRY).touch()
    for index in range(4):
        assert [packed.train(index), alone.train(index)] == [FINISHED] * 2
        assert packed.result(index) == alone.result(index)


def test_a_study_and_a_run_are_trained_in_one_pack(tmp_path: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, alone = Sweep(tmp_path / "packed", warm, TUNED), Sweep(tmp_path / "alone", warm, TUNED)
    place = Path("results", NAME, "tune", STUDY)

    def commands(sweep: Sweep, number: int) -> list[tuple[str, ...]]:
        """Return the commands of a trial as the rules give them; each ends with its output."""
        suggestion, result = (place / f"{kind}-{number:04d}.json" for kind in ("suggest", "trial"))
        suggest = ("suggest", "--number", f"{number:04d}", "--tune-dir", str(place), "--output", str(suggestion))
        return [suggest, ("trial", "--suggestion", str(suggestion), "--data", sweep.data, "--output", str(result))]

    def trial(sweep: Sweep, number: int) -> list[bytes]:
        """Run the jobs of a trial, and return its files."""
        jobs = commands(sweep, number)
        assert [sweep.command(*job) for job in jobs] == [FINISHED] * 2
        return [(sweep.folder / job[-1]).read_bytes() for job in jobs]

    def handed_out(*job: str) -> bytes:
        """Run a job that finds its result prepared, and return its file."""
        assert ready.hand_out(["__main__.py", *job]), job
        return Path(job[-1]).read_bytes()

    expected = [trial(alone, number) for number in range(4)]
    states = [json.loads(result)["state"] for _, result in expected]
    assert "pruned" in states
    whole = states.index("complete", 1)
    first = trial(packed, 0)  # the pack goes on with the study
    (packed.folder / "stumble").write_text(str(json.loads(expected[3][0])["params"]["optimizer.lr"]))
    assert warm.wait(packed.start_pack()) == FINISHED, packed.log()
    written, run = packed.written(), packed.runs[0]["id"]
    assert (written["trials"], written["runs"]) == ({"1": FINISHED, "2": FINISHED, "3": FAILED}, {run: FINISHED})
    assert warm.wait(packed.start_pack(**{ready.FOLDER: "work/ready"})) == FINISHED, packed.log()
    written = packed.written()
    assert written["trials"] == dict.fromkeys("123", FINISHED)
    assert (written["runs"], set(written["computed"])) == ({run: FINISHED, "tuned": FINISHED}, {run, "tuned"})
    monkeypatch.chdir(packed.folder)
    monkeypatch.setenv(ready.FOLDER, "work/ready")
    found = [[handed_out(*job) for job in commands(packed, number)] for number in range(1, 4)]
    assert [first, *found] == expected
    best = ("best", "--tune-dir", str(place), "--output", str(place / "best.json"))
    assert alone.command(*best) == FINISHED
    assert handed_out(*best) == (alone.folder / best[-1]).read_bytes()
    assert packed.reused() == 0, "a result that is handed out is no training that was avoided"
    for _, *_, output in commands(packed, whole):
        Path(output).unlink()
    shutil.rmtree("work/ready")
    assert trial(packed, whole) == expected[whole], "without the prepared files, the trial is found in the store"
    assert [packed.train(0), alone.train(0)] == [FINISHED] * 2
    assert packed.result(0) == alone.result(0)
    attempts = list((packed.folder / "work").glob("runs/*/*/attempts/*.json"))
    assert len(attempts) == 6, "the jobs of the trials and of the run have trained nothing again"
    assert packed.reused() == 1, "the trial was requested again; the run was not"

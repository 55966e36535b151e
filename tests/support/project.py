"""A small project that is trained in attempts, and the comparison of two such trainings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.support.warm import TIMED_OUT, WAIT_S, Order, Warm, members, until
from workflow_lib import checkpoint
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.checkpoint.safetensors import bytes_of
from workflow_lib.errors import CheckpointError
from workflow_lib.store.events import read_events

NAME = "t"
FINISHED, FAILED, STOPPED = 0, 1, 75
KILLED, TERMINATED = -9, -15
PASS = "PASS"

SETTINGS: dict[str, Any] = {
    "name": NAME,
    "data": {"name": "digits"},
    "model": {"name": "tests.plugins.noisy"},
    "schedule": {"name": "cosine", "warmup_epochs": 1},
    "training": {"epochs": 3, "batch_size": 66, "ema_decay": 0.99, "clip_norm": 1.0},
    "checkpoint": {"interval_steps": 4, "max_stalled_attempts": 100},
    "runtime": {"hang_timeout_s": 60, "lease_timeout_s": 5, "lease_wait_s": 0},
}


def merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base updated with the other: mappings are merged, other values are replaced."""
    result = dict(base)
    for key, value in other.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


@dataclass
class Project:
    """A training of a project's only run in its own folder. ``findings`` lists what no attempt may do."""

    folder: Path
    warm: Warm
    run: str = ""
    data: str = ""
    findings: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        """The workspace of the run."""
        return self._made("attempts")[0].parent

    @property
    def checkpoints(self) -> Path:
        return self.workspace / "checkpoints"

    @property
    def output(self) -> Path:
        return self.folder / "results" / NAME / "runs" / self.run / "train.json"

    @property
    def log(self) -> str:
        """The output of all attempts."""
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    def order(self, *faults: Mapping[str, Any], plant: str | None = None, **environment: str) -> Order:
        arguments = ["train", "--experiment", "experiment.yaml", "--run", self.run]
        arguments += ["--data", self.data, "--output", str(self.output.relative_to(self.folder))]
        log = str(self.folder / "log.txt")
        return Order(arguments, str(self.folder), log, [dict(one) for one in faults], plant, environment)

    def start(self, *faults: Mapping[str, Any], plant: str | None = None) -> int:
        """Start an attempt and return the process number of its launcher."""
        return self.warm.start(self.order(*faults, plant=plant))

    def attempt(self, *faults: Mapping[str, Any], plant: str | None = None, timeout_s: float = WAIT_S) -> int:
        """Run one attempt and return its exit code. Record a finding if it lost work or left a process behind."""
        newest, begun = self.newest_step(), len(self.began_at())
        pid = self.start(*faults, plant=plant)
        code = self.warm.wait(pid, timeout_s)
        self.codes.append(code)
        what = f"attempt {len(self.codes)} ({json.dumps(faults)}, exit code {code})"
        if code == TIMED_OUT:
            self.findings.append(f"HARD_FAIL: {what} did not end in {timeout_s:.0f} s")
        try:
            until(lambda: not members(pid), "the ranks to end")
        except TimeoutError:
            self.findings.append(f"HARD_FAIL: {what} left processes {members(pid)}")
        if (began := self.began_at()[begun:]) and began[0] < newest:
            self.findings.append(f"LOST_WORK: {what} began at step {began[0]} although {newest} was saved")
        stopped = re.findall(r"stopped by \w+ at step (\d+); saved", self.log)
        if code == STOPPED and stopped and int(stopped[-1]) != self.newest_step():
            self.findings.append(
                f"LOST_WORK: {what} says it saved step {stopped[-1]}, but {self.newest_step()} is there"
            )
        return code

    def finish(self, plant: str | None = None) -> None:
        """Finish the run by one more attempt, which must succeed."""
        code = self.attempt(plant=plant)
        if code != FINISHED:
            raise RuntimeError(f"the attempt without a fault ended with {code}:\n{self.log[-4000:]}")

    def verdict(self, reference: Project) -> str:
        """Finish the run, compare it with the reference, and return PASS or what is wrong."""
        code = self.attempt()
        if code != FINISHED:
            return f"HARD_FAIL: the attempt without a fault ended with {code}: {self.log[-2000:]}"
        if different := differences(reference, self):
            return f"SILENT_DIVERGENCE: {', '.join(different)}"
        return "; ".join(self.findings) or PASS

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint that verifies; 0 without one."""
        if not self._made("attempts"):
            return 0
        for path in reversed(checkpoint.published(self.checkpoints)):
            try:
                found = checkpoint.read_manifest(path)
                checkpoint.verify(found)
                return found.step
            except CheckpointError:
                continue
        return 0

    def began_at(self) -> list[int]:
        """Return the step at which each attempt started or resumed, if it came that far."""
        if not self._made("events.jsonl"):
            return []
        messages = [event.get("message", "") for event in read_events(self.workspace / "events.jsonl")]
        return [int(text.split()[-3].strip(",")) for text in messages if text.startswith(("resumes at", "starts at"))]

    def _made(self, name: str) -> list[Path]:
        """Return the paths of this name in the workspaces of the run."""
        return [*self.folder.glob(f"work/runs/{self.run[-12:]}*/*/{name}")]

    def sealed(self) -> Checkpoint:
        """Return the final checkpoint, verified."""
        found = checkpoint.read_manifest(self.folder / json.loads(self.output.read_text())["sealed"])
        checkpoint.verify(found)
        return found


def prepare(
    folder: Path, warm: Warm, settings: Mapping[str, Any] = SETTINGS, files: Mapping[str, str] | None = None
) -> Project:
    """Make a project with its data, its plan and the user's files; nothing is trained."""
    folder.mkdir(parents=True)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "Snakefile").touch()
    (folder / "experiment.yaml").write_text(yaml.safe_dump(dict(settings)))
    project = Project(folder, warm)
    experiment = ["--experiment", "experiment.yaml"]
    log = str(folder / "prepare.txt")
    plan_path = folder / "results" / NAME / "plan.json"
    for verb in ("freeze", "preprocess"):
        if verb == "freeze":
            arguments = ["freeze", *experiment, "--output", str(plan_path)]
        else:
            only = json.loads(plan_path.read_text())["runs"][0]
            project.run, project.data = only["id"], f"results/{NAME}/data/{only['data_id']}.json"
            arguments = ["preprocess", *experiment, "--data", only["data_id"], "--output", project.data]
        if (code := warm.run(Order(arguments, str(folder), log))) != 0:
            raise RuntimeError(f"{verb} ended with {code}:\n{Path(log).read_text()}")
    return project


def copy(project: Project, folder: Path) -> Project:
    """Copy the project into another folder."""
    shutil.copytree(project.folder, folder)
    return Project(folder, project.warm, project.run, project.data)


def differences(one: Project, other: Project) -> list[str]:
    """Return the names of everything that differs between two finished trainings, bit by bit."""
    found = []
    mine, theirs = one.sealed(), other.sealed()
    for name in sorted(mine.manifest["files"].keys() | theirs.manifest["files"].keys()):
        if name == checkpoint.STATE:
            found += _unequal("state", checkpoint.read_state(mine), checkpoint.read_state(theirs))
        else:
            found += _unequal_tensors(mine.path / name, theirs.path / name)
    found += _unequal("about", dict(mine.about), dict(theirs.about))
    places = {"metrics.jsonl": "workspace", "model.safetensors": "output", "history.csv": "output"}
    if any((project.workspace / "steps.jsonl").exists() for project in (one, other)):
        places |= {"steps.jsonl": "workspace", "steps.csv": "output"}
    for name, place in places.items():
        files = [
            (project.workspace / name) if place == "workspace" else project.output.with_name(name)
            for project in (one, other)
        ]
        if files[0].read_bytes() != files[1].read_bytes():
            found.append(f"file {name}")
    return found


def _unequal(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [line for key in keys for line in _unequal(f"{name}.{key}", one.get(key), other.get(key))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, pair in pairs for line in _unequal(f"{name}.{index}", *pair)]
    return [] if one == other else [name]


def _unequal_tensors(one: Path, other: Path) -> list[str]:
    if not (one.exists() and other.exists()):
        return [one.stem]
    mine, theirs = load_file(one), load_file(other)
    return [
        f"{one.stem}.{name}"
        for name in sorted(mine.keys() | theirs.keys())
        if name not in mine or name not in theirs or bytes(bytes_of(mine[name])) != bytes(bytes_of(theirs[name]))
    ]

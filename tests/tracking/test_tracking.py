"""Curves are read from a store that is written as a training writes it, without one, and copied by real trackers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.crash import SURVIVED, fork, run_forked, wait
from tests.support.faults import FileFault
from tests.support.repository import ROOT
from tests.trackers.contract import DATA, points, recorded, row
from tests.trackers.test_mlflow import in_mlflow
from tests.trackers.test_tensorboard import in_tensorboard
from workflow_lib import config, plan, plugins, tracking
from workflow_lib.checkpoint import CheckpointStore, Snapshot
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import read_json, write_json
from workflow_lib.plan import user_code
from workflow_lib.store import attempts as ws
from workflow_lib.store import layout
from workflow_lib.store.events import EventLog
from workflow_lib.store.layout import workspace_path

TRACKERS = plugins.available("trackers")


@dataclass
class Store:
    """An experiment of two runs, whose checkpoints are published as a training publishes them."""

    root: Path

    @property
    def experiment(self) -> config.Experiment:
        return config.load([self.root / "experiment.yaml"])

    @property
    def runs(self) -> tuple[plan.Run, ...]:
        return plan.expand(self.experiment)

    def workspace(self, number: int) -> Path:
        run = self.runs[number]
        return workspace_path(self.root / "work", run.digest, DATA, user_code.digest(run.config))

    def commit(self, number: int, *rows: tracking.Row, is_finished: bool = False, attempt: str = "1" * 32) -> None:
        """Publish a checkpoint of the run with these rows."""
        run, workspace = self.runs[number], self.workspace(number)
        plan.freeze(run.config, self.root / "work", run.digest)
        ws.create(workspace)
        events = EventLog(layout.events_file(workspace), attempt=attempt)
        for metrics in rows:
            events.append("epoch", **metrics)
        store = CheckpointStore(
            layout.checkpoints_dir(workspace),
            fingerprint={"run": run.digest, "data": DATA, "code": user_code.digest(run.config)},
            attempt=attempt,
            may_publish=lambda: True,
            keep_last=9,
        )
        about = {"cursor": {"phase": "finish" if is_finished else "train", "epoch": len(rows)}}
        step = int(rows[-1]["step"]) + 3
        state = {"progress": {"history": list(rows)}}
        store.publish(Snapshot(step, {"model": {"w": torch.zeros(1)}}, state, about))

    def track(self, *to: str, follow: bool = False) -> dict[str, int]:
        """Return how many rows each run has, according to the file that is written."""
        tracking.track(
            self.experiment,
            to=to,
            follow=follow,
            work=self.root / "work",
            results=self.root / "results",
            output=self.root / "tracking.json",
        )
        rows: dict[str, int] = read_json(self.root / "tracking.json")["rows"]
        return rows


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "Snakefile").touch()
    text = "name: demo\nsweep: {grid: {seed: [0, 1]}}\ntracking: {folder: copies, every_s: 0.05}\n"
    (tmp_path / "experiment.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    made = Store(tmp_path)
    write_json(tmp_path / f"results/demo/data/{made.runs[0].data_id}.json", {"digest": DATA})
    return made


def test_committed_rows_are_copied_and_no_others(store: Store) -> None:
    store.commit(0, row(1), row(2))
    lines = "".join(json.dumps(row(epoch)) + "\n" for epoch in (1, 2, 3))
    layout.metrics_file(store.workspace(0)).write_text(lines)
    assert store.track("tensorboard") == {store.runs[0].id: 2}
    found = in_tensorboard(store.root / "copies", store.runs[0].id)
    assert {step for _, step in found} == {10, 20}


def test_gradients_are_copied_up_to_the_step_that_is_saved(store: Store) -> None:
    store.commit(0, row(1), row(2))  # at step 23
    for step in (23, 24):
        made = recorded(store.root, step).path
        path = layout.summary_file(store.workspace(0), step)
        path.parent.mkdir(exist_ok=True)
        made.rename(path)
    (curve,) = tracking.curves(store.experiment, store.root / "work", store.root / "results")
    assert [found.step for found in curve.recorded] == [23]


def test_a_copy_follows_a_run_that_resumes_from_an_older_checkpoint(store: Store) -> None:
    store.commit(0, row(1))
    store.commit(0, row(1), row(2), attempt="2" * 32)
    store.track("tensorboard")
    newest = sorted(layout.checkpoints_dir(store.workspace(0)).glob("step-*"))[-1]
    newest.rename(newest.with_name("corrupt-" + newest.name))
    assert store.track("tensorboard") == {store.runs[0].id: 1}
    store.commit(0, row(1), row(2, loss=0.75), attempt="3" * 32)
    store.track("tensorboard")
    found = in_tensorboard(store.root / "copies", store.runs[0].id)
    assert found["val_loss", 20] == [0.75]
    assert found["val_loss", 10] == [1.0]


def test_processes_that_create_the_tables_of_mlflow_take_turns_also_after_one_was_killed(store: Store) -> None:
    store.commit(0, row(1), row(2))
    fault = FileFault("before", operation="rename", path="*/copies/*", rank=-1)
    assert run_forked(lambda: store.track("mlflow"), [fault]) == -signal.SIGKILL
    ended = [wait(pid, timeout_s=300) for pid in [fork(lambda: store.track("mlflow")) for _ in range(2)]]
    assert ended == [SURVIVED, SURVIVED]
    assert {path.name for path in (store.root / "copies").iterdir()} == {".lock", "mlflow.db"}
    assert in_mlflow(store.root / "copies", store.runs[0].id) == points(row(1), row(2))


def test_a_lock_that_nobody_holds_on_a_disk_without_locks_is_reported(store: Store) -> None:
    store.commit(0, row(1))
    lock = store.root / "copies/.lock"
    lock.parent.mkdir()
    lock.touch()
    code = """
import errno, fcntl, sys
def fails(*arguments): raise OSError(errno.ENOSYS, "no file locks here")
fcntl.flock = fails
from workflow_lib.cli import main
from workflow_lib.tracking import copying
copying.WARN_AFTER_S = 0.1
sys.exit(main(["track", "experiment.yaml", "--to", "tensorboard"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, cwd=store.root, env=environment, stderr=subprocess.PIPE, text=True) as tracked:
        assert tracked.stderr is not None
        line = next(line for line in tracked.stderr if "delete that file" in line)
        assert str(lock.relative_to(store.root)) in line
        lock.unlink()
        assert "1 row, 1 new" in tracked.stderr.read()
    assert tracked.returncode == 0


def test_following_ends_when_every_run_is_finished(store: Store) -> None:
    store.commit(0, row(1), is_finished=True)

    def train() -> None:
        for epochs in (1, 2, 3):
            rows = [row(epoch) for epoch in range(1, epochs + 1)]
            store.commit(1, *rows, is_finished=epochs == 3, attempt=str(epochs) * 32)

    training = threading.Thread(target=train)
    training.start()
    assert store.track("tensorboard", follow=True) == {store.runs[0].id: 1, store.runs[1].id: 3}
    training.join()


def test_a_run_that_cannot_be_read_is_skipped_and_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.commit(0, row(1))
    store.commit(1, row(1))
    next(layout.checkpoints_dir(store.workspace(0)).glob("step-*/state.json")).write_text("{}")
    assert store.track("tensorboard") == {store.runs[1].id: 1}
    assert str(store.workspace(0).relative_to(store.root)) in caplog.text


def test_a_tracker_that_fails_changes_nothing_in_the_store(store: Store) -> None:
    store.commit(0, row(1))
    (store.root / "copies").mkdir()
    (store.root / "copies/tensorboard").touch()
    before = {path: path.read_bytes() for path in (store.root / "work").rglob("*") if path.is_file()}
    with pytest.raises(EverstepError, match="No training is affected") as raised:
        store.track("tensorboard")
    assert raised.value.exit_code == 1
    assert {path: path.read_bytes() for path in (store.root / "work").rglob("*") if path.is_file()} == before


def test_without_a_tracker_the_message_lists_those_there_are(store: Store) -> None:
    with pytest.raises(UserError, match="mlflow, tensorboard, wandb"):
        store.track()


def test_an_unknown_tracker_is_rejected_with_those_there_are(store: Store) -> None:
    with pytest.raises(UserError, match="no tracker mlfow; allowed: mlflow, tensorboard, wandb"):
        store.track("mlfow")


@pytest.mark.parametrize("tool", TRACKERS)
def test_a_missing_package_is_one_message_and_exit_2(tool: str, store: Store) -> None:
    code = f"import sys; sys.modules[{tracking.load(tool).REQUIRES[0]!r}] = None; from workflow_lib.cli import main;"
    code += f"sys.exit(main(['track', 'experiment.yaml', '--to', {tool!r}]))"
    path = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"everstep[{tool}]" in done.stderr


def test_no_package_of_a_tracker_is_imported_before_it_is_opened() -> None:
    tools = {package for name in TRACKERS for package in tracking.load(name).REQUIRES} | {"torch"}
    code = "import sys; from workflow_lib import tracking; tracking.check_installed(['tensorboard']);"
    code += f"print({tools} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

"""Real copies, read back by the tools' own means; the store is written as a training writes it, without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.support.crash import SURVIVED, fork, run_forked, wait
from tests.support.faults import FileFault
from tests.support.repository import ROOT
from workflow_lib import config, plan, tracking
from workflow_lib.checkpoint import CheckpointStore, Snapshot
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import read_json, write_json
from workflow_lib.plan import user_code
from workflow_lib.store import attempts as ws
from workflow_lib.store import layout
from workflow_lib.store.events import EventLog
from workflow_lib.store.layout import workspace_path

DATA = "d" * 32
Points = dict[tuple[str, int], list[float]]


def row(epoch: int, loss: float | None = None) -> tracking.Row:
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "val_loss": loss if loss is not None else 1 / epoch}


def curve(*rows: tracking.Row, is_finished: bool = False) -> tracking.Curve:
    times = tuple(1e9 + 60 * one["epoch"] for one in rows)
    settings = {"optimizer.lr": 0.1, **{f"model.params.p{n}": "x" * 600 for n in range(120)}}
    return tracking.Curve(
        "demo", "demo-a", "a" * 32, DATA, f"{DATA[:12]}-{'c' * 12}", settings, rows, times, 1e9, is_finished
    )


def expected(*rows: tracking.Row) -> Points:
    return {(name, int(one["step"])): [one[name]] for one in rows for name in ("epoch", "lr", "val_loss")}


def in_tensorboard(folder: Path, run: str) -> Points:
    """By TensorBoard's own reader, of every file, with nothing dropped as outdated."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard/demo" / run), {"scalars": 0}, purge_orphaned_data=False)
    reader.Reload()
    points: Points = {}
    for tag in reader.Tags()["scalars"]:
        for event in reader.Scalars(tag):
            points.setdefault((tag, event.step), []).append(event.value)
    return points


def in_mlflow(folder: Path, run: str) -> Points:
    """By SQL: what a person sees of the runs that are not deleted."""
    query = (
        "SELECT key, step, value FROM metrics JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active' AND name = ?"
    )
    points: Points = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        for key, step, value in database.execute(query, [run]):
            points.setdefault((key, step), []).append(value)
    database.close()
    return points


def in_wandb(folder: Path, run: str) -> Points:
    """From the file that `wandb sync` sends: records in blocks of 32 KiB, as in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    for path in (folder / "wandb/demo" / run).glob("wandb/offline-run-*/run-*.wandb"):
        content, position, record = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            _, size, kind = struct.unpack_from("<IHB", content, position)
            record += content[position + 7 : position + 7 + size]
            position += 7 + size
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            if kind not in (1, 4):  # neither whole nor the last part
                continue
            history, record = Record.FromString(record).history, b""
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
            for name in items.keys() & {"epoch", "lr", "val_loss"}:
                points.setdefault((name, items["_step"]), []).append(items[name])
    return points


READ: dict[str, Callable[[Path, str], Points]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "wandb": in_wandb,
}


def write(tool: str, folder: Path, *curves: tracking.Curve) -> list[int]:
    """How many rows were new in each copy, by a tracker that is opened anew each time."""
    found = []
    for one in curves:
        with tracking.KINDS[tool](folder) as tracker:
            found.append(tracker.write(one))
    return found


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow without runs: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with tracking.MLflow(folder) as tracker:
        tracker.write(replace(curve(), experiment="another", id="none"))
    return folder / "mlflow.db"


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where copies go; for MLflow its tables are there."""
    if "mlflow" in request.node.name:
        shutil.copy(request.getfixturevalue("mlflow_db"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("tool", tracking.KINDS)
def test_each_row_is_copied_once_however_often_it_is_told(tool: str, folder: Path) -> None:
    rows = [row(1), row(2), row(3)]
    some, every = curve(*rows[:2]), curve(*rows, is_finished=True)
    assert write(tool, folder, some, some, every, every) == [2, 0, 1, 0]
    assert READ[tool](folder, "demo-a") == expected_of(tool, *rows)


def expected_of(tool: str, *rows: tracking.Row) -> Points:
    """TensorBoard keeps single precision."""
    points = expected(*rows)
    if tool == "tensorboard":
        return {place: [struct.unpack("f", struct.pack("f", one))[0] for one in v] for place, v in points.items()}
    return points


@pytest.mark.parametrize("tool", tracking.KINDS)
def test_a_curve_that_went_back_and_another_way_is_followed(tool: str, folder: Path) -> None:
    write(tool, folder, curve(row(1), row(2), row(3)), curve(row(1)))
    assert READ[tool](folder, "demo-a") == expected_of(tool, row(1))
    write(tool, folder, curve(row(1), row(2, loss=0.25)))
    assert READ[tool](folder, "demo-a") == expected_of(tool, row(1), row(2, loss=0.25))


@pytest.mark.parametrize("tool", tracking.KINDS)
def test_runs_do_not_mix(tool: str, folder: Path) -> None:
    other = replace(curve(row(1, loss=9.0)), id="demo-b", digest="b" * 32)
    write(tool, folder, curve(row(1)), other, curve(row(1), row(2)))
    assert READ[tool](folder, "demo-a") == expected_of(tool, row(1), row(2))
    assert READ[tool](folder, "demo-b") == expected_of(tool, row(1, loss=9.0))


def test_an_events_file_that_a_kill_cut_off_anywhere_is_completed(folder: Path) -> None:
    every = curve(row(1), row(2))
    write("tensorboard", folder, every)
    path = next((folder / "tensorboard/demo/demo-a").iterdir())
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        write("tensorboard", folder, every)
        assert path.read_bytes() == content


def test_an_events_file_whose_writer_was_killed_is_shown_once(folder: Path) -> None:
    every = curve(row(1), row(2))
    fault = FileFault("before", operation="rename", rank=-1)
    assert run_forked(lambda: write("tensorboard", folder, every), [fault]) == -signal.SIGKILL
    write("tensorboard", folder, every)
    assert len(list((folder / "tensorboard/demo/demo-a").iterdir())) == 1
    assert in_tensorboard(folder, "demo-a") == expected_of("tensorboard", row(1), row(2))


def test_a_tensorboard_that_is_looking_drops_what_was_taken_back(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write("tensorboard", folder, curve(row(1), row(2), row(3)))
    reader = EventAccumulator(str(folder / "tensorboard/demo/demo-a"))
    reader.Reload()
    write("tensorboard", folder, curve(row(1), row(2, loss=7.0)))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("val_loss")] == [(10, 1), (20, 7)]


def test_rows_that_a_kill_left_half_written_in_mlflow_are_completed(folder: Path) -> None:
    write("mlflow", folder, curve(row(1), row(2)))
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("DELETE FROM metrics WHERE step = 20 AND key = 'lr'")
    database.close()
    assert write("mlflow", folder, curve(row(1), row(2))) == [1]
    assert in_mlflow(folder, "demo-a") == expected(row(1), row(2))


DIES = """
import json, os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from tests.tracking.test_tracking import curve, write
from workflow_lib import tracking

def log_three_times(self, run, metrics=(), **others):
    if metrics and len(logged) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    log_batch(self, run, metrics=metrics, **others)
    if metrics:
        logged.append(metrics)

logged, tracking.METRICS_AT_ONCE = [], 50
log_batch, MlflowClient.log_batch = MlflowClient.log_batch, log_three_times
write("mlflow", Path(sys.argv[1]), curve(*json.loads((Path(sys.argv[1]) / "rows.json").read_text())))
"""


def test_an_mlflow_that_is_killed_while_it_writes_is_gone_on_from(folder: Path) -> None:
    """`folder` has the tables of mlflow."""
    rows = [row(epoch) for epoch in range(1, 201)]
    (folder / "rows.json").write_text(json.dumps(rows))
    root = ROOT
    died = subprocess.run([sys.executable, "-c", DIES, str(folder)], cwd=root, stderr=subprocess.DEVNULL)
    assert died.returncode == -signal.SIGKILL
    assert len(in_mlflow(folder, "demo-a")) == 3 * 50
    assert sum(write("mlflow", folder, curve(*rows))) < len(rows)
    assert in_mlflow(folder, "demo-a") == expected(*rows)


def test_a_run_in_mlflow_has_its_settings_times_and_state(folder: Path) -> None:
    write("mlflow", folder, curve(row(1)), curve(row(1), row(2), is_finished=True))
    with sqlite3.connect(folder / "mlflow.db") as database:
        told = database.execute("SELECT name, status, start_time, end_time FROM runs WHERE name != 'none'").fetchall()
        assert told == [("demo-a", "FINISHED", 10**12, 10**12 + 120_000)]
        params = dict(database.execute("SELECT key, value FROM params JOIN runs USING (run_uuid) WHERE name != 'none'"))
        assert params["optimizer.lr"] == "0.1"
        assert len(params) == 121
        tags = dict(database.execute("SELECT key, value FROM tags JOIN runs USING (run_uuid) WHERE name != 'none'"))
        assert (tags["everstep.digest"], tags["everstep.data"]) == ("a" * 32, DATA)
    database.close()


def test_settings_that_mlflow_has_no_room_for_show_that_they_are_cut(folder: Path) -> None:
    features = [[f"measure_{number:03d}" for number in range(many)] for many in (60, 90, 600, 601)]
    told = []
    for number, of_run in enumerate(features):
        settings = {"data.params.features": of_run, f"data.params.{'x' * 300}": 1}
        write("mlflow", folder, replace(curve(row(1)), id=f"run {number}", digest=f"{number}" * 32, settings=settings))
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "SELECT value FROM params JOIN runs USING (run_uuid) WHERE name LIKE 'run %' AND key LIKE '%features'"
        told = [value for (value,) in database.execute(f"{query} ORDER BY name")]
    database.close()
    assert told[:2] == [str(of_run) for of_run in features[:2]]
    assert len(set(told)) == 4
    assert all("... cut of " in cut and len(cut) == 6000 for cut in told[2:])


def test_an_offline_run_that_a_kill_left_behind_is_made_anew(folder: Path) -> None:
    write("wandb", folder, curve(row(1), row(2)))
    (folder / "wandb/demo/demo-a/written.json").unlink()
    write("wandb", folder, curve(row(1), row(2)))
    assert in_wandb(folder, "demo-a") == expected(row(1), row(2))


# From the store


@dataclass
class Store:
    """An experiment of two runs, whose checkpoints are published as a training does it."""

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
        """The run has a checkpoint with these rows."""
        run, workspace = self.runs[number], self.workspace(number)
        plan.freeze(run.config, self.root / "work", run.digest)
        ws.create(workspace)
        events = EventLog(layout.events_file(workspace), attempt=attempt)
        for one in rows:
            events.append("epoch", **one)
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
        """How many rows each run has, by the statement that is left."""
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


def test_a_run_that_goes_on_from_an_older_checkpoint_is_followed(store: Store) -> None:
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


def test_two_that_make_the_tables_of_mlflow_take_turns_also_after_one_was_killed(store: Store) -> None:
    store.commit(0, row(1), row(2))
    fault = FileFault("before", operation="rename", path="*/copies/*", rank=-1)
    assert run_forked(lambda: store.track("mlflow"), [fault]) == -signal.SIGKILL
    ended = [wait(pid, timeout_s=300) for pid in [fork(lambda: store.track("mlflow")) for _ in range(2)]]
    assert ended == [SURVIVED, SURVIVED]
    assert {path.name for path in (store.root / "copies").iterdir()} == {".lock", "mlflow.db"}
    assert in_mlflow(store.root / "copies", store.runs[0].id) == expected(row(1), row(2))


def test_a_lock_that_nobody_holds_on_a_disk_without_locks_is_told(store: Store) -> None:
    store.commit(0, row(1))
    lock = store.root / "copies/.lock"
    lock.parent.mkdir()
    lock.touch()
    code = """
import errno, fcntl, sys
def fails(*arguments): raise OSError(errno.ENOSYS, "no file locks here")
fcntl.flock = fails
from workflow_lib import tracking
from workflow_lib.__main__ import main
tracking.TELL_S = 0.1
sys.exit(main(["track", "experiment.yaml", "--to", "tensorboard"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, cwd=store.root, env=environment, stderr=subprocess.PIPE, text=True) as tracked:
        assert tracked.stderr is not None
        line = next(line for line in tracked.stderr if "delete that file" in line)
        assert str(lock.relative_to(store.root)) in line
        lock.unlink()
        assert "1 rows, 1 of them new" in tracked.stderr.read()
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


def test_a_run_that_cannot_be_read_is_left_out_and_named(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.commit(0, row(1))
    store.commit(1, row(1))
    next(layout.checkpoints_dir(store.workspace(0)).glob("step-*/state.json")).write_text("{}")
    assert store.track("tensorboard") == {store.runs[1].id: 1}
    assert str(store.workspace(0).relative_to(store.root)) in caplog.text


def test_a_tool_that_fails_says_so_and_changes_nothing_else(store: Store) -> None:
    store.commit(0, row(1))
    (store.root / "copies").mkdir()
    (store.root / "copies/tensorboard").touch()
    before = {path: path.read_bytes() for path in (store.root / "work").rglob("*") if path.is_file()}
    with pytest.raises(EverstepError, match="No training is touched by this") as raised:
        store.track("tensorboard")
    assert raised.value.exit_code == 1
    assert {path: path.read_bytes() for path in (store.root / "work").rglob("*") if path.is_file()} == before


def test_no_tool_is_a_mistake_that_names_them(store: Store) -> None:
    with pytest.raises(UserError, match="mlflow, tensorboard, wandb"):
        store.track()


@pytest.mark.parametrize("tool", tracking.KINDS)
def test_a_missing_package_is_one_message_and_exit_2(tool: str, store: Store) -> None:
    code = f"import sys; sys.modules[{tracking.MODULES[tool]!r}] = None; from workflow_lib.__main__ import main;"
    code += f"sys.exit(main(['track', 'experiment.yaml', '--to', {tool!r}]))"
    path = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"everstep[{tool}]" in done.stderr


def test_the_tools_are_imported_by_nobody_who_does_not_ask_for_them() -> None:
    tools = {*tracking.MODULES.values(), "torch"}
    code = "import sys; from workflow_lib import tracking; tracking.refuse_missing(['tensorboard']);"
    code += f"print({tools} & sys.modules.keys())"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

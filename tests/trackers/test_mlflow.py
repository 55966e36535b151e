from __future__ import annotations

import io
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.repository import ROOT
from tests.trackers.contract import DATA, Points, TrackerContract, curve, points, row, write
from workflow_lib import tracking


def select(folder: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return database.execute(query, values).fetchall()


def in_mlflow(folder: Path, run: str) -> Points:
    """Return the points of the runs that are not deleted, by SQL."""
    query = "SELECT key, step, value FROM metrics JOIN runs USING (run_uuid)"
    points: Points = {}
    for key, step, value in select(folder, f"{query} WHERE lifecycle_stage = 'active' AND name = ?", run):
        points.setdefault((key, step), []).append(value)
    return points


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs of `demo`: creating its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with tracking.open_tracker("mlflow", folder) as tracker:
        tracker.write(replace(curve(), experiment="another", id="none"))
    return folder / "mlflow.db"


DIES = """
import json, os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from tests.trackers.contract import curve, write
from workflow_lib.trackers import mlflow

def log_three_batches(self, run, metrics=(), **others):
    if metrics and len(logged) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    log_batch(self, run, metrics=metrics, **others)
    if metrics:
        logged.append(metrics)

logged, mlflow.METRICS_AT_ONCE = [], 50
log_batch, MlflowClient.log_batch = MlflowClient.log_batch, log_three_batches
write("mlflow", Path(sys.argv[1]), curve(*json.loads((Path(sys.argv[1]) / "rows.json").read_text())))
"""


class TestMLflow(TrackerContract):
    name = "mlflow"

    @pytest.fixture
    def folder(self, database: Path, tmp_path: Path) -> Path:
        shutil.copy(database, tmp_path)
        return tmp_path

    def read(self, folder: Path, run: str) -> Points:
        return in_mlflow(folder, run)

    def media(self, folder: Path, run: str) -> list[tuple[int, list[int], int]]:
        ((uri,),) = select(folder, "SELECT artifact_uri FROM runs WHERE lifecycle_stage = 'active' AND name = ?", run)
        artifacts = Path(uri.removeprefix("file://"))
        images = {
            path.stem: Image.open(io.BytesIO(path.read_bytes())).width
            for path in (artifacts / "images/inputs").iterdir()
        }
        bars = {path.stem: json.loads(path.read_text())["gradients/w"] for path in (artifacts / "histograms").iterdir()}
        assert images.keys() == bars.keys()
        return [(int(step), bars[step]["counts"], width) for step, width in images.items()]

    def test_rows_that_a_kill_left_half_written_are_completed(self, folder: Path) -> None:
        write("mlflow", folder, curve(row(1), row(2)))
        with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
            database.execute("DELETE FROM metrics WHERE step = 20 AND key = 'lr'")
        assert write("mlflow", folder, curve(row(1), row(2))) == [1]
        assert in_mlflow(folder, "demo-a") == points(row(1), row(2))

    def test_a_process_that_was_killed_while_it_wrote_is_completed_by_the_next(self, folder: Path) -> None:
        rows = [row(epoch) for epoch in range(1, 201)]
        (folder / "rows.json").write_text(json.dumps(rows))
        died = subprocess.run([sys.executable, "-c", DIES, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
        assert died.returncode == -signal.SIGKILL
        assert len(in_mlflow(folder, "demo-a")) == 3 * 50
        assert sum(write("mlflow", folder, curve(*rows))) < len(rows)
        assert in_mlflow(folder, "demo-a") == points(*rows)

    def test_settings_that_a_kill_left_unwritten_are_completed(self, folder: Path) -> None:
        write("mlflow", folder, curve(row(1)))
        query = "SELECT key, value FROM params JOIN runs USING (run_uuid) WHERE name != 'none' ORDER BY key"
        whole = select(folder, query)
        with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
            database.execute("DELETE FROM params WHERE key LIKE 'model.%'")
        assert write("mlflow", folder, curve(row(1))) == [0]
        assert select(folder, query) == whole

    def test_a_run_has_its_settings_times_and_state(self, folder: Path) -> None:
        write("mlflow", folder, curve(row(1)), curve(row(1), row(2), is_finished=True))
        runs = select(folder, "SELECT name, status, start_time, end_time FROM runs WHERE name != 'none'")
        assert runs == [("demo-a", "FINISHED", 10**12, 10**12 + 120_000)]
        of_run = "SELECT key, value FROM {} JOIN runs USING (run_uuid) WHERE name != 'none'"
        params, tags = (dict(select(folder, of_run.format(table))) for table in ("params", "tags"))
        assert params["optimizer.lr"] == "0.1"
        assert len(params) == 121
        assert (tags["everstep.digest"], tags["everstep.data"]) == ("a" * 32, DATA)

    def test_settings_that_are_too_long_for_mlflow_are_marked_as_cut(self, folder: Path) -> None:
        features = [[f"measure_{number:03d}" for number in range(many)] for many in (60, 90, 600, 601)]
        for number, names in enumerate(features):
            settings = {"data.params.features": names, f"data.params.{'x' * 300}": 1}
            run = replace(curve(row(1)), id=f"run {number}", digest=f"{number}" * 32, settings=settings)
            write("mlflow", folder, run)
        query = "SELECT value FROM params JOIN runs USING (run_uuid) WHERE name LIKE 'run %' AND key LIKE '%features'"
        values = [value for (value,) in select(folder, f"{query} ORDER BY name")]
        assert values[:2] == [str(names) for names in features[:2]]
        assert len(set(values)) == 4
        assert all("... cut of " in cut and len(cut) == 6000 for cut in values[2:])

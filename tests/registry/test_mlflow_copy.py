"""A copy in MLflow's registry is completed by the next one, whenever a process was killed."""

from __future__ import annotations

from pathlib import Path

from tests.registry.test_registry import content, publish
from workflow_lib.config.registry import Registry
from workflow_lib.registry import mlflow_copy
from workflow_lib.trackers.mlflow import client


def test_metrics_that_a_kill_left_unwritten_are_completed(tmp_path: Path) -> None:
    """The process was killed after it had created the run that has the artifacts."""
    version, _ = publish(tmp_path / "registry", content(tmp_path / "files", noise=0.1), "d" * 32)
    folder = tmp_path / "tracking"
    folder.mkdir()
    database = client(folder)
    number = database.create_experiment("registry-model", artifact_location=(folder / "mlruns").as_uri())
    run = database.create_run(number, tags={mlflow_copy.DIGEST: version.digest})
    settings = Registry(name="model", folder=tmp_path / "registry")
    copies = [mlflow_copy.copy(settings, version, None, folder) for _ in range(2)]
    assert copies[0] == copies[1]
    measured = database.get_metric_history(run.info.run_id, "test_mae")
    assert [metric.value for metric in measured] == [version.statement["metrics"]["mae"]["value"]]

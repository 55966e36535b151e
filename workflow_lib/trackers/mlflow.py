"""MLflow: `tracking/mlflow.db`, one SQLite file for all experiments."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from workflow_lib import config
from workflow_lib.files import json_text
from workflow_lib.tracking import Curve, Recorded, Tracker

REQUIRES = ("mlflow",)
# MLflow's limits: characters of a parameter's value and name, parameters and metrics of a batch
MAX_PARAM, MAX_NAME = 6000, 250
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
HISTOGRAMS = "histograms"  # folder of artifacts


def open_tracker(folder: Path) -> Tracker:
    """Return the tracker of the database in the folder, which is created if it does not exist."""
    return MLflow(folder)


def client(folder: Path) -> Any:
    """Return MLflow's client for the database in the folder, which is created if it does not exist."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)

    database = (folder / "mlflow.db").absolute()
    # Created under another name: MLflow cannot complete a database whose creation was killed half-way.
    if not database.exists():
        for unfinished in folder.glob(".mlflow.db.*"):
            unfinished.unlink()
        temporary = database.with_name(f".mlflow.db.{uuid.uuid4().hex}.tmp")
        MlflowClient(tracking_uri=f"sqlite:///{temporary}")
        temporary.replace(database)
    return MlflowClient(tracking_uri=f"sqlite:///{database}")


@final
class MLflow(Tracker):
    """MLflow identifies a point by metric, step, value and time: writing an equal one again adds nothing."""

    def __init__(self, folder: Path) -> None:
        self._artifacts = (folder / "mlruns").absolute().as_uri()
        self._client = client(folder)

    def write(self, curve: Curve) -> int:
        """Log the points that the run lacks; a run with other points is deleted and another one created."""
        from mlflow.entities import Metric

        run = self._run(curve)
        written = self._written(run.info.run_id)
        values = {(name, point.step): value for point in curve.points for name, value in point.metrics.items()}
        if any(values.get(place) != value for place, value in written.items()):
            self._client.delete_run(run.info.run_id)
            run, written = self._run(curve), {}
        new = [
            Metric(name, value, round(1000 * point.time_s), point.step)
            for point in curve.points
            for name, value in point.metrics.items()
            if (name, point.step) not in written
        ]
        for first in range(0, len(new), METRICS_AT_ONCE):
            self._client.log_batch(run.info.run_id, metrics=new[first : first + METRICS_AT_ONCE])
        self._log_artifacts(run.info.run_id, curve.recorded)
        if curve.is_finished and run.info.status != "FINISHED":
            self._client.set_terminated(run.info.run_id, end_time=round(1000 * max(curve.times, default=curve.began)))
        return len({metric.step for metric in new})

    def _log_artifacts(self, run: str, recorded: Sequence[Recorded]) -> None:
        """Write the images, and the histograms as JSON, as artifacts: MLflow has no histograms.

        A step's histograms come last, so a step that has them is complete.
        """
        if not recorded:
            return
        present = {Path(found.path).stem for found in self._client.list_artifacts(run, HISTOGRAMS)}
        for found in recorded:
            if (step := f"{found.step:012}") in present:
                continue
            summary = found.read()
            with tempfile.TemporaryDirectory() as folder:
                for name, content in summary.images.items():
                    path = Path(folder) / f"{step}.png"
                    path.write_bytes(content)
                    self._client.log_artifact(run, path, f"images/{name}")
                path = Path(folder) / f"{step}.json"
                histograms = {
                    name: {**vars(histogram), "norm": histogram.norm, "edges": histogram.edges}
                    for name, histogram in summary.histograms.items()
                }
                path.write_text(json_text(histograms), encoding="utf-8")
                self._client.log_artifact(run, path, HISTOGRAMS)

    def _run(self, curve: Curve) -> Any:
        """Return the run of the curve, with all its settings: a killed process may have created it without them."""
        run = self._found(curve) or self._create(curve)
        params = {_cut(name, MAX_NAME): _cut(str(value), MAX_PARAM) for name, value in curve.settings.items()}
        self._log_params(run.info.run_id, {name: params[name] for name in params if name not in run.data.params})
        return run

    def _found(self, curve: Curve) -> Any:
        experiment = self._client.get_experiment_by_name(curve.experiment)
        if experiment is None:
            return None
        filter_string = f"tags.`everstep.name` = '{curve.name}'"
        found = self._client.search_runs([experiment.experiment_id], filter_string, max_results=1)
        return found[0] if found else None

    def _create(self, curve: Curve) -> Any:
        experiment = self._client.get_experiment_by_name(curve.experiment)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(curve.experiment, artifact_location=self._artifacts)
        )
        tags = {"everstep.name": curve.name, "everstep.digest": curve.digest, "everstep.data": curve.data}
        return self._client.create_run(number, start_time=round(1000 * curve.began), tags=tags, run_name=curve.id)

    def _log_params(self, run: str, missing: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in missing.items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[first : first + PARAMS_AT_ONCE])

    def _written(self, run: str) -> dict[tuple[str, int], float]:
        """Return the run's values by metric and step."""
        names = self._client.get_run(run).data.metrics
        return {
            (name, point.step): point.value for name in names for point in self._client.get_metric_history(run, name)
        }


def _cut(text: str, longest: int) -> str:
    """Return the text, or its beginning and a digest of all of it: different texts stay different."""
    if len(text) <= longest:
        return text
    mark = f"... cut of {len(text)} characters {config.digest(text, 'text')[:12]}"  # only characters that names allow
    return text[: longest - len(mark)] + mark

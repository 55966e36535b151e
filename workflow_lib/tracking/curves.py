"""The committed learning curves of an experiment, read from the store."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import checkpoint, plan
from workflow_lib.errors import EverstepError
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.plan import user_code
from workflow_lib.results import layout as results_layout
from workflow_lib.results import source_weights, steps, summaries
from workflow_lib.store import attempts as ws
from workflow_lib.store import code_record, layout
from workflow_lib.store.events import read_events
from workflow_lib.store.final_checkpoint import is_finished
from workflow_lib.store.layout import workspace_path
from workflow_lib.text import flatten

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

Row = dict[str, float]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """The metrics of one validation."""

    step: int
    time_s: float  # since 1970
    metrics: dict[str, float]
    recorded: Recorded | None = None


@dataclass(frozen=True)
class Recorded:
    """The file of the summary of a step; equal ones have equal content."""

    step: int
    path: Path
    size: int
    time_s: float  # when it was written, since 1970

    def read(self) -> summaries.Summary:
        """Return its gradients, weights and images."""
        return summaries.read(self.path)


@dataclass(frozen=True)
class Curve:
    """The settings, the committed rows and the committed summaries of a run."""

    experiment: str
    id: str
    digest: str
    data: str
    workspace: str  # name of its folder: data and code
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    times: tuple[float, ...]  # when each row was measured, in seconds since 1970
    began: float  # in seconds since 1970
    is_finished: bool
    log: tuple[Row, ...] = ()  # the rows of the log of steps
    log_times: tuple[float, ...] = ()
    recorded: tuple[Recorded, ...] = ()

    @property
    def name(self) -> str:
        """Name that is unique to the run with this data and code."""
        return f"{self.digest[:12]}-{self.workspace}"

    @property
    def points(self) -> list[Point]:
        """The rows of the log of steps, those of the validations, and the summaries, in the order of steps."""
        logged = (_point(row, time_s, "step_") for row, time_s in zip(self.log, self.log_times, strict=True))
        validated = (_point(row, time_s) for row, time_s in zip(self.rows, self.times, strict=True))
        recorded = (Point(found.step, found.time_s, found.read().metrics, found) for found in self.recorded)
        return sorted((*logged, *validated, *recorded), key=lambda point: point.step)  # stable: the log first


def _point(row: Row, time_s: float, prefix: str = "") -> Point:
    values = {name: value for name, value in row.items() if name != "step" and value is not None}
    metrics = {f"{prefix}{name}": float(value) for name, value in values.items()}
    return Point(int(row["step"]), time_s, metrics)


def curves(experiment: Experiment, work: Path, results: Path) -> Iterator[Curve]:
    """Yield the curve of each run, trial and tuned run of the experiment that has a checkpoint."""
    code_of = user_code.memo(lambda run: user_code.digest(run, source_weights.digests(run, results, experiment.name)))
    for digest, (name, data) in _runs(experiment, results / experiment.name).items():
        folder = layout.run_config(work, digest)
        if not folder.exists():
            continue
        try:
            folder = workspace_path(work, digest, data, code_of(plan.load_run(digest, work)[0]))
            # `everstep accept` kept a result of older code, which is in another workspace
            if (record := code_record.read_acceptance(folder)) is not None:
                folder = folder.with_name(record["workspace"])
            curve = _curve(experiment.name, name, digest, data, folder)
        except (EverstepError, *UNREADABLE) as error:
            logger.warning("%s cannot be read; it is tried again next time: %s", folder, error)
            continue
        if curve is not None:
            yield curve


def _runs(experiment: Experiment, results: Path) -> dict[str, tuple[str, str]]:
    """Return id and data digest of each run whose data is prepared, by the run's digest."""
    found = {run.digest: (run.id, run.data_id) for run in plan.expand(experiment)}
    if experiment.tune is not None:
        folder = results_layout.study_dir(results, plan.study_id(experiment))
        for path in results_layout.pointers(folder):
            run = read_json(path, "run")["run"]
            found.setdefault(run["digest"], (run["id"], plan.data_id(experiment)))
    prepared = {data: results_layout.data_manifest(results, data) for _, data in found.values()}
    digests = {data: read_json(path, "digest")["digest"] for data, path in prepared.items() if path.exists()}
    return {digest: (name, digests[data]) for digest, (name, data) in found.items() if data in digests}


def _curve(experiment: str, name: str, digest: str, data: str, workspace: Path) -> Curve | None:
    newest = checkpoint.read_newest(layout.checkpoints_dir(workspace))
    if newest is None:
        return None
    rows = checkpoint.read_state(newest)["progress"]["history"]
    began = min((_seconds(attempt.began) for attempt in ws.list_attempts(workspace)), default=0.0)
    log = steps.read(newest)
    events = read_events(layout.events_file(workspace))
    times: dict[tuple[int, int], float] = {}
    for event in events:
        if event.get("kind") == "epoch":  # if an epoch was trained twice, its first time counts, which never changes
            times.setdefault((event["epoch"], event["step"]), _seconds(event["time"]))
    return Curve(
        experiment=experiment,
        id=name,
        digest=digest,
        data=data,
        workspace=workspace.name,
        settings=flatten(read_json(layout.config_of(workspace))),
        rows=tuple(rows),
        times=tuple(times.get((row["epoch"], row["step"]), began) for row in rows),
        log=tuple(log),
        log_times=tuple(_log_times(log, events, began)),
        began=began,
        is_finished=is_finished(newest),
        recorded=tuple(_recorded(workspace, newest.step)),
    )


def _recorded(workspace: Path, committed: int) -> Iterator[Recorded]:
    for step, path in layout.summary_files(workspace):
        if step <= committed:
            state = path.stat()
            yield Recorded(step, path, state.st_size, state.st_mtime)


def _log_times(log: Sequence[Row], events: Sequence[Mapping[str, Any]], began: float) -> Iterator[float]:
    """Yield for each row when it was first read from the device, which later attempts never change."""
    reads = iter([(event["step"], _seconds(event["time"])) for event in events if event.get("kind") == "logged"])
    step, time_s = 0.0, began
    for row in log:
        while step < row["step"]:
            step, time_s = next(reads, (math.inf, time_s))
        yield time_s


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()

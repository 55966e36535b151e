"""Copies of the curves for other tools, made by one process beside the training, which knows nothing of it.

What is copied are the committed rows: those of a run's newest checkpoint, which a crash cannot take back. What is in
the copy already is read from the copy itself, so that it never gets a point twice, whoever was killed when. Where a run
went on from an older checkpoint after all, its copy goes back too; where it then took another way, it is made anew.

    tracking/mlflow.db                               MLflow: every experiment
    tracking/tensorboard/<experiment>/<run>/         TensorBoard: one events file
    tracking/wandb/<experiment>/<run>/wandb/         W&B, offline: to be sent by `wandb sync`
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import logging
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from workflow_lib import checkpoint, config, plan
from workflow_lib.config.experiment import TRACKERS
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import UNREADABLE, make_dirs, read_json, write_atomic, write_json
from workflow_lib.plan import user_code
from workflow_lib.results.provenance import DIVERGED
from workflow_lib.store import attempts as ws
from workflow_lib.store import code_record, layout
from workflow_lib.store.events import read_events
from workflow_lib.store.final_checkpoint import is_finished
from workflow_lib.store.layout import workspace_path

if TYPE_CHECKING:
    from types import TracebackType

    from filelock import BaseFileLock

    from workflow_lib.config import Experiment

Row = dict[str, float]

MODULES = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}
TELL_S = 30.0  # of waiting for a turn, before the log says so
UNTOUCHED = "No training is touched by this; what is missing is copied the next time"
LONGEST_PARAM, LONGEST_NAME = 6000, 250  # characters of a setting and of its name that MLflow takes
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000  # MLflow takes no more

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """What is told of a run: its settings, and its committed rows with the time of day that each was measured at."""

    experiment: str
    id: str
    digest: str
    data: str
    workspace: str  # its folder, named by data and code
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    times: tuple[float, ...]
    began: float
    is_finished: bool

    @property
    def name(self) -> str:
        """Unlike that of any other run or data."""
        return f"{self.digest[:12]}-{self.workspace}"


# -- what is read ---------------------------------------------------------------------------------------------------


def curves(experiment: Experiment, work: Path, results: Path) -> Iterator[Curve]:
    """The curves of the experiment's runs, trials and tuned run that have begun."""
    code_of = user_code.memo()
    for digest, (name, data) in _runs(experiment, results / experiment.name).items():
        folder = work / "runs" / digest
        if not (folder / "config.json").exists():
            continue
        try:
            folder = workspace_path(work, digest, data, code_of(plan.load_run(digest, work)[0]))
            if (record := code_record.accepted(folder)) is not None:
                folder = folder.with_name(record["workspace"])
            curve = _curve(experiment.name, name, digest, data, folder)
        except (EverstepError, *UNREADABLE) as error:
            logger.warning("%s cannot be read, and is left for the next time: %s", folder, error)
            continue
        if curve is not None:
            yield curve


def _runs(experiment: Experiment, results: Path) -> dict[str, tuple[str, str]]:
    """By digest, the name of each run and the digest of its data, as far as it is prepared."""
    found = {run.digest: (run.id, run.data_id) for run in plan.expand(experiment)}
    if experiment.tune is not None:
        folder = results / "tune" / plan.study_id(experiment)
        for path in (*sorted(folder.glob("suggest-*.json")), *folder.glob("best.json")):
            run = read_json(path, "run")["run"]
            found.setdefault(run["digest"], (run["id"], plan.data_id(experiment)))
    prepared = {data: results / "data" / f"{data}.json" for _, data in found.values()}
    digests = {data: read_json(path, "digest")["digest"] for data, path in prepared.items() if path.exists()}
    return {digest: (name, digests[data]) for digest, (name, data) in found.items() if data in digests}


def _curve(experiment: str, name: str, digest: str, data: str, workspace: Path) -> Curve | None:
    newest = checkpoint.read_newest(layout.checkpoints_dir(workspace))
    if newest is None:
        return None
    rows = checkpoint.read_state(newest)["progress"]["history"]
    began = min((_seconds(one.began) for one in ws.list_attempts(workspace)), default=0.0)
    times: dict[tuple[int, int], float] = {}
    for event in read_events(layout.events_file(workspace)):
        if event.get("kind") == "epoch":
            times.setdefault((event["epoch"], event["step"]), _seconds(event["time"]))
    return Curve(
        experiment=experiment,
        id=name,
        digest=digest,
        data=data,
        workspace=workspace.name,
        settings=_flat(read_json(workspace.parent / "config.json")),
        rows=tuple(rows),
        times=tuple(times.get((row["epoch"], row["step"]), began) for row in rows),
        began=began,
        is_finished=is_finished(newest),
    )


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, one in value.items() for k, v in _flat(one, f"{name}.{key}" if name else key).items()}


# -- what is written ------------------------------------------------------------------------------------------------


class Tracker(ABC):
    """A tool that curves are copied to. Its packages are imported here and nowhere else."""

    @abstractmethod
    def __init__(self, folder: Path) -> None:
        """The copies lie in the folder."""

    @abstractmethod
    def write(self, curve: Curve) -> int:
        """The copy holds exactly the rows of the curve; how many it did not hold before."""

    def close(self) -> None:  # noqa: B027
        """What the tool holds open is given back."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class TensorBoard(Tracker):
    """One events file a run, whose bytes are a function of the rows: what is missing at its end is appended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"

    def write(self, curve: Curve) -> int:
        folder = self._folder / curve.experiment / curve.id
        for unwritten in folder.glob(".events.out.tfevents.*"):
            unwritten.unlink()  # its writer was killed; a TensorBoard would read it, too
        files = sorted(folder.glob("events.out.tfevents.*"))
        parts = self._records(curve)
        content, present = b"".join(parts), files[-1].read_bytes() if files else b""
        if files and content.startswith(present):
            newest = files[-1]
            with newest.open("ab") as file:
                file.write(content[len(present) :])
        else:
            # A TensorBoard that is looking goes on to a later name and drops what it had; it waits where one is gone.
            number = int(files[-1].name.split(".")[3]) + 1 if files else 1
            newest, present = folder / f"events.out.tfevents.{number:010d}.everstep", b""
            write_atomic(newest, content)
        for stale in set(files) - {newest}:
            os.truncate(stale, 0)
        ends = list(itertools.accumulate(map(len, parts)))
        return sum(end > len(present) for end in ends[1:])

    def _records(self, curve: Curve) -> list[bytes]:
        """The head of the file, then the records of each row."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        version = Event(wall_time=curve.began, file_version="brain.Event:2")
        start = Event(wall_time=curve.began, step=0, session_log=SessionLog(status=SessionLog.START))
        return [
            self._record([version, start]),
            *(self._record([_event(row, time_s)]) for row, time_s in zip(curve.rows, curve.times, strict=True)),
        ]

    def _record(self, events: Sequence[Any]) -> bytes:
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
        return buffer.getvalue()


def _event(row: Row, time_s: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in sorted(_metrics(row).items())]
    return Event(wall_time=time_s, step=int(row["step"]), summary=Summary(value=values))


@final
class MLflow(Tracker):
    """A SQLite file. A point is named by metric, step, value and time: the same one again is no second point."""

    def __init__(self, folder: Path) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)

        self._artifacts = (folder / "mlruns").absolute().as_uri()
        database = (folder / "mlflow.db").absolute()
        if not database.exists():  # its tables, if a kill had cut them off, could never be completed
            for unwritten in folder.glob(".mlflow.db.*"):
                unwritten.unlink()
            temporary = database.with_name(f".mlflow.db.{uuid.uuid4().hex}.tmp")
            MlflowClient(tracking_uri=f"sqlite:///{temporary}")
            temporary.replace(database)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database}")

    def write(self, curve: Curve) -> int:
        from mlflow.entities import Metric

        run = self._run(curve)
        written = self._written(run.info.run_id)
        points = {(name, int(row["step"])): value for row in curve.rows for name, value in _metrics(row).items()}
        if any(points.get(place) != value for place, value in written.items()):
            self._client.delete_run(run.info.run_id)
            run, written = self._begin(curve), {}
        new = [
            (name, value, round(1000 * time_s), int(row["step"]))
            for row, time_s in zip(curve.rows, curve.times, strict=True)
            for name, value in _metrics(row).items()
            if (name, int(row["step"])) not in written
        ]
        for first in range(0, len(new), METRICS_AT_ONCE):
            part = [Metric(*point) for point in new[first : first + METRICS_AT_ONCE]]
            self._client.log_batch(run.info.run_id, metrics=part)
        if curve.is_finished and run.info.status != "FINISHED":
            self._client.set_terminated(run.info.run_id, end_time=round(1000 * max(curve.times, default=curve.began)))
        return len({step for *_, step in new})

    def _run(self, curve: Curve) -> Any:
        experiment = self._client.get_experiment_by_name(curve.experiment)
        if experiment is None:
            return self._begin(curve)
        named = f"tags.`everstep.name` = '{curve.name}'"
        found = self._client.search_runs([experiment.experiment_id], named, max_results=1)
        return found[0] if found else self._begin(curve)

    def _begin(self, curve: Curve) -> Any:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(curve.experiment)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(curve.experiment, artifact_location=self._artifacts)
        )
        tags = {"everstep.name": curve.name, "everstep.digest": curve.digest, "everstep.data": curve.data}
        run = self._client.create_run(number, start_time=round(1000 * curve.began), tags=tags, run_name=curve.id)
        params = [
            Param(_cut(name, LONGEST_NAME), _cut(str(value), LONGEST_PARAM)) for name, value in curve.settings.items()
        ]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=params[first : first + PARAMS_AT_ONCE])
        return run

    def _written(self, run: str) -> dict[tuple[str, int], float]:
        names = self._client.get_run(run).data.metrics
        return {
            (name, point.step): point.value for name in names for point in self._client.get_metric_history(run, name)
        }


@final
class WandB(Tracker):
    """Offline runs, each written whole: a note beside it says of which rows, and what has no such note is made anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = (folder / "wandb").absolute()
        private = {
            name: str(self._folder / ".private") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
        }
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false", **private)

    def write(self, curve: Curve) -> int:
        import wandb

        folder = self._folder / curve.experiment / curve.id
        rows = [config.digest(row, "row") for row in curve.rows]
        note = {"name": curve.name, "rows": rows, "is_finished": curve.is_finished}
        before = read_json(folder / "written.json", *note) if (folder / "written.json").exists() else {"rows": []}
        if before == note:
            return 0
        (folder / "written.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
        run = wandb.init(
            project=curve.experiment,
            id=curve.name,
            name=curve.id,
            dir=folder,
            config=curve.settings,
            settings=wandb.Settings(console="off", **quiet),
        )
        for row in curve.rows:
            run.log(_metrics(row), step=int(row["step"]))
        run.finish()
        write_json(folder / "written.json", note)
        return sum(row not in before["rows"] for row in rows)

    def close(self) -> None:
        import wandb

        wandb.teardown()


def _cut(text: str, longest: int) -> str:
    """The text; one that is too long is cut, which shows, and others have another digest."""
    if len(text) <= longest:
        return text
    mark = f"... cut of {len(text)} characters {config.digest(text, 'text')[:12]}"  # a name has no other signs
    return text[: longest - len(mark)] + mark


def _metrics(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step"}


# -- one process ----------------------------------------------------------------------------------------------------

KINDS: dict[str, type[Tracker]] = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}


def refuse_missing(to: Sequence[str]) -> None:
    """Returns when the packages of these tools are installed; nothing is imported."""
    for name in to:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise UserError(
                f"tracking.to: {name} is not installed here; install it with: pip install -c constraints.txt"
                f" 'everstep[{name}]' (in this folder: '.[{name}]'), or take it out of tracking.to"
            )


def track(
    experiment: Experiment,
    *,
    to: Sequence[str],
    follow: bool,
    work: Path,
    results: Path,
    output: Path | None = None,
) -> None:
    """The copies hold every committed row; with ``follow`` they go on doing so until all runs are finished.

    In ``output`` stands how many rows each copy of each run holds.
    """
    if not to:
        raise UserError(
            f"tracking.to names nothing to track to; write some of {', '.join(TRACKERS)} there, or give --to"
        )
    refuse_missing(to)
    from filelock import FileLock

    folder = experiment.tracking.folder
    make_dirs(folder)
    seen: list[Curve] = []
    lock = FileLock(folder / ".lock")
    with ExitStack() as stack:
        with _turn(lock):
            trackers = {name: _opened(name, folder, stack) for name in dict.fromkeys(to)}
        while True:
            # One process at a time: whoever reads the rows writes them before another one reads.
            with _turn(lock):
                found = list(curves(experiment, work, results))
                for curve in found:
                    if curve not in seen:
                        _copy(curve, trackers)
            if not found and not seen:
                logger.info("no run of %s has a checkpoint yet", experiment.name)
            seen = found
            if not follow or _are_all_finished(experiment, found, results):
                break
            time.sleep(experiment.tracking.every_s)
    if output is not None:
        rows = {curve.id: len(curve.rows) for curve in found}
        write_json(output, {"to": list(trackers), "folder": str(folder), "rows": rows})


@contextmanager
def _turn(lock: BaseFileLock) -> Iterator[None]:
    """Hold the lock; after a while of waiting, say what to do if nobody releases it."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=TELL_S)
    except Timeout:
        logger.warning(
            "waiting for another `track` to release %s; if none is running, on no host, delete that file: on a disk "
            "without file locks a killed one may leave it",
            lock.lock_file,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _opened(name: str, folder: Path, stack: ExitStack) -> Tracker:
    try:
        return stack.enter_context(KINDS[name](folder))
    except Exception as error:
        raise EverstepError(f"{name} cannot be opened in {folder}: {_first_line(error)}. {UNTOUCHED}") from error


def _first_line(error: Exception) -> str:
    """What a tool says, without the statement in SQL that MLflow adds."""
    return str(error).partition("\n")[0]


def _copy(curve: Curve, trackers: dict[str, Tracker]) -> None:
    for name, tracker in trackers.items():
        try:
            new = tracker.write(curve)
        except Exception as error:
            raise EverstepError(
                f"{name} refused the rows of {curve.id}: {type(error).__name__}: {_first_line(error)}. {UNTOUCHED}"
            ) from error
        logger.info("%s: %s: %d rows, %d of them new", name, curve.id, len(curve.rows), new)


def _are_all_finished(experiment: Experiment, found: Sequence[Curve], results: Path) -> bool:
    """Whether no row will come any more; trials may have been cut short, the run they led to is not."""
    wanted = {run.digest for run in plan.expand(experiment)}
    if experiment.tune is not None:
        best = results / experiment.name / "tune" / plan.study_id(experiment) / "best.json"
        if not best.exists():
            return False
        wanted.add(read_json(best, "run")["run"]["digest"])
    statements = (results / experiment.name / "runs").glob("*/train.json")
    diverged = {told["digest"] for told in map(read_json, statements) if told.get("state") == DIVERGED}
    return wanted <= {curve.digest for curve in found if curve.is_finished} | diverged

"""One process at a time copies the curves of an experiment to its trackers."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan, plugins, shipped
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.files import make_dirs, read_json, write_json
from workflow_lib.results import layout as results_layout
from workflow_lib.results.statements import read_training
from workflow_lib.text import count
from workflow_lib.tracking.curves import Curve, curves
from workflow_lib.tracking.tracker import Tracker, load, open_tracker

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from workflow_lib.config import Experiment
    from workflow_lib.config.tracking import Tracking

WARN_AFTER_S = 30.0  # of waiting for the lock
UNAFFECTED = "No training is affected; missing rows are copied next time"

logger = logging.getLogger(__name__)


def check_installed(to: Sequence[str], setting: str = "tracking.to") -> None:
    """Raise UserError if a tracker does not exist or its packages are not installed; none of them is imported."""
    names = plugins.available("trackers")
    for name in to:
        if name not in names:
            raise UserError(f"there is no tracker {name}; allowed: {', '.join(names)}")
        if not all(map(importlib.util.find_spec, load(name).REQUIRES)):
            raise UserError(
                f"{setting}: {name} is not installed here; install it with: {shipped.how_to_install(name)}, or remove "
                f"it from {setting}"
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
    """Copy every committed row to the trackers; with ``follow``, continue until all runs are finished.

    ``output`` gets the number of rows in the copies of each run. Raises UserError if no tracker is named or one is not
    installed, and EverstepError if one fails.
    """
    if not to:
        raise UserError(
            f"tracking.to names no tracker; add some of {', '.join(plugins.available('trackers'))} there, or pass --to"
        )
    check_installed(to)
    from filelock import FileLock

    folder = experiment.tracking.folder
    make_dirs(folder)
    seen: list[Curve] = []
    lock = FileLock(folder / ".lock")
    with ExitStack() as stack:
        with _locked(lock):
            trackers = {name: _opened(name, experiment.tracking, stack) for name in dict.fromkeys(to)}
        while True:
            # The lock covers reading and writing: older rows must not overwrite newer ones of another process.
            with _locked(lock):
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
def _locked(lock: BaseFileLock) -> Iterator[None]:
    """Hold the lock; after a while of waiting, log what to do if its owner is gone."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=WARN_AFTER_S)
    except Timeout:
        logger.warning(
            "waiting for another `track` to release %s; if none is running, on no host, delete that file: on a disk "
            "without file locks a killed process may leave it",
            lock.lock_file,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _opened(name: str, tracking: Tracking, stack: ExitStack) -> Tracker:
    section, folder = getattr(tracking, name, None), tracking.folder
    try:
        return stack.enter_context(open_tracker(name, folder, section.model_dump() if section else {}))
    except Exception as error:
        raise EverstepError(f"{name} cannot be opened in {folder}: {_first_line(error)}. {UNAFFECTED}") from error


def _first_line(error: Exception) -> str:
    """Return the error's message without the SQL statement that MLflow appends."""
    return str(error).partition("\n")[0]


def _copy(curve: Curve, trackers: dict[str, Tracker]) -> None:
    for name, tracker in trackers.items():
        try:
            new = tracker.write(curve)
        except Exception as error:
            raise EverstepError(
                f"{name} cannot write the rows of {curve.id}: {type(error).__name__}: {_first_line(error)}. "
                f"{UNAFFECTED}"
            ) from error
        logger.info("%s: %s: %s, %d new", name, curve.id, count(len(curve.rows), "row"), new)


def _are_all_finished(experiment: Experiment, found: Sequence[Curve], results: Path) -> bool:
    """Return whether no run can get more rows. A pruned trial never finishes, so only the tuned run is waited for."""
    wanted = {run.digest for run in plan.expand(experiment)}
    if experiment.tune is not None:
        best = results_layout.best_file(results_layout.study_dir(results / experiment.name, plan.study_id(experiment)))
        if not best.exists():
            return False
        wanted.add(read_json(best, "run")["run"]["digest"])
    statements = results_layout.trainings(results / experiment.name)
    diverged = {training["digest"] for training in map(read_training, statements) if "state" in training}
    return wanted <= {curve.digest for curve in found if curve.is_finished} | diverged

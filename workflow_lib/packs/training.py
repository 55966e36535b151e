"""The job of a pack: it imports everything once, and forks a process for each training, evaluation and export."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan, ready
from workflow_lib.errors import Stopped
from workflow_lib.files import read_json, temporary_name, write_json
from workflow_lib.launch import launcher
from workflow_lib.launch.context import time_left
from workflow_lib.packs import gpu, imports
from workflow_lib.packs.forks import Forks, Task
from workflow_lib.packs.job import Job
from workflow_lib.packs.runs import Runs, Subject
from workflow_lib.packs.study import Trials
from workflow_lib.results import computed
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import TUNED
from workflow_lib.store import layout
from workflow_lib.text import count

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)
MARGIN_S = 60.0  # before the time limit of the job, for saving and ending; a quarter of the limit if that is less


def train(
    experiment: Experiment,
    pack: plan.Pack,
    *,
    work: Path,
    threads: int,
    output: Path,
    logs: Path,
    deadline_minutes: float | None = None,
    is_requeued: bool = False,
    share: Callable[..., AbstractContextManager[tuple[Experiment, gpu.Memory | None]]] = gpu.share,
) -> None:
    """Train the runs, ``threads`` at once, and write the exit code of each to ``output``.

    On a GPU, which ``share`` leases, as many as its memory holds.

    A run that fails does not stop the others. Raises Stopped if the pack was asked to stop; the runs have saved. If the
    job is requeued then (``is_requeued``), also if a run did not end for another reason, such as another owner.
    """
    launcher.prepare()
    left_s = time_left(deadline_minutes)
    ends_at = None if left_s is None else time.monotonic() + left_s
    imports.import_for_training(*(["optuna"] if pack.study else []))
    margin_s = min(MARGIN_S, (left_s or 0.0) / 4)
    forks = Forks(threads, None if ends_at is None else ends_at - margin_s - time.monotonic())
    scratch = temporary_name(layout.pack_file(work, pack.id))
    results = results_layout.RESULTS / experiment.name
    with ExitStack() as held:
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        shared = share(experiment, scratch / "memory", must_stop=lambda: forks.stop_signal)
        experiment, memory = held.enter_context(shared)
        job = Job(experiment, work, logs, ends_at, scratch, (ready.folder() or scratch) / pack.id, memory)
        if memory is not None:
            forks.allows = memory.allows
        rest = imports.Rest(is_needed=computed.packs_compute(experiment))
        runs = Runs(job, pack, results, rest.finish)
        at_once = f"{threads} at once" if memory is None else f"up to {threads} at once on a GPU"
        logger.info("%s, %s; their logs are in %s", pack.described, at_once, logs)
        trials = _trials(job, pack, results, runs)
        # trials wait for each other: they start first
        forks.run([*(trials.next() if trials else ()), *runs.tasks()], meanwhile=rest.import_next)
    if forks.stop_signal:
        why = "its time limit" if forks.stop_signal == signal.SIGALRM else signal.Signals(forks.stop_signal).name
        raise Stopped(f"the pack was stopped by {why}; its runs have saved. Run the same command again")
    trained = trials.codes if trials else {}
    unfinished = [name for name, code in (runs.codes | trained).items() if code == Stopped.exit_code]
    if unfinished and is_requeued:
        raise Stopped(f"{count(len(unfinished), 'training')} of the pack did not end: {', '.join(unfinished)}")
    write_json(output, {"runs": runs.codes, "computed": sorted(runs.computed), "trials": trained})


def _trials(job: Job, pack: plan.Pack, results: Path, runs: Runs) -> Trials | None:
    """Return the trials of the study if the pack trains them; the run with the best settings follows."""
    if pack.study is None or job.experiment.tune is None:
        return None
    study, data_id = pack.study
    data = results_layout.data_manifest(results, data_id)
    folder = results_layout.study_dir(results, study)

    def tuned(best: Path) -> Task:
        reference = results_layout.best_file(folder)
        id = str(read_json(best, "run")["run"]["id"])
        return runs.task(Subject(TUNED, id, str(reference), data, {reference: best}))

    return Trials(job, job.experiment.tune, data, folder, tuned)

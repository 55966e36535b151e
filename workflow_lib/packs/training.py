"""The training of a pack's runs, and the evaluation and export of those that are finished, into the store."""

from __future__ import annotations

import importlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import config, plan
from workflow_lib.errors import StateError, Stopped
from workflow_lib.files import file_digest, temporary_name, write_json
from workflow_lib.launch import commands, launcher
from workflow_lib.launch.context import create_context, time_left
from workflow_lib.packs import gpu
from workflow_lib.packs.forks import Forks, Task
from workflow_lib.packs.job import Job
from workflow_lib.packs.study import Trials
from workflow_lib.results import computed, write_run
from workflow_lib.results import layout as results_layout
from workflow_lib.store import layout
from workflow_lib.store.final_checkpoint import find_final_checkpoint
from workflow_lib.text import count

if TYPE_CHECKING:
    from workflow_lib.checkpoint import Checkpoint
    from workflow_lib.config import Experiment
    from workflow_lib.launch.context import AttemptContext

logger = logging.getLogger(__name__)
MARGIN_S = 60.0  # before the time limit of the job, for saving and ending; a quarter of the limit if that is less
# what trainings, evaluations and exports import; not onnxruntime, which starts a thread
IMPORTED = (
    "torch.distributed.launcher.api",
    "workflow_lib.training.trainer",
    "workflow_lib.data",
    "onnx",
    "onnxscript.function_libs.torch_lib.ops",
    "torch.onnx",
    "workflow_lib.evaluation",
    "workflow_lib.export",
)


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
    from workflow_lib.runtime.torch_internals import IMPORTED_LATE

    for name in (*IMPORTED_LATE, *IMPORTED, *(("optuna",) if pack.study else ())):
        importlib.import_module(name)
    margin_s = min(MARGIN_S, (left_s or 0.0) / 4)
    forks = Forks(threads, None if ends_at is None else ends_at - margin_s - time.monotonic())
    scratch = temporary_name(layout.pack_file(work, pack.id))
    results = results_layout.RESULTS / experiment.name
    with ExitStack() as held:
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        shared = share(experiment, scratch / "memory", must_stop=lambda: forks.stop_signal)
        experiment, memory = held.enter_context(shared)
        job = Job(experiment, work, logs, ends_at, scratch, memory)
        if memory is not None:
            forks.allows = memory.allows
        runs = Runs(job, pack, results)
        at_once = f"{threads} at once" if memory is None else f"up to {threads} at once on a GPU"
        logger.info("%s, %s; their logs are in %s", pack.described, at_once, logs)
        trials = _trials(job, pack, results)
        forks.run([*runs.tasks(), *(trials.next() if trials else ())])
    if forks.stop_signal:
        why = "its time limit" if forks.stop_signal == signal.SIGALRM else signal.Signals(forks.stop_signal).name
        raise Stopped(f"the pack was stopped by {why}; its runs have saved. Run the same command again")
    trained = trials.codes if trials else {}
    unfinished = [name for name, code in (runs.codes | trained).items() if code == Stopped.exit_code]
    if unfinished and is_requeued:
        raise Stopped(f"{count(len(unfinished), 'training')} of the pack did not end: {', '.join(unfinished)}")
    write_json(output, {"runs": runs.codes, "computed": sorted(runs.computed), "trials": trained})


def _trials(job: Job, pack: plan.Pack, results: Path) -> Trials | None:
    """Return the trials of the study if the pack trains them."""
    if pack.study is None or job.experiment.tune is None:
        return None
    study, data_id = pack.study
    data = results_layout.data_manifest(results, data_id)
    return Trials(job, job.experiment.tune, data, results_layout.study_dir(results, study), job.scratch / "study")


class Runs:
    """The runs of a pack: each is trained in a fork, and then evaluated and exported in another."""

    def __init__(self, job: Job, pack: plan.Pack, results: Path) -> None:
        self._job, self._pack, self._results = job, pack, results
        self._computes = computed.computes_on_cpu(job.experiment)
        self.codes: dict[str, int] = {}  # exit code of each training
        self.computed: list[str] = []  # runs that are evaluated and exported

    def tasks(self) -> Iterator[Task]:
        """Yield the trainings, each of which is followed by its evaluation and export."""
        for run, data_id in self._pack.runs:
            data = results_layout.data_manifest(self._results, data_id)
            yield self._training(run, data_id, data)

    def _training(self, run: str, data_id: str, data: Path, *, is_alone: bool = False) -> Task:
        kind = "" if self._job.memory is None else gpu.kind_of(plan.load_run(run, self._job.work)[0], data_id)
        again = None if is_alone or not kind else partial(self._training, run, data_id, data, is_alone=True)
        ended = partial(self._trained, run, data, again)
        return replace(self._task(run, partial(_train, self._job, run, data), ended), kind=kind, is_alone=is_alone)

    def _task(self, run: str, call: Callable[[], None], ended: Callable[[int], Iterable[Task]]) -> Task:
        return Task(run, call, self._job.logs / f"{run}.log", ended)

    def _trained(self, run: str, data: Path, again: Callable[[], Task] | None, code: int) -> Iterator[Task]:
        if code == gpu.NoMemory.exit_code and again is not None:
            logger.info("%s: ran out of the GPU's memory; it goes on alone", run)
            yield again()
            return
        self.codes[run] = code
        logger.info("%s: %s", run, "trained" if code == 0 else f"exit code {code}; its own job goes on with it")
        if code == 0 and self._computes:
            yield self._task(run, partial(_compute, self._job, run, data), partial(self._evaluated, run))

    def _evaluated(self, run: str, code: int) -> tuple[Task, ...]:
        if code == 0:
            self.computed.append(run)
        return ()


def _train(job: Job, run: str, data: Path) -> None:
    with gpu.measured(job.memory, run):
        commands.finish(job.experiment, run=run, data=data, work=job.work, deadline_minutes=job.minutes_left())


def _compute(job: Job, run: str, data: Path) -> None:
    """Evaluate and export a finished run as the jobs of the rules do, and keep the results for them."""
    from workflow_lib.runtime.threads import set_threads

    set_threads(1)
    context = create_context(job.experiment, run, data, job.work, None, None)
    final = find_final_checkpoint(context.workspace)
    if final is None:
        raise StateError(f"{run}: its result was accepted for changed code; its own jobs evaluate and export it")
    kept = layout.computed_dir(context.workspace)
    scratch = temporary_name(kept / "scratch")
    scratch.mkdir(parents=True)
    try:
        _evaluate_and_export(job, context, run, data, final, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _evaluate_and_export(
    job: Job, context: AttemptContext, run: str, data: Path, final: Checkpoint, scratch: Path
) -> None:
    from workflow_lib.evaluation import evaluate
    from workflow_lib.export import export, shared_graph

    write_run.write(final, commands.trained_run(context), data, scratch / results_layout.TRAIN)
    experiment, work = job.experiment, job.work
    model, evaluation = scratch / results_layout.MODEL, scratch / results_layout.EVALUATION
    folder = computed.place("evaluate", experiment, run=run, data=data, work=work, model=model)
    if computed.is_kept(folder):
        computed.copy("evaluate", folder, scratch)
    else:
        evaluate(experiment, run=run, data=data, work=work, model=model, output=evaluation)
        computed.keep("evaluate", scratch, folder)
    folder = computed.place("export", experiment, run=run, data=data, work=work, model=model, evaluation=evaluation)
    if not computed.is_kept(folder):
        decided_by = [context.run.model.model_dump(mode="json"), file_digest(data), context.code]
        export(
            experiment,
            run=run,
            data=data,
            work=work,
            model=model,
            evaluation=evaluation,
            output=scratch / results_layout.EXPORT,
            convert=shared_graph.converting(job.scratch / "graphs", about=config.digest(decided_by, "graph")),
        )
        computed.keep("export", scratch, folder)

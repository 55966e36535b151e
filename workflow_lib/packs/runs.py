"""The runs of a pack: each is trained in a fork, and then evaluated and exported in another.

Their results are put into the store, and are prepared for the jobs of the rules, which hand them out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from workflow_lib import config, plan, ready
from workflow_lib.config.length import Length
from workflow_lib.data import Manifest
from workflow_lib.errors import EverstepError
from workflow_lib.files import file_digest, read_json
from workflow_lib.launch import commands
from workflow_lib.packs import gpu
from workflow_lib.packs.forks import Task
from workflow_lib.packs.job import Job
from workflow_lib.results import computed
from workflow_lib.results import layout as results_layout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A run as its jobs know it.

    ``name`` is that of its results, ``id`` that of the run, and ``reference`` what commands call it. They are the same
    but for the run `tuned`, whose reference is a file of ``inputs``: further inputs, and where each can be read now.
    """

    name: str
    id: str
    reference: str
    data: Path
    inputs: Mapping[Path, Path] = field(default_factory=dict)


class Runs:
    """The tasks of the runs, and what became of them."""

    def __init__(self, job: Job, pack: plan.Pack, results: Path, prepare: Callable[[], object]) -> None:
        """``prepare`` is called before the fork of an evaluation: it imports what that needs."""
        self._job, self._pack, self._results, self._prepare = job, pack, results, prepare
        self._computes = computed.packs_compute(job.experiment)
        self.codes: dict[str, int] = {}  # exit code of each training
        self.computed: list[str] = []  # runs that are evaluated and exported

    def tasks(self) -> Iterator[Task]:
        """Yield the trainings, after which come their evaluations and exports.

        The longest come first: one that starts last would leave the other cores idle.
        """
        samples: dict[Path, int] = {}
        runs = [Subject(id, id, id, results_layout.data_manifest(self._results, data)) for id, data in self._pack.runs]
        for run in sorted(runs, key=lambda run: _length(self._job, run, samples), reverse=True):
            yield self.task(run)

    def task(self, run: Subject, *, is_alone: bool = False) -> Task:
        """Return the training of a run, which is followed by its evaluation and export."""
        kind = "" if self._job.memory is None else self._kind(run)
        again = None if is_alone or not kind else partial(self.task, run, is_alone=True)
        task = self._task(run, partial(_train, self._job, run), partial(self._trained, run, again))
        return replace(task, kind=kind, is_alone=is_alone)

    def _kind(self, run: Subject) -> str:
        return gpu.kind_of(plan.load_run(run.id, self._job.work)[0], run.data.stem)

    def _task(self, run: Subject, call: Callable[[], None], ended: Callable[[int], Iterable[Task]]) -> Task:
        return Task(run.name, call, self._job.logs / f"{run.name}.log", ended)

    def _trained(self, run: Subject, again: Callable[[], Task] | None, code: int) -> Iterator[Task]:
        if code == gpu.NoMemory.exit_code and again is not None:
            logger.info("%s: ran out of the GPU's memory; it goes on alone", run.name)
            yield again()
            return
        self.codes[run.name] = code
        logger.info("%s: %s", run.name, "trained" if code == 0 else f"exit code {code}; its own job goes on with it")
        if code == 0 and self._computes:
            task = self._task(run, partial(_compute, self._job, run), partial(self._evaluated, run))
            # trainings come first: some wait for others, and two short tasks at the end leave no core idle for long
            yield replace(task, prepare=self._prepare, is_last=True)

    def _evaluated(self, run: Subject, code: int) -> tuple[Task, ...]:
        if code == 0:
            self.computed.append(run.name)
        return ()


def _length(job: Job, run: Subject, samples: dict[Path, int]) -> tuple[int, int]:
    """Return the optimizer steps of a run, and its batch size; zeros if its training is to say what is wrong with it.

    ``samples`` has the training samples by manifest, as far as they are known.
    """
    try:
        training = plan.load_run(run.id, job.work)[0].training
        if run.data not in samples:
            samples[run.data] = Manifest.load(run.data).splits["train"].samples
    except EverstepError:
        return 0, 0
    return Length.of(training, samples[run.data] // training.batch_size).total, training.batch_size


def _prepared(job: Job, run: Subject) -> Path:
    return job.prepared / run.name


def _given(job: Job, run: Subject) -> tuple[Path, dict[str, object]]:
    """Return the results folder of a run, and the options that its commands share."""
    results = results_layout.RESULTS / job.experiment.name
    return results_layout.run_dir(results, run.name), {"--run": run.reference, "--data": run.data}


def _train(job: Job, run: Subject) -> None:
    """Train the run, and prepare its statement, weights and curve."""
    own = _prepared(job, run)
    output = own / results_layout.TRAIN
    given: dict[str, Any] = {"run": run.id, "data": run.data, "work": job.work}
    requests: list[Path] = []
    with gpu.measured(job.memory, run.name):
        minutes = job.minutes_left()
        commands.finish(job.experiment, **given, output=output, deadline_minutes=minutes, note=requests.append)
    names = [results_layout.MODEL, results_layout.HISTORY, results_layout.STEPS]
    present = [name for name in names if (own / name).exists()]
    results, options = _given(job, run)
    ready.write(
        "train",
        options,
        results / output.name,
        inputs={run.data: run.data, **run.inputs},
        files={name: own / name for name in present},
        statement=output,
        absent=[name for name in names if name not in present],
        requests=next(iter(requests), None),
        said="trained in a pack",
    )


def _compute(job: Job, run: Subject) -> None:
    """Evaluate and export a finished run as the jobs of the rules do, and keep the results for them."""
    from workflow_lib.evaluation import evaluate
    from workflow_lib.export import export, shared_graph
    from workflow_lib.runtime.threads import set_threads

    set_threads(1)
    own, work = _prepared(job, run), job.work
    on_cpu = job.experiment.evaluate.model_copy(update={"device": "cpu"})
    experiment = job.experiment.model_copy(update={"evaluate": on_cpu})
    model, evaluation = own / results_layout.MODEL, own / results_layout.EVALUATION
    given: dict[str, Any] = {"run": run.id, "data": run.data, "work": work, "model": model}
    results, options = _given(job, run)
    options["--model"] = results / model.name
    inputs = {run.data: run.data, results / model.name: model, **run.inputs}
    folder = computed.place("evaluate", experiment, **given)
    if computed.is_kept("evaluate", folder):
        computed.copy("evaluate", folder, own)
    else:
        evaluate(experiment, **given, output=evaluation)
        computed.keep("evaluate", own, folder)
    _announce("evaluate", options, results, folder, inputs)
    measured = {name: read_json(evaluation, "model", "metrics")[name] for name in ("model", "metrics")}
    folder = computed.place("export", experiment, **given, evaluation=evaluation)
    if not computed.is_kept("export", folder):
        settings = plan.load_run(run.id, work)[0].model.model_dump(mode="json")
        code = read_json(own / results_layout.TRAIN, "code")["code"]
        about = config.digest([settings, file_digest(run.data), code], "graph")
        convert = shared_graph.converting(job.scratch / "graphs", about=about)
        export(experiment, **given, evaluation=evaluation, output=own / results_layout.EXPORT, convert=convert)
        computed.keep("export", own, folder)
    options["--evaluation"] = results / evaluation.name
    _announce("export", options, results, folder, inputs, measured)


def _announce(
    stage: str,
    options: Mapping[str, object],
    results: Path,
    folder: Path,
    inputs: Mapping[Path, Path],
    evaluation: Mapping[str, object] | None = None,
) -> None:
    """Write the ticket of an evaluation or an export whose results are in ``folder``."""
    statement, other = computed.FILES[stage]
    ready.write(
        stage,
        options,
        results / statement,
        inputs=inputs,
        files={other: folder / other},
        statement=folder / statement,
        evaluation=evaluation,
        is_of_threads=True,
        said="computed in a pack",
    )

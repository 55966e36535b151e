"""The training of a pack's runs, and the evaluation and export of those that are finished, into the store."""

from __future__ import annotations

import importlib
import logging
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan
from workflow_lib.errors import Stopped
from workflow_lib.files import temporary_name, write_json
from workflow_lib.launch import commands, launcher
from workflow_lib.launch.context import create_context
from workflow_lib.packs.forks import Forks, Task
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
) -> None:
    """Train the runs, ``threads`` at once, and write the exit code of each to ``output``.

    A run that fails does not stop the others. Raises Stopped if the pack was asked to stop; the runs have saved.
    """
    launcher.prepare()
    ends_at = None if deadline_minutes is None else time.monotonic() + deadline_minutes * 60
    from workflow_lib.runtime.torch_internals import IMPORTED_LATE

    for name in (*IMPORTED_LATE, *IMPORTED):
        importlib.import_module(name)
    margin_s = 0.0 if deadline_minutes is None else min(MARGIN_S, deadline_minutes * 15)
    forks = Forks(threads, None if ends_at is None else ends_at - margin_s - time.monotonic())
    codes: dict[str, int] = {}
    folder = results_layout.RESULTS / experiment.name

    def trained(run: str, data: Path, code: int) -> Iterator[Task]:
        codes[run] = code
        logger.info("%s: %s", run, "trained" if code == 0 else f"exit code {code}; its own job goes on with it")
        if code == 0:
            yield Task(run, partial(_compute, experiment, run, data, work), logs / f"{run}.log")

    def tasks() -> Iterator[Task]:
        for run, data_id in pack.runs:
            data = results_layout.data_manifest(folder, data_id)
            call = partial(_train, experiment, run, data, work, ends_at)
            yield Task(run, call, logs / f"{run}.log", partial(trained, run, data))

    logger.info("%s, %d at once; their logs are in %s", count(len(pack.runs), "run"), threads, logs)
    forks.run(tasks())
    if forks.stop_signal:
        why = "its time limit" if forks.stop_signal == signal.SIGALRM else signal.Signals(forks.stop_signal).name
        raise Stopped(f"the pack was stopped by {why}; its runs have saved. Run the same command again")
    write_json(output, {"runs": codes})


def _train(experiment: Experiment, run: str, data: Path, work: Path, ends_at: float | None) -> None:
    left = None if ends_at is None else (ends_at - time.monotonic()) / 60
    commands.finish(experiment, run=run, data=data, work=work, deadline_minutes=left)


def _compute(experiment: Experiment, run: str, data: Path, work: Path) -> None:
    """Evaluate and export a finished run as the jobs of the rules do, and keep the results for them."""
    from workflow_lib.runtime.threads import set_threads

    if not computed.computes_on_cpu(experiment):
        return
    set_threads(1)
    context = create_context(experiment, run, data, work, None, None)
    final = find_final_checkpoint(context.workspace)
    if final is None:  # a result that was accepted for changed code, which its job hands out
        return
    kept = layout.computed_dir(context.workspace)
    scratch = temporary_name(kept / "scratch")
    scratch.mkdir(parents=True)
    try:
        _evaluate_and_export(experiment, context, run, data, final, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _evaluate_and_export(
    experiment: Experiment, context: AttemptContext, run: str, data: Path, final: Checkpoint, scratch: Path
) -> None:
    from workflow_lib.evaluation import evaluate
    from workflow_lib.export import export

    write_run.write(final, commands.trained_run(context), data, scratch / results_layout.TRAIN)
    work, model, evaluation = context.work, scratch / results_layout.MODEL, scratch / results_layout.EVALUATION
    folder = computed.place("evaluate", experiment, run=run, data=data, work=work, model=model)
    if computed.is_kept(folder):
        computed.copy("evaluate", folder, scratch)
    else:
        evaluate(experiment, run=run, data=data, work=work, model=model, output=evaluation)
        computed.keep("evaluate", scratch, folder)
    folder = computed.place("export", experiment, run=run, data=data, work=work, model=model, evaluation=evaluation)
    if not computed.is_kept(folder):
        output = scratch / results_layout.EXPORT
        export(experiment, run=run, data=data, work=work, model=model, evaluation=evaluation, output=output)
        computed.keep("export", scratch, folder)

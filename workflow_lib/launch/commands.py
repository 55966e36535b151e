"""The commands `train` and `trial`: return the result of a finished run at once, or make an attempt to finish it.

Exit codes: 0 finished, 75 stopped and saved, 1 failed, 2 the user's mistake.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import checkpoint, plan
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.config.run_checks import batch_problem
from workflow_lib.errors import CheckpointError, ConfigError, DivergedError, UserError
from workflow_lib.launch.context import AttemptContext, create_context
from workflow_lib.results import write_run
from workflow_lib.slurm import nodes
from workflow_lib.store import code_record, failure_record, layout
from workflow_lib.store.events import EventLog
from workflow_lib.store.final_checkpoint import find_result, is_finished
from workflow_lib.store.lease import Lease

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.training.state import EpochMetrics
    from workflow_lib.training.trainer import StopEarly

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    output: Path,
    deadline_minutes: float | None = None,
) -> None:
    """Finish the run, and write its statement to ``output`` and its weights and history beside it.

    A point of a sweep that diverges is a result too: its statement says so, and it has no weights. Raises Stopped (exit
    code 75) if the training was asked to stop first, after it has saved its state.
    """
    context = create_context(experiment, run, data, work, deadline_minutes, None)
    trained = trained_run(context)
    try:
        _finish(context, trained, data, output)
    except DivergedError as error:
        newest = checkpoint.read_newest(layout.checkpoints_dir(context.workspace))
        saved = f"The state of step {newest.step} is kept: {newest.path}" if newest else "No earlier state was saved"
        if not plan.is_point(experiment, run):
            raise DivergedError(f"{error}. {saved}") from error
        if context.is_owner:
            step = newest.step if newest else 0
            write_run.write_diverged(f"{_first_message(context, error)}. {saved}", step, trained, data, output)


def finish(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    output: Path,
    note: Callable[[Path], None],
    deadline_minutes: float | None = None,
) -> None:
    """Finish the run and write its statement like `train`; also a point of a sweep raises DivergedError.

    ``note`` is called with the file that records requests for the result, in place of a record: the job that gets the
    result makes it.
    """
    context = create_context(experiment, run, data, work, deadline_minutes, None)
    _finish(context, trained_run(context), data, output, note)


def _finish(
    context: AttemptContext,
    trained: write_run.TrainedRun,
    data: Path,
    output: Path,
    note: Callable[[Path], None] | None = None,
) -> None:
    def deliver(final: Checkpoint) -> None:
        if context.is_owner:
            write_run.write(final, trained, data, output)
            _note_delivered(context, final, str(output), note)

    with _finished(context) as final:
        if final is not None:
            logger.info("%s is already finished: nothing to train", context.digest[:12])
            deliver(final)
            return
    _warn_of_other_code(context)
    _attempt(context, deliver)


def trained_run(context: AttemptContext) -> write_run.TrainedRun:
    """Return the run of an attempt, for its statement."""
    return write_run.TrainedRun(
        digest=context.digest,
        data=context.manifest.digest,
        code=context.code,
        task=context.manifest.task,
        select_metric=context.run.training.select_metric,
        workspace=context.workspace,
        sources=plan.sources_of(context.run),
    )


def trial(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    stop_early: StopEarly,
    deadline_minutes: float | None = None,
    note: Callable[[Path], None] | None = None,
) -> list[EpochMetrics]:
    """Return the curve of a suggested run, trained to its end or until ``stop_early`` returns true.

    ``note`` is that of `finish`.
    """
    context = create_context(experiment, run, data, work, deadline_minutes, stop_early)
    with _finished(context) as final:
        known: list[EpochMetrics] | None = checkpoint.read_state(final)["progress"]["history"] if final else None
    if known is None:
        known = _pruned_before(context)
    if known is None:
        try:
            known = _attempt(context)
        except DivergedError as error:
            raise DivergedError(_first_message(context, error)) from error
    history = known
    newest = final or checkpoint.read_newest(layout.checkpoints_dir(context.workspace))
    if newest is not None and is_finished(newest):
        _note_delivered(context, newest, run, note)
    return history


def _pruned_before(context: AttemptContext) -> list[EpochMetrics] | None:
    """Return the curve of a trial that an earlier attempt has pruned; None if there is no such one."""
    try:
        newest = checkpoint.read_newest(layout.checkpoints_dir(context.workspace))
        if newest is None or context.stop_early is None:
            return None
        history: list[EpochMetrics] = checkpoint.read_state(newest)["progress"]["history"]
    except (CheckpointError, FileNotFoundError):  # the owner of the run has just deleted it
        return None
    return history if context.stop_early(history) else None


def _attempt(context: AttemptContext, deliver: Callable[[Checkpoint], None] | None = None) -> list[EpochMetrics]:
    """Make an attempt, unless it would fail like the last one."""
    from workflow_lib.launch.attempt import run_attempt  # here, since torch is not needed to return a result

    with _checked(context):
        return run_attempt(_ready(context), deliver)


@contextmanager
def _finished(context: AttemptContext) -> Iterator[Checkpoint | None]:
    """Yield the final checkpoint of a run that is already finished, or None. A lease protects it inside the block."""
    workspace = context.workspace
    if not _is_finished(workspace) and (record := code_record.read_acceptance(workspace)) is not None:
        workspace = workspace.with_name(record["workspace"])
    if not _is_finished(workspace):
        yield None
    elif not context.is_owner:
        yield find_result(context.workspace)
    else:
        timeout_s = context.experiment.runtime.lease_timeout_s
        with Lease.acquire(workspace, context.attempt, timeout_s=timeout_s, wait_s=math.inf):
            yield find_result(context.workspace)


def _is_finished(workspace: Path) -> bool:
    return is_finished(checkpoint.read_newest(layout.checkpoints_dir(workspace)))


def _note_delivered(
    context: AttemptContext, final: Checkpoint, to: str, note: Callable[[Path], None] | None = None
) -> None:
    """Record that the result was requested. Each record after the first stands for a training that was avoided."""
    requests = layout.delivered_file(layout.parent_workspace(final.path))
    if note is not None:
        note(requests)
    elif context.is_owner:
        EventLog(requests, attempt=context.attempt).append("delivered", to=to)


def _warn_of_other_code(context: AttemptContext) -> None:
    """Warn of earlier states that this training does not continue, since the user's code or files have changed."""
    earlier = layout.workspaces(context.work, context.digest, context.manifest.digest)
    if context.workspace in earlier or not context.is_owner:
        return
    for path in earlier:
        if (newest := checkpoint.read_newest(layout.checkpoints_dir(path))) is not None:
            what = "other code" if code_record.read(path) else "an earlier version, which kept no record of the code,"
            logger.warning(
                "%s trained this run up to step %d (%s): it is trained from the start. `everstep explain %s` shows "
                "what differs; `everstep accept %s` keeps a finished result",
                *(what, newest.step, path, context.digest[:12], context.digest[:12]),
            )


@contextmanager
def _checked(context: AttemptContext) -> Iterator[None]:
    """Raise the error of the last attempt if this one would fail in the same way; else run the block.

    On several nodes, the process that starts the launchers makes this check, so that all launchers act alike.
    """
    from workflow_lib.launch.attempt import check_certain_failure

    if not nodes.is_one_of_many():
        check_certain_failure(context)
    try:
        yield
    except UserError as error:
        if context.is_owner:
            failure_record.record_rejected_start(context.workspace, error, context.attempt)
        raise


def _first_message(context: AttemptContext, error: DivergedError) -> str:
    """Return the recorded reason of the divergence, so that repeated attempts write the same result."""
    failure = failure_record.read(context.workspace)
    return failure.message if failure and failure.kind == "diverged" else str(error)


def _ready(context: AttemptContext) -> AttemptContext:
    """Return the context with its data in place. For several nodes, this process becomes an `srun` of launchers."""
    from workflow_lib.data import ensure

    runtime = context.experiment.runtime
    if runtime.nodes > 1 and not nodes.is_one_of_many():
        nodes.start(runtime.nodes, runtime.nproc * runtime.threads)
    samples, batch_size = context.manifest.splits["train"].samples, context.run.training.batch_size
    if problem := batch_problem(batch_size, samples):
        raise ConfigError(f"training.batch_size: {problem}")
    if samples < 4 * batch_size:
        logger.warning("training.batch_size: an epoch of %d samples has %d steps", samples, samples // batch_size)
    return replace(context, manifest=ensure(context.manifest, context.work))

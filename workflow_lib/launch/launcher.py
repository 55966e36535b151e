"""From a command to the ranks and back: the supervisor of one attempt.

The launcher owns the workspace, the signals, the deadline and the exit code. It starts the ranks by torchrun's engine
with ``fork``, so they inherit its imports; it never touches CUDA. A run that is finished already costs it one look at
the digests.

    finished   0      stopped and saved   75      failed   1      the person's mistake   2
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import checkpoint, plan
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.config.consistency import batch_problem
from workflow_lib.distributed import failures
from workflow_lib.distributed.failures import Cause
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import Control
from workflow_lib.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    RankError,
    SaveError,
    StalledError,
    Stopped,
    UserError,
)
from workflow_lib.launch import worker
from workflow_lib.launch.attempt import Job
from workflow_lib.launch.watchdog import Watch
from workflow_lib.plan import user_code
from workflow_lib.results import write_run
from workflow_lib.runtime import device, forking
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.slurm import nodes
from workflow_lib.slurm.job import gpus_of_own_job, seconds_left
from workflow_lib.store import attempts as ws
from workflow_lib.store import layout, repeats
from workflow_lib.store.code import accepted, keep
from workflow_lib.store.code import kept as kept_of_code
from workflow_lib.store.events import EventLog
from workflow_lib.store.layout import workspace_of, workspaces
from workflow_lib.store.lease import Lease
from workflow_lib.store.runs import find_result, find_sealed

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.training.state import Row
    from workflow_lib.training.trainer import StopEarly

logger = logging.getLogger(__name__)
NOT_INTERRUPTED = "stalled|failed|raised|diverged|rejected|finished|pruned"  # beginnings of why an attempt ended


def prepare() -> None:
    """Prepare this process to fork ranks: from here on, counting GPUs does not start CUDA.

    Commands call this before they import the modules that an experiment names.
    """
    forking.count_without_cuda(device.count_elsewhere)


def train(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    output: Path,
    deadline_minutes: float | None = None,
) -> None:
    """The run is finished, and its statement, weights and history lie at ``output`` and beside it.

    A point of a sweep that diverges is a result too: its statement says so, and it has no weights. Raises Stopped (exit
    code 75) when the training was asked to stop first; what was done is saved.
    """
    job = _job(experiment, run, data, work, deadline_minutes, None)
    trained = write_run.TrainedRun(
        job.digest, job.manifest.digest, job.code, job.manifest.task, job.run.training.select_metric, job.workspace
    )

    def hand_out(sealed: Checkpoint) -> None:
        if job.node == 0:
            write_run.write(sealed, trained, data, output)
            _note_delivered(job, sealed, str(output))

    with _finished(job) as sealed:
        if sealed is not None:
            logger.info("%s is finished already: nothing is trained", job.digest[:12])
            return hand_out(sealed)
    _tell_other_code(job)
    try:
        with _unless_certain_to_fail(job):
            _attempt(_ready(job), hand_out)
    except DivergedError as error:
        newest = checkpoint.read_newest(layout.checkpoints_dir(job.workspace))
        kept = f"The state of step {newest.step} is kept: {newest.path}" if newest else "No earlier state was saved"
        if not plan.is_point(experiment, run):
            raise DivergedError(f"{error}. {kept}") from error
        if job.node == 0:
            step = newest.step if newest else 0
            write_run.write_diverged(f"{_as_first_told(job, error)}. {kept}", step, trained, data, output)


def trial(
    experiment: Experiment,
    *,
    run: str,
    data: Path,
    work: Path,
    stop_early: StopEarly,
    deadline_minutes: float | None = None,
) -> list[Row]:
    """The curve of a suggested run, trained to its end or until ``stop_early`` has seen enough of it."""
    job = _job(experiment, run, data, work, deadline_minutes, stop_early)
    with _finished(job) as sealed:
        known: list[Row] | None = checkpoint.read_state(sealed)["progress"]["history"] if sealed else None
    if known is None:
        try:
            with _unless_certain_to_fail(job):
                known = _attempt(_ready(job))
        except DivergedError as error:
            raise DivergedError(_as_first_told(job, error)) from error
    history = known
    newest = sealed or checkpoint.read_newest(layout.checkpoints_dir(job.workspace))
    if newest is not None and newest.about["cursor"]["phase"] == "finish":
        _note_delivered(job, newest, run)
    return history


@contextmanager
def _finished(job: Job) -> Iterator[Checkpoint | None]:
    """The result of a run that is finished already, or None; nobody removes it before the block ends."""
    workspace = job.workspace
    if not _is_finished(workspace) and (record := accepted(workspace)) is not None:
        workspace = workspace.with_name(record["workspace"])
    if not _is_finished(workspace):
        yield None
    elif job.node > 0:
        yield find_result(job.workspace)
    else:
        timeout_s = job.experiment.runtime.lease_timeout_s
        with Lease.acquire(workspace, job.attempt, timeout_s=timeout_s, wait_s=math.inf):
            yield find_result(job.workspace)


def _is_finished(workspace: Path) -> bool:
    newest = checkpoint.read_newest(layout.checkpoints_dir(workspace))
    return newest is not None and newest.about["cursor"]["phase"] == "finish"


def _note_delivered(job: Job, sealed: Checkpoint, to: str) -> None:
    """It is on record that the finished run was needed: each time after the first saved a training."""
    if job.node == 0:
        EventLog(layout.delivered_file(sealed.path.parents[1]), attempt=job.attempt).append("delivered", to=to)


def _tell_other_code(job: Job) -> None:
    """Says which earlier state is not continued, since the code or the files that it was trained with have changed."""
    earlier = workspaces(job.work, job.digest, job.manifest.digest)
    if job.workspace in earlier or job.node != 0:
        return
    for path in earlier:
        if (newest := checkpoint.read_newest(layout.checkpoints_dir(path))) is not None:
            what = "other code" if kept_of_code(path) else "an earlier version, which kept no record of the code,"
            logger.warning(
                "%s trained this run up to step %d (%s): it is trained anew. `everstep explain %s` shows what differs; "
                "`everstep accept %s` lets a finished result stand",
                *(what, newest.step, path, job.digest[:12], job.digest[:12]),
            )


def _job(
    experiment: Experiment,
    run: str,
    data: Path,
    work: Path,
    deadline_minutes: float | None,
    stop_early: StopEarly | None,
) -> Job:
    from workflow_lib.data import Manifest

    config, digest = _frozen(experiment, run, work)
    manifest = Manifest.load(data)
    code = user_code.digest(config)
    return Job(
        experiment=experiment,
        run=config,
        digest=digest,
        manifest=manifest,
        work=work,
        code=code,
        workspace=workspace_of(work, digest, manifest.digest, code),
        attempt=ws.new_attempt(),
        control=Control(experiment.runtime.nproc, _seconds_left(deadline_minutes)),
        stop_early=stop_early,
        node=nodes.number() if experiment.runtime.nodes > 1 else 0,
        caller="a training" if stop_early is None else f"trial {run}",
    )


@contextmanager
def _unless_certain_to_fail(job: Job) -> Iterator[None]:
    """The block is an attempt; instead of one that would fail as the last one did, its error is raised at once.

    Of several nodes, the process that starts the launchers looks before it does: they decide alike.
    """
    if not nodes.is_one_of_many():
        _refuse_certain_failure(job)
    try:
        yield
    except UserError as error:
        if job.node == 0:
            repeats.note_unbegun(job.workspace, error, job.attempt)
        raise


def _refuse_certain_failure(job: Job) -> None:
    if (failure := repeats.certain(job.workspace, job.experiment, job.caller)) is not None:
        raise repeats.told(failure, job.workspace)


def _as_first_told(job: Job, error: DivergedError) -> str:
    """The reason of a divergence without what is added when it is not tried again: a result says the same each time."""
    failure = repeats.read(job.workspace)
    return failure.message if failure and failure.kind == "diverged" else str(error)


def _ready(job: Job) -> Job:
    """The job, whose data is there and fits it. For several nodes, this process becomes an `srun` of launchers."""
    from workflow_lib.data import ensure

    runtime = job.experiment.runtime
    if runtime.nodes > 1 and not nodes.is_one_of_many():
        nodes.start(runtime.nodes, runtime.nproc * runtime.threads)
    samples, batch_size = job.manifest.splits["train"].samples, job.run.training.batch_size
    if what := batch_problem(batch_size, samples):
        raise ConfigError(f"training.batch_size: {what}")
    if samples < 4 * batch_size:
        logger.warning("training.batch_size: an epoch of %d samples has %d steps", samples, samples // batch_size)
    return replace(job, manifest=ensure(job.manifest, job.work))


def _seconds_left(deadline_minutes: float | None) -> float | None:
    """What this process has, by what it was told and by what the job that it runs in has left; None without a limit."""
    told = None if deadline_minutes is None else deadline_minutes * 60
    return min((left for left in (told, seconds_left()) if left is not None), default=None)


def _frozen(experiment: Experiment, run: str, work: Path) -> tuple[plan.RunConfig, str]:
    """The frozen run; one of the experiment that no plan has frozen yet is frozen now."""
    try:
        return plan.load_run(run, work)
    except ConfigError:
        planned = next((one for one in plan.expand(experiment) if one.id == run), None)
        if planned is None:
            raise
        plan.freeze(planned.config, work)
        return planned.config, planned.digest


def _attempt(job: Job, hand_out: Callable[[Checkpoint], None] | None = None) -> list[Row]:
    """The curve of the run, finished or pruned by this attempt or by the one that it waited for.

    Its final state is handed out before anybody else may own the workspace.
    """
    from workflow_lib.orchestrator import RootOrchestrator, Services

    sys.audit("everstep", "attempt")
    prepare()
    job.control.stop_on_signals()
    held = gpus_of_own_job(job.experiment.runtime.nodes)
    launcher = Ranks(node=job.node, is_launcher=True)
    services = Services(
        acquire_lease=partial(Lease.acquire, must_stop=lambda: job.control.stop_signal),
        lease_devices=partial(
            lease_devices, must_stop=lambda: job.control.stop_signal or job.control.is_past_deadline(0.0)
        ),
    )
    with RootOrchestrator(job.experiment, job.run, job.workspace, job.attempt, launcher, services) as root:
        sealed = find_sealed(job.workspace)
        if sealed is not None:
            history: list[Row] = checkpoint.read_state(sealed)["progress"]["history"]
        else:
            if root.device.type == "cuda":
                forking.refuse_started_cuda()
            if launcher.is_owner:
                _begin(job, root, held)
            history = _supervise(job, root)
        if hand_out is not None:
            sealed = sealed or find_sealed(job.workspace)
            if sealed is None:
                raise CheckpointError(f"{job.workspace}: the run ended, but its final state does not verify")
            hand_out(sealed)
        return history


def _begin(job: Job, root: RootOrchestrator, held: int) -> None:
    """The attempt is on record; ``held`` GPUs are the job's, even if it uses fewer."""
    newest, runtime = _newest(job.workspace), job.experiment.runtime
    if runtime.nodes == 1:  # the owner that this one waited for may have failed
        _refuse_certain_failure(job)
    _refuse_stalled(job, newest)
    ranks = runtime.nproc * runtime.nodes
    keep(job.workspace, job.run, job.code)
    ws.begin(
        job.workspace,
        job.attempt,
        world_size=ranks,
        resumed_from=newest,
        resumed_step=_step_of(newest),
        devices=max(held, ranks if root.device.type != "cpu" else 0),
        waited_s=root.waited_s,
    )


def _end(job: Job, reason: str, step: int | None = None) -> None:
    """The record says why the attempt ended; only the owner keeps one."""
    if job.node == 0:
        try:
            ws.end(
                job.workspace,
                job.attempt,
                reason,
                step=_step_of(_newest(job.workspace)) if step is None else step,
                reach=job.control.reach,
            )
        except OSError as error:  # a full disk must not hide why the attempt ended
            logger.warning("the end of attempt %s is not on record: %s", job.attempt[:8], error)


def _supervise(job: Job, root: RootOrchestrator) -> list[Row]:
    """Runs the ranks to their end and writes why they ended; the error of the first that failed is raised."""
    runtime = job.experiment.runtime
    with _scratch(job) as folder:
        watch = Watch(job.control, job.workspace, job.attempt, node=job.node, hang_s=runtime.hang_timeout_s)
        sys.audit("everstep", "launch")
        try:
            outcome = _elastic_launch(job, root, folder, watch)
        except (Stopped, RankError, ConfigError, OSError) as error:  # raised before all ranks were started
            _end(job, _why_stopped(job.control) if isinstance(error, Stopped) else f"failed: {error}")
            raise
        finally:
            watch.close()
        if watch.verdict is not None or outcome is None:
            ranks = range(job.node * runtime.nproc, (job.node + 1) * runtime.nproc)
            world = runtime.nodes * runtime.nproc
            cause = _cause(job, watch, folder, ranks, world)
            if isinstance(cause.error, Stopped):
                _end(job, _why_stopped(job.control))
                raise cause.error
            _end(job, f"{cause.kind}: {cause.error}")
            if job.node == 0 and root.lease.holds():
                is_exact = job.run.training.determinism == "strict" or root.device.type == "cpu"
                repeats.note(
                    job.workspace,
                    cause,
                    attempt=job.attempt,
                    experiment=job.experiment,
                    caller=job.caller,
                    is_deterministic=is_exact,
                )
            raise cause.error
    sys.audit("everstep", "ended")
    if outcome["ended"] == "stopped":
        reason = _why_stopped(job.control)
        _end(job, reason, outcome["step"])
        raise Stopped(f"{reason} at step {outcome['step']}; saved. Run the same command again to go on from there")
    _end(job, outcome["ended"], outcome["step"])
    if job.node == 0 and outcome["ended"] == "finished":
        repeats.forget(job.workspace)
    history: list[Row] = outcome["history"]
    return history


@contextmanager
def _scratch(job: Job) -> Iterator[Path]:
    """A folder for what launcher and ranks tell each other; the owner also removes those of attempts that are over."""
    attempts = layout.attempts_dir(job.workspace)
    for record in ws.list_attempts(job.workspace) if job.node == 0 else ():
        shutil.rmtree(attempts / record.attempt, ignore_errors=True)
    folder = attempts / job.attempt
    folder.mkdir(parents=True)  # a later node may come before the first one has made the workspace
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _elastic_launch(job: Job, root: RootOrchestrator, folder: Path, watch: Watch) -> dict[str, Any] | None:
    """Return the outcome of the first rank of this node; None if a rank failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from workflow_lib.distributed.rendezvous import LEAST_S, meeting

    def look_up() -> None:
        watch.touch()
        if job.control.stop_signal:
            raise Stopped("stopped while the launchers of the other nodes had not come; nothing was lost")

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its errors are reported by us, once
    runtime = job.experiment.runtime
    wait_s = max(LEAST_S, runtime.hang_timeout_s)
    if job.node > 0:  # the first launcher comes only when it owns the workspace
        wait_s += max(runtime.lease_wait_s, runtime.lease_timeout_s)
    reads = {"settings of the run": job.digest, "data": job.manifest.digest, "code": job.code}
    with meeting(runtime.nodes, job.node, reads) as place:
        launch = LaunchConfig(
            min_nodes=runtime.nodes,
            max_nodes=runtime.nodes,
            nproc_per_node=runtime.nproc,
            **place.settings(look_up, wait_s=wait_s),
            max_restarts=0,
            start_method="fork",
            signals_to_handle="SIGQUIT",  # the others set a flag that the ranks look at
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        if root.device.type != "cuda":
            # otherwise torch starts CUDA in the ranks, to bind them to CPUs near GPUs that they do not use
            launch.numa_options = None
        start = partial(elastic_launch(launch, worker.run), job, root, folder, place, os.getpid())
        return _first_outcome(start, folder, watch)


def _first_outcome(start: Callable[[], dict[int, Any]], folder: Path, watch: Watch) -> dict[str, Any] | None:
    """Start the ranks, wait for them, and return the outcome of the first rank; None if a rank failed."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    others = multiprocessing.active_children()
    try:
        results = start()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0 and watch.verdict is None:  # else the watch has killed it
            failures.note_killed(folder, number, signal.Signals(-failure.exitcode).name)
        elif failure.exitcode == failures.FAILED and not failures.paths(folder):
            why = failures.why_unwritten(folder) or "the disk refused"
            raise SaveError(f"rank {number} failed, and its report could not be written ({why}); see above") from error
        return None
    except SignalException:
        if watch.verdict is None:
            raise
        return None
    except DistError as error:
        raise RankError(
            f"the launchers of the nodes lost each other before the ranks were started: {error}. Check the logs of the "
            f"other nodes, and run the same command again"
        ) from error
    finally:
        for child in multiprocessing.active_children():
            if child not in others:  # a rank of a start that was cut off, which would wait for its partners for ever
                child.kill()
    outcome: dict[str, Any] = results[min(results)]
    return outcome


def _cause(job: Job, watch: Watch, folder: Path, ranks: range, world: int) -> Cause:
    """Return why the attempt failed, or that it was asked to stop before its first step."""
    # a rank that failed by itself is the cause, also where the others then waited for it too long
    if watch.verdict is None or failures.has_failed_by_itself(folder):
        return failures.first(folder, ranks, world)
    if watch.is_stopped:
        reason = f"{_why_stopped(job.control)} before the first step. Run the same command again"
        return Cause("failed", Stopped(reason))
    return Cause("failed", RankError(watch.verdict))


def _why_stopped(control: Control) -> str:
    if control.stop_signal:
        return f"stopped by {signal.Signals(control.stop_signal).name}"
    return "stopped before the deadline"


def _newest(workspace: Path) -> str | None:
    """Name of the newest checkpoint, verified or not."""
    paths = checkpoint.published(layout.checkpoints_dir(workspace))
    return paths[-1].name if paths else None


def _step_of(name: str | None) -> int:
    match = checkpoint.NAME.fullmatch(name or "")
    return int(match["step"]) if match else 0


def _refuse_stalled(job: Job, newest: str | None) -> None:
    """K interrupted attempts in a row that saved nothing new end the run, with the reason."""
    stalled: list[str] = []
    for record in reversed(ws.list_attempts(job.workspace)):
        reason = record.reason or "killed"
        if record.resumed_from != newest or re.match(NOT_INTERRUPTED, reason):
            break
        stalled.append(reason)
    if len(stalled) < job.experiment.checkpoint.max_stalled_attempts:
        return
    ws.begin(job.workspace, job.attempt, resumed_from=newest)
    ws.end(job.workspace, job.attempt, "stalled", step=_step_of(newest))
    raise StalledError(
        f"{len(stalled)} attempts in a row ended without a new step after {newest or 'the start'} "
        f"({', '.join(reversed(stalled))}). Give the job more time or memory, or a smaller checkpoint.interval_s; "
        f"running this again starts a new count"
    )

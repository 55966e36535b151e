"""One attempt to finish a run, in its launcher: begin the record, supervise the ranks, record why they ended.

The launcher of the first node owns the workspace and writes the record. Launchers of other nodes supervise their ranks
only.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from workflow_lib import checkpoint
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.distributed import failures
from workflow_lib.distributed.failures import Cause
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import CheckpointError, ConfigError, RankError, StalledError, Stopped
from workflow_lib.launch import launcher
from workflow_lib.launch.context import AttemptContext
from workflow_lib.launch.watchdog import Watchdog
from workflow_lib.runtime import forking
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.slurm.job import gpus_of_own_job
from workflow_lib.store import attempts as ws
from workflow_lib.store import code_record, failure_record, layout
from workflow_lib.store.final_checkpoint import find_final_checkpoint
from workflow_lib.store.lease import Lease

if TYPE_CHECKING:
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.training.state import EpochMetrics

logger = logging.getLogger(__name__)
# prefixes of the recorded end reasons of attempts that nothing from outside interrupted
NOT_INTERRUPTED = "stalled|failed|raised|diverged|rejected|finished|pruned"


def run_attempt(context: AttemptContext, deliver: Callable[[Checkpoint], None] | None = None) -> list[EpochMetrics]:
    """Return the training curve after this attempt, or of the previous owner if it finished while this one waited.

    Call ``deliver`` with the final checkpoint before another process can own the workspace.
    """
    from workflow_lib.orchestrator import RootOrchestrator, Services

    sys.audit("everstep", "attempt")
    launcher.prepare()
    shared_state = context.shared_state
    shared_state.stop_on_signals()
    allocated_gpus = gpus_of_own_job(context.experiment.runtime.nodes)
    ranks = Ranks(node=context.node, is_launcher=True)
    services = Services(
        acquire_lease=partial(Lease.acquire, must_stop=lambda: shared_state.stop_signal),
        lease_devices=partial(
            lease_devices, must_stop=lambda: shared_state.stop_signal or shared_state.is_past_deadline(0.0)
        ),
    )
    with RootOrchestrator(context.experiment, context.run, context.workspace, context.attempt, ranks, services) as root:
        final = find_final_checkpoint(context.workspace)
        if final is not None:  # the previous owner has finished the run
            history: list[EpochMetrics] = checkpoint.read_state(final)["progress"]["history"]
        else:
            if root.device.type == "cuda":
                forking.check_cuda_not_started()
            attempt = Attempt(context, root)
            if context.is_owner:
                attempt.begin(allocated_gpus)
            history = attempt.supervise()
        if deliver is not None:
            final = final or find_final_checkpoint(context.workspace)
            if final is None:
                raise CheckpointError(f"{context.workspace}: the run ended, but its final state does not verify")
            deliver(final)
        return history


class Attempt:
    """An attempt in its launcher, while the orchestrator holds the workspace."""

    def __init__(self, context: AttemptContext, root: RootOrchestrator) -> None:
        self._context = context
        self._root = root

    def begin(self, allocated_gpus: int) -> None:
        """Write the record of the attempt. It accounts for all GPUs of the SLURM job, even if it uses fewer."""
        context, root = self._context, self._root
        if context.experiment.runtime.nodes == 1:  # a second check, since the previous owner may have failed meanwhile
            check_certain_failure(context)
        newest = _newest(context.workspace)
        self._check_stalled(newest)
        code_record.write(context.workspace, context.run, context.code, context.source_digests)
        ws.begin(
            context.workspace,
            context.attempt,
            world_size=context.world_size,
            resumed_from=newest,
            resumed_step=_step_of(newest),
            devices=max(allocated_gpus, context.world_size if root.device.type != "cpu" else 0),
            cpus=context.world_size * context.experiment.runtime.threads,
            waited_s=root.waited_s,
        )

    def supervise(self) -> list[EpochMetrics]:
        """Run the ranks, record why they ended, and return the training curve.

        Raises the error of the rank that failed first, and Stopped if the run was saved before its end.
        """
        context = self._context
        with self._scratch() as folder:
            watchdog = Watchdog(
                context.shared_state,
                context.workspace,
                context.attempt,
                node=context.node,
                hang_s=context.experiment.runtime.hang_timeout_s,
            )
            sys.audit("everstep", "launch")
            try:
                outcome = launcher.launch(context, self._root, folder, watchdog)
            except (Stopped, RankError, ConfigError, OSError) as error:  # raised before all ranks were started
                self._end(self._why_stopped() if isinstance(error, Stopped) else f"failed: {error}")
                raise
            finally:
                watchdog.close()
            if watchdog.verdict is not None or outcome is None:
                self._fail(self._cause(watchdog, folder))
        sys.audit("everstep", "ended")
        return self._completed(outcome)

    def _completed(self, outcome: dict[str, Any]) -> list[EpochMetrics]:
        """Record the end of an attempt without a failure. Raises Stopped unless the run is finished or pruned."""
        if outcome["ended"] == "stopped":
            reason = self._why_stopped()
            self._end(reason, outcome["step"])
            raise Stopped(
                f"{reason} at step {outcome['step']}; saved. Run the same command again to continue from there"
            )
        self._end(outcome["ended"], outcome["step"])
        if self._context.is_owner and outcome["ended"] == "finished":
            failure_record.delete(self._context.workspace)
        history: list[EpochMetrics] = outcome["history"]
        return history

    def _fail(self, cause: Cause) -> NoReturn:
        """Record the failure and raise its error."""
        context = self._context
        if isinstance(cause.error, Stopped):
            self._end(self._why_stopped())
            raise cause.error
        self._end(f"{cause.kind}: {cause.error}")
        # an owner that has lost its lease must not write about the workspace of another
        if context.is_owner and self._root.lease.holds():
            failure_record.record(
                context.workspace,
                cause,
                attempt=context.attempt,
                experiment=context.experiment,
                caller=context.caller,
                is_deterministic=context.run.training.determinism == "strict" or self._root.device.type == "cpu",
            )
        raise cause.error

    def _cause(self, watchdog: Watchdog, folder: Path) -> Cause:
        """Return why the attempt failed, or that it was asked to stop before its first step."""
        # a rank that failed by itself is the cause, even if the other ranks then waited for it until the hang timeout
        if watchdog.verdict is None or failures.has_failed_by_itself(folder):
            return failures.first(folder, self._context.local_ranks, self._context.world_size)
        if watchdog.is_stopped:
            reason = f"{self._why_stopped()} before the first step. Run the same command again"
            return Cause("failed", Stopped(reason))
        return Cause("failed", RankError(watchdog.verdict))

    def _end(self, reason: str, step: int | None = None) -> None:
        """Record why the attempt ended, and at which step: by default that of the newest checkpoint."""
        context = self._context
        if not context.is_owner:
            return
        try:
            step = _step_of(_newest(context.workspace)) if step is None else step
            ws.end(context.workspace, context.attempt, reason, step=step, step_range=context.shared_state.step_range)
        except OSError as error:  # a full disk must not hide why the attempt ended
            logger.warning("the end of attempt %s is not on record: %s", context.attempt[:8], error)

    def _why_stopped(self) -> str:
        number = self._context.shared_state.stop_signal
        return f"stopped by {signal.Signals(number).name}" if number else "stopped before the deadline"

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield a folder in which launcher and ranks exchange files. The owner removes those of earlier attempts."""
        context = self._context
        attempts = layout.attempts_dir(context.workspace)
        for record in ws.list_attempts(context.workspace) if context.is_owner else ():
            shutil.rmtree(attempts / record.attempt, ignore_errors=True)
        folder = attempts / context.attempt
        folder.mkdir(parents=True)  # the launcher of a later node may come before the first has created the workspace
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_stalled(self, newest: str | None) -> None:
        """Raise StalledError after `max_stalled_attempts` interrupted attempts in a row that saved no new step."""
        context = self._context
        stalled: list[str] = []
        for record in reversed(ws.list_attempts(context.workspace)):
            reason = record.reason or "killed"
            if record.resumed_from != newest or re.match(NOT_INTERRUPTED, reason):
                break
            stalled.append(reason)
        if len(stalled) < context.experiment.checkpoint.max_stalled_attempts:
            return
        # this record ends the series, so that the next attempt starts a new count
        ws.begin(context.workspace, context.attempt, resumed_from=newest)
        ws.end(context.workspace, context.attempt, "stalled", step=_step_of(newest))
        raise StalledError(
            f"{len(stalled)} attempts in a row ended without a new step after {newest or 'the start'} "
            f"({', '.join(reversed(stalled))}). Give the job more time or memory, or a smaller checkpoint.interval_s; "
            f"running this again starts a new count"
        )


def check_certain_failure(context: AttemptContext) -> None:
    """Raise the recorded error of the last attempt if nothing that it depends on has changed."""
    if (failure := failure_record.find_certain(context.workspace, context.experiment, context.caller)) is not None:
        raise failure_record.repeated_error(failure, context.workspace)


def _newest(workspace: Path) -> str | None:
    """Return the name of the newest checkpoint, verified or not; None without one."""
    paths = checkpoint.published(layout.checkpoints_dir(workspace))
    return paths[-1].name if paths else None


def _step_of(name: str | None) -> int:
    match = checkpoint.NAME.fullmatch(name or "")
    return int(match["step"]) if match else 0

"""Start of the ranks of one node and the wait for their outcome, by torchrun's engine (torch.distributed.elastic).

The ranks are forked, so they inherit the imports of the launcher, which must never touch CUDA.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.distributed import failures
from workflow_lib.errors import RankError, SaveError, Stopped
from workflow_lib.launch import worker
from workflow_lib.launch.context import AttemptContext
from workflow_lib.launch.watchdog import Watchdog
from workflow_lib.runtime import device, forking

if TYPE_CHECKING:
    from workflow_lib.orchestrator import RootOrchestrator


def prepare() -> None:
    """Prepare this process to fork ranks: from here on, counting GPUs does not start CUDA.

    Commands call this before they import the modules that an experiment names.
    """
    forking.count_without_cuda(device.count_elsewhere)


def launch(context: AttemptContext, root: RootOrchestrator, folder: Path, watchdog: Watchdog) -> dict[str, Any] | None:
    """Run the ranks of this node; return the outcome of the lowest rank, or None if a rank failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from workflow_lib.distributed.rendezvous import LEAST_S, open_rendezvous

    def poll() -> None:
        watchdog.touch()
        if context.shared_state.stop_signal:
            raise Stopped("stopped while waiting for the launchers of the other nodes; nothing was lost")

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the launcher reports its errors itself
    runtime = context.experiment.runtime
    wait_s = max(LEAST_S, runtime.hang_timeout_s)
    if not context.is_owner:  # the first launcher connects only when it owns the workspace
        wait_s += max(runtime.lease_wait_s, runtime.lease_timeout_s)
    digests = {"settings of the run": context.digest, "data": context.manifest.digest, "code": context.code}
    with open_rendezvous(runtime.nodes, context.node, digests) as rendezvous:
        config = LaunchConfig(
            min_nodes=runtime.nodes,
            max_nodes=runtime.nodes,
            nproc_per_node=runtime.nproc,
            **rendezvous.settings(poll, wait_s=wait_s),
            max_restarts=0,
            start_method="fork",
            signals_to_handle="SIGQUIT",  # sent by the watchdog; all others set a flag that the ranks poll
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        if root.device.type != "cuda":
            # otherwise torch starts CUDA in the ranks, to bind them to CPUs near GPUs that they do not use
            config.numa_options = None
        start = partial(elastic_launch(config, worker.run), context, root, folder, rendezvous, os.getpid())
        return _first_outcome(start, folder, watchdog)


def _first_outcome(start: Callable[[], dict[int, Any]], folder: Path, watchdog: Watchdog) -> dict[str, Any] | None:
    """Start the ranks, wait for them, and return the outcome of the lowest rank; None if a rank failed."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    others = multiprocessing.active_children()
    try:
        results = start()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0 and watchdog.verdict is None:  # with a verdict, the watchdog has killed the rank
            failures.note_killed(folder, number, signal.Signals(-failure.exitcode).name)
        elif failure.exitcode == failures.FAILED and not failures.paths(folder):
            why = failures.why_unwritten(folder) or "the disk is full?"
            raise SaveError(f"rank {number} failed, and its report could not be written ({why}); see above") from error
        return None
    except SignalException:
        if watchdog.verdict is None:
            raise
        return None
    except DistError as error:
        raise RankError(
            f"the launchers of the nodes lost each other before the ranks were started: {error}. Check the logs of the "
            f"other nodes, and run the same command again"
        ) from error
    finally:
        # if the start was interrupted, the ranks that are already running would wait for the others forever
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
    outcome: dict[str, Any] = results[min(results)]
    return outcome

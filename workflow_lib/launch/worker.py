"""The process of a rank: forked by the launcher, it trains, and what it returns is the outcome of the attempt.

A rank dies with its launcher, leaves word when it fails, and ends when it is done, whatever else a person's code has
started.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from dataclasses import asdict
from datetime import timedelta
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.distributed import failures
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.launch.context import AttemptContext
from workflow_lib.store import layout
from workflow_lib.store.orphans import exit_with_parent

if TYPE_CHECKING:
    import torch

    from workflow_lib.distributed.rendezvous import Rendezvous
    from workflow_lib.orchestrator import RootOrchestrator

logger = logging.getLogger(__name__)

# by default NCCL chooses the order of its sums by measurement; on a ring the order is fixed
STRICT_NCCL = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
LEAST_WAIT_S = 1800.0  # torch's own timeout of collectives
LINGER_S = 5.0  # what a rank that is done gives the threads and processes that it would wait for


def run(
    context: AttemptContext, parent: RootOrchestrator, folder: Path, rendezvous: Rendezvous, launcher: int
) -> dict[str, Any]:
    """Run the calling process as a rank; return the outcome of the attempt."""
    from workflow_lib.runtime.threads import keep_freed_memory
    from workflow_lib.runtime.torch_internals import restore_gpu_count

    ranks = Ranks.from_env()
    exit_with_parent(launcher)
    restore_gpu_count()
    keep_freed_memory()
    context.shared_state.enter(ranks.local_rank)
    sys.audit("everstep", "rank")
    try:
        outcome = _fit(context, parent, ranks, rendezvous)
        context.shared_state.leave(ranks.local_rank)
    except BaseException as error:
        failures.fail(folder, ranks, error, step=context.shared_state.step_of(ranks.local_rank))
    Finalize(None, _end_in_time, args=(ranks.rank,), exitpriority=100)  # runs once the launcher has read the outcome
    return outcome


def _fit(context: AttemptContext, parent: RootOrchestrator, ranks: Ranks, rendezvous: Rendezvous) -> dict[str, Any]:
    import torch.distributed as dist

    from workflow_lib import data, tasks
    from workflow_lib.checkpoint import CheckpointStore
    from workflow_lib.checkpoint.saver import Saver
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.runtime import environment
    from workflow_lib.training.trainer import Trainer

    settings = context.experiment.checkpoint
    with RootOrchestrator(context.experiment, context.run, context.workspace, context.attempt, ranks) as root:
        is_shared = context.run.training.parallel == "fsdp"
        if ranks.world_size > 1 or is_shared:
            sys.audit("everstep", "join")
            _join(context, root.device, ranks, rendezvous)
        sys.audit("everstep", "build")
        store = CheckpointStore(
            layout.checkpoints_dir(context.workspace),
            fingerprint={"run": context.digest, "data": context.manifest.digest, "code": context.code},
            attempt=context.attempt,
            may_publish=parent.lease.holds if parent.ranks.is_owner else lambda: False,
            keep_last=settings.keep_last,
            keep_every_h=settings.keep_every_h,
            peers=Peers(ranks.rank, ranks.world_size, dist.new_group(backend="gloo")) if is_shared else None,
        )
        runtime = context.experiment.runtime
        if ranks.is_main:
            root.events.append("accelerator", **environment.accelerator(root.device))

        def load(split: str) -> data.Split | data.MappedSplit:
            return data.load_split(
                context.manifest,
                split,
                context.work,
                str(root.device),
                in_memory=context.experiment.data.in_memory,
                workers=runtime.workers,
                ranks=ranks,
                processes=runtime.nproc,
                tick=lambda: context.shared_state.tick(ranks.local_rank, 0),  # verifying large data may take long
            )

        saver = Saver(
            store,
            interval_s=settings.interval_s,
            interval_steps=settings.interval_steps,
            mtbf_s=settings.mtbf_s,
            device=root.device,
        )
        trainer = Trainer(
            context.run,
            spec=context.manifest.spec,
            objective=tasks.load(context.manifest.task).objective(
                context.run.training,
                root.device,
                context.manifest.splits["train"].per_class,
                context.manifest.target_std,
            ),
            train=load("train"),
            validation=load("val"),
            ranks=ranks,
            device=root.device,
            shared_state=context.shared_state,
            store=store,
            saver=saver,
            events=root.events,
            environment=_fingerprint(root, ranks),
            metrics_file=layout.metrics_file(context.workspace),
            stop_early=context.stop_early,
        )
        outcome = trainer.fit()
        sys.audit("everstep", "leave")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return asdict(outcome)


def _join(context: AttemptContext, device: torch.device, ranks: Ranks, rendezvous: Rendezvous) -> None:
    """Create the process group. NCCL, for tensors on GPUs, connects when it is first used."""
    import torch.distributed as dist

    runtime = context.experiment.runtime
    if device.type == "cuda" and context.run.training.determinism == "strict":
        for name, value in STRICT_NCCL.items():
            os.environ.setdefault(name, value)
    # the launcher's watchdog ends hung collectives first, and names the culprit; this is for what it cannot see
    wait = timedelta(seconds=max(LEAST_WAIT_S, runtime.hang_timeout_s + 60))
    rendezvous.bind_sockets()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=rendezvous.store(ranks.world_size, wait),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=wait,
    )


def _fingerprint(root: RootOrchestrator, ranks: Ranks) -> dict[str, Any]:
    """Return the merged fingerprint of all ranks, the same on every rank."""
    import torch.distributed as dist

    from workflow_lib.runtime import environment

    runtime = root.settings.runtime
    mine = environment.fingerprint(root.device, nodes=runtime.nodes, nproc=runtime.nproc)
    group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
    peers = Peers(ranks.rank, ranks.world_size, group)
    found = environment.of_all_ranks(peers.gather(mine))
    if ranks.is_main:
        for name in sorted(name for name, value in found.items() if isinstance(value, list)):
            logger.warning("the ranks differ in %s: %s", name, ", ".join(map(str, found[name])))
    of_all: dict[str, Any] = peers.broadcast(found)
    return of_all


def _end_in_time(rank: int) -> None:
    """This process ends soon, even if it would wait for ever for what a person's code has started."""
    end = threading.Timer(LINGER_S, _end, args=(rank,))
    end.daemon = True
    end.start()


def _end(rank: int) -> None:
    children = multiprocessing.active_children()
    threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    left = [*(f"thread {one.name}" for one in threads), *(f"process {one.name}" for one in children)]
    logger.warning("rank %d is done, and ends without what a person's code left running: %s", rank, ", ".join(left))
    for child in children:
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

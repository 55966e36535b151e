"""The process of a rank: forked by the launcher, it trains and returns the outcome of the attempt.

A rank ends when its launcher ends, writes a failure report if it fails, and exits soon after it is done, even if the
user's code has left threads or processes running.
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

    from workflow_lib import data
    from workflow_lib.checkpoint import CheckpointStore
    from workflow_lib.distributed.rendezvous import Rendezvous
    from workflow_lib.metrics.own import Measures
    from workflow_lib.orchestrator import RootOrchestrator

logger = logging.getLogger(__name__)

# by default NCCL chooses its algorithm, and so the order of sums, by measurement; on a ring the order is fixed
STRICT_NCCL = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
LEAST_WAIT_S = 1800.0  # torch's own timeout of collectives
LINGER_S = 5.0  # time that a finished rank waits for threads and processes of the user's code


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
    except BaseException as error:  # also SystemExit of a plugin, whose exit code 0 would look like success
        failures.fail(folder, ranks, error, step=context.shared_state.step_of(ranks.local_rank))
    # runs after the launcher has read the outcome, and before multiprocessing joins the remaining children
    Finalize(None, _limit_exit_time, args=(ranks.rank,), exitpriority=100)
    return outcome


def _fit(context: AttemptContext, parent: RootOrchestrator, ranks: Ranks, rendezvous: Rendezvous) -> dict[str, Any]:
    import torch.distributed as dist

    from workflow_lib import tasks
    from workflow_lib.checkpoint.saver import Saver
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.runtime import environment
    from workflow_lib.training.graphs import graph_for
    from workflow_lib.training.loss import with_own_loss
    from workflow_lib.training.summaries import Recording
    from workflow_lib.training.trainer import Trainer

    settings, runtime = context.experiment.checkpoint, context.experiment.runtime
    with RootOrchestrator(context.experiment, context.run, context.workspace, context.attempt, ranks) as root:
        if ranks.world_size > 1 or context.run.training.parallel == "fsdp":
            sys.audit("everstep", "join")
            _join(context, root.device, ranks, rendezvous)
        sys.audit("everstep", "build")
        store = _open_store(context, parent, ranks)
        if ranks.is_main:
            root.events.append("accelerator", **environment.accelerator(root.device))
        saver = Saver(
            store,
            interval_s=settings.interval_s,
            interval_steps=settings.interval_steps,
            mtbf_s=settings.mtbf_s,
            device=root.device,
        )
        manifest = context.manifest
        objective = tasks.load(manifest.task).objective(
            context.run.training, root.device, manifest.splits["train"].per_class, manifest.target_std
        )
        objective.targets = manifest.outputs
        trainer = Trainer(
            context.run,
            spec=context.manifest.spec,
            objective=with_own_loss(
                objective, context.run.training, root.device, ranks=ranks.world_size, is_main=ranks.is_main
            ),
            train=_load(context, "train", root.device, ranks),
            validation=_load(context, "val", root.device, ranks),
            ranks=ranks,
            device=root.device,
            shared_state=context.shared_state,
            store=store,
            saver=saver,
            events=root.events,
            environment=_fingerprint(root, ranks),
            weights=context.weights,
            metrics_file=layout.metrics_file(context.workspace),
            stop_early=context.stop_early,
            measures=_measures(context),
            graph=graph_for(runtime.cuda_graphs, context.run, root.device, ranks.world_size, is_main=ranks.is_main),
            is_graph_required=runtime.cuda_graphs == "on",
            recording=Recording.of(context.experiment.tracking, manifest),
        )
        outcome = trainer.fit()
        sys.audit("everstep", "leave")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return asdict(outcome)


def _measures(context: AttemptContext) -> Measures | None:
    """Return the metrics of `training.metrics`; importing torchmetrics takes a second, so only if there are any."""
    if not context.run.training.metrics:
        return None
    from workflow_lib.metrics.own import Measures

    return Measures.of(context.run.training.metrics, context.manifest)


def _open_store(context: AttemptContext, parent: RootOrchestrator, ranks: Ranks) -> CheckpointStore:
    """Open the checkpoints of the workspace. Only ranks of the owner's node may publish, while it holds the lease."""
    import torch.distributed as dist

    from workflow_lib.checkpoint import CheckpointStore

    settings = context.experiment.checkpoint
    is_shared = context.run.training.parallel == "fsdp"
    return CheckpointStore(
        layout.checkpoints_dir(context.workspace),
        fingerprint={"run": context.digest, "data": context.manifest.digest, "code": context.code},
        attempt=context.attempt,
        may_publish=parent.lease.holds if parent.ranks.is_owner else lambda: False,
        keep_last=settings.keep_last,
        keep_every_h=settings.keep_every_h,
        peers=Peers(ranks.rank, ranks.world_size, dist.new_group(backend="gloo")) if is_shared else None,
    )


def _load(context: AttemptContext, split: str, device: torch.device, ranks: Ranks) -> data.Split | data.MappedSplit:
    from workflow_lib import data

    runtime = context.experiment.runtime
    return data.load_split(
        context.manifest,
        split,
        context.work,
        str(device),
        in_memory=context.experiment.data.in_memory,
        workers=runtime.workers,
        ranks=ranks,
        processes=runtime.nproc,
        tick=lambda: context.shared_state.tick(ranks.local_rank, 0),  # large data may take longer than the hang timeout
    )


def _join(context: AttemptContext, device: torch.device, ranks: Ranks, rendezvous: Rendezvous) -> None:
    """Create the process group. NCCL, for tensors on GPUs, connects when it is first used."""
    import torch.distributed as dist

    runtime = context.experiment.runtime
    if device.type == "cuda" and context.run.training.determinism != "standard":
        for name, value in STRICT_NCCL.items():
            os.environ.setdefault(name, value)
    # the launcher's watchdog ends hung collectives earlier, and names the rank that hangs; this is a last resort
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
    found = environment.merge(peers.gather(mine))
    if ranks.is_main:
        for name in sorted(name for name, value in found.items() if isinstance(value, list)):
            logger.warning("the ranks differ in %s: %s", name, ", ".join(map(str, found[name])))
    merged: dict[str, Any] = peers.broadcast(found)
    return merged


def _limit_exit_time(rank: int) -> None:
    """Exit after ``LINGER_S``, since Python would wait forever for threads and processes of the user's code."""
    timer = threading.Timer(LINGER_S, _exit, args=(rank,))
    timer.daemon = True
    timer.start()


def _exit(rank: int) -> None:
    children = multiprocessing.active_children()
    main = threading.main_thread()
    threads = [thread for thread in threading.enumerate() if not thread.daemon and thread is not main]
    left = [*(f"thread {thread.name}" for thread in threads), *(f"process {child.name}" for child in children)]
    logger.warning("rank %d is done, and ends what the user's code left running: %s", rank, ", ".join(left))
    for child in children:
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

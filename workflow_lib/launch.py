"""From a command to the ranks and back: the supervisor of one attempt.

The launcher owns the workspace, the signals, the deadline and the exit code. It starts the ranks by torchrun's engine
with ``fork``, so they inherit its imports; it never touches CUDA. A run that is finished already costs it one look at
the digests.

    finished   0      stopped and saved   75      failed   1      the person's mistake   2
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from workflow_lib import checkpoint, errors, plan, plugins, provenance
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.config.sections import METRICS
from workflow_lib.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    EverstepError,
    RankError,
    SaveError,
    StalledError,
    Stopped,
)
from workflow_lib.files import write_atomic, write_json
from workflow_lib.runtime import nodes, scheduler
from workflow_lib.runtime import workspace as ws
from workflow_lib.runtime.control import Control
from workflow_lib.runtime.lease import Lease
from workflow_lib.runtime.log import EventLog
from workflow_lib.runtime.ranks import Peers, Ranks

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.shards import Manifest
    from workflow_lib.training import Row, StopEarly

logger = logging.getLogger(__name__)

WATCH_S = 0.5
ALONE_S = 5.0  # ranks that are all gone, and whose end the launcher does not notice, are given up after this
STOPPED_S = 30.0  # a rank that something else has stopped (SIGSTOP) is given up after this
FAILED = 70  # exit code of a rank whose error lies in a file
PR_SET_PDEATHSIG = 1
# what a rank says whose partner is gone: never the first cause
LOST_PARTNER = re.compile(r"gloo.*(Connection|timed out|Timed out|closed)|NCCL|ProcessGroup", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """What one attempt is to do."""

    experiment: Experiment
    run: plan.RunConfig
    digest: str
    manifest: Manifest
    work: Path
    workspace: Path
    attempt: str
    control: Control
    stop_early: StopEarly | None
    node: int  # which launcher this is, of ``runtime.nodes``; the first one owns the workspace


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

    Raises Stopped (exit code 75) when it was asked to stop first; what was done is saved.
    """
    job = _job(experiment, run, data, work, deadline_minutes, None)
    sealed = find_sealed(job.workspace)
    if sealed is None:
        try:
            _attempt(job)
        except DivergedError as error:
            newest = checkpoint.read_newest(ws.checkpoints_dir(job.workspace))
            kept = f"The state of step {newest.step} is kept: {newest.path}" if newest else "No earlier state was saved"
            raise DivergedError(f"{error}. {kept}") from error
        sealed = find_sealed(job.workspace)
    else:
        logger.info("%s is finished already: nothing is trained", job.digest[:12])
    if sealed is None:
        raise CheckpointError(f"{job.workspace}: the run ended, but its final state does not verify")
    if job.node == 0:
        write_outputs(sealed, job, data, output)
        _note_delivered(job, str(output))


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
    sealed = find_sealed(job.workspace)
    history: list[Row] = checkpoint.read_state(sealed)["progress"]["history"] if sealed else _attempt(job)
    newest = checkpoint.read_newest(ws.checkpoints_dir(job.workspace))
    if newest is not None and newest.about["cursor"]["phase"] == "finish":
        _note_delivered(job, run)
    return history


def workspace_of(work: Path, digest: str, data: str) -> Path:
    """Where a run keeps its state for that data: new data is a new training."""
    return work / "runs" / digest / data[:12]


def find_sealed(workspace: Path) -> Checkpoint | None:
    """The final state of a finished run, verified; None when it is not finished, or damaged."""
    for path in reversed(checkpoint.published(ws.checkpoints_dir(workspace))):
        try:
            found = checkpoint.read_manifest(path)
            fingerprint = found.manifest["fingerprint"]
            if workspace_of(Path(), fingerprint["run"], fingerprint["data"]) != Path("runs", *workspace.parts[-2:]):
                raise CheckpointError(f"it belongs to run {fingerprint['run'][:12]}")
            if found.about["cursor"]["phase"] != "finish":
                return None
            checkpoint.verify(found)
            return found
        except CheckpointError as error:
            logger.warning("checkpoint %s cannot be used: %s", path.name, error)
    return None


def write_outputs(sealed: Checkpoint, job: Job, data: Path, output: Path) -> None:
    """Weights, history and, last, the statement of a finished run."""
    sys.audit("everstep", "outputs")
    state = checkpoint.read_state(sealed)["progress"]
    model = checkpoint.whole(sealed, "best") or checkpoint.whole(sealed, "model") or b""
    write_atomic(output.with_name("model.safetensors"), model)
    write_atomic(output.with_name("history.csv"), _csv(state["history"], job.manifest.task))
    attempts = ws.list_attempts(job.workspace)
    sys.audit("everstep", "statement")
    write_json(
        output,
        {
            "run": job.digest[:12],
            "digest": job.digest,
            "data": job.manifest.digest,
            "sealed": str(sealed.path),
            "exact": sealed.about["exact"],
            "steps": sealed.step,
            "epochs": len(state["history"]),
            "best": {
                "metric": job.run.training.select_metric,
                "value": state["best"][job.run.training.select_metric],
                "epoch": state["best"]["epoch"],
                "step": state["best"]["step"],
            },
            "final": state["history"][-1],
            "model": checkpoint.digest(model),
            "parameters": sealed.about["parameters"],
            "seconds": round(sum(one.seconds or 0.0 for one in attempts), 3),
            "attempts": len(attempts),
            "environment": sealed.about["environment"],
            "provenance": provenance.made_by([job.work / "runs" / job.digest / "config.json", data]),
        },
    )


def _note_delivered(job: Job, to: str) -> None:
    """It is on record that the finished run was needed: each time after the first saved a training."""
    if job.node == 0:
        EventLog(ws.delivered_file(job.workspace), attempt=job.attempt).append("delivered", to=to)


# -- the launcher -------------------------------------------------------------------------------------------------


def _job(
    experiment: Experiment,
    run: str,
    data: Path,
    work: Path,
    deadline_minutes: float | None,
    stop_early: StopEarly | None,
) -> Job:
    from workflow_lib.shards import Manifest

    if experiment.runtime.nodes > 1 and not nodes.is_one_of_many():
        nodes.start(experiment.runtime.nodes, experiment.runtime.nproc * experiment.runtime.threads)
    config, digest = _frozen(experiment, run, work)
    manifest = Manifest.load(data)
    return Job(
        experiment=experiment,
        run=config,
        digest=digest,
        manifest=manifest,
        work=work,
        workspace=workspace_of(work, digest, manifest.digest),
        attempt=ws.new_attempt(),
        control=Control(experiment.runtime.nproc, deadline_minutes),
        stop_early=stop_early,
        node=nodes.number() if experiment.runtime.nodes > 1 else 0,
    )


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


def _attempt(job: Job) -> list[Row]:
    """The curve of the run, finished or pruned by this attempt or by the one that it waited for."""
    from workflow_lib.orchestrator import RootOrchestrator, Services

    sys.audit("everstep", "attempt")
    job.control.stop_on_signals()
    held = scheduler.gpus_of_own_job(job.experiment.runtime.nodes)
    launcher = Ranks(node=job.node, is_launcher=True)
    services = Services(acquire_lease=partial(Lease.acquire, must_stop=lambda: job.control.stop_signal))
    with RootOrchestrator(job.experiment, job.run, job.workspace, job.attempt, launcher, services) as root:
        if (sealed := find_sealed(job.workspace)) is not None:
            history: list[Row] = checkpoint.read_state(sealed)["progress"]["history"]
            return history
        if launcher.is_owner:
            _begin(job, root, held)
        return _supervise(job, root)


def _begin(job: Job, root: RootOrchestrator, held: int) -> None:
    """The attempt is on record; ``held`` GPUs are the job's, even if it uses fewer."""
    newest, runtime = _newest(job.workspace), job.experiment.runtime
    _refuse_stalled(job, newest)
    ranks = runtime.nproc * runtime.nodes
    ws.begin(
        job.workspace,
        job.attempt,
        world_size=ranks,
        resumed_from=newest,
        resumed_step=_step_of(newest),
        devices=max(held, ranks if root.device.type != "cpu" else 0),
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
    with _scratch(job) as folder:
        watch = Watch(job)
        sys.audit("everstep", "launch")
        try:
            outcome = _elastic_launch(job, root, folder, watch)
        finally:
            watch.close()
        if watch.verdict is not None or outcome is None:
            failure = _first_failure(folder, watch.verdict, job)
            _end(job, f"failed: {failure}")
            raise failure
    sys.audit("everstep", "ended")
    if outcome["ended"] == "stopped":
        reason = _why_stopped(job.control)
        _end(job, reason, outcome["step"])
        raise Stopped(f"{reason} at step {outcome['step']}; saved. Run the same command again to go on from there")
    _end(job, outcome["ended"], outcome["step"])
    history: list[Row] = outcome["history"]
    return history


@contextmanager
def _scratch(job: Job) -> Iterator[Path]:
    """A folder for what launcher and ranks tell each other; the owner also removes those of attempts that are over."""
    attempts = ws.attempts_dir(job.workspace)
    for record in ws.list_attempts(job.workspace) if job.node == 0 else ():
        shutil.rmtree(attempts / record.attempt, ignore_errors=True)
    folder = attempts / job.attempt
    folder.mkdir(parents=True)  # a later node may come before the first one has made the workspace
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _elastic_launch(job: Job, root: RootOrchestrator, folder: Path, watch: Watch) -> dict[str, Any] | None:
    """What the first rank of this node returned; None when a rank failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its errors are reported by us, once
    runtime = job.experiment.runtime
    launch = LaunchConfig(
        min_nodes=runtime.nodes,
        max_nodes=runtime.nodes,
        nproc_per_node=runtime.nproc,
        **(nodes.rendezvous() if runtime.nodes > 1 else nodes.rendezvous_here()),
        max_restarts=0,
        start_method="fork",
        signals_to_handle="SIGQUIT",  # the others set a flag that the ranks look at
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        results = elastic_launch(launch, _rank)(job, root, folder, os.getpid())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            _note_killed(folder, rank, signal.Signals(-failure.exitcode).name)
        elif failure.exitcode == FAILED and not any(folder.glob("failure-*.json")):
            raise SaveError(f"rank {rank} failed, and the disk refused to keep why; it stands above") from error
        return None
    except SignalException:
        if watch.verdict is None:
            raise
        return None
    outcome: dict[str, Any] = results[min(results)]
    return outcome


class Watch:
    """Sees that the ranks move: one that is stopped from outside, or hangs, is ended with all others, and named."""

    def __init__(self, job: Job) -> None:
        self.verdict: str | None = None
        self._job = job
        self._pulse = ws.Pulse(job.workspace, job.attempt) if job.node == 0 else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody is watched any more."""
        self._ended.set()
        self._thread.join()
        if self._pulse is not None:
            self._pulse.close()

    def _run(self) -> None:
        control, hang_s = self._job.control, self._job.experiment.runtime.hang_timeout_s
        are_recorded = self._job.node > 0  # the first node's launcher keeps the record
        stopped_since: dict[int, float] = {}
        alone_since: float | None = None
        seen, moved_at, looked_at = control.progress, time.monotonic(), time.monotonic()
        while not self._ended.wait(WATCH_S):
            now = time.monotonic()
            if now - looked_at > 10 * WATCH_S:  # this process itself was stopped, or the host slept
                stopped_since, alone_since, moved_at = {}, None, now
            looked_at = now
            if self._pulse is not None:
                self._pulse.beat(control.reach)
            if not are_recorded and all(control.pids):
                are_recorded = self._record_ranks()
            if control.progress != seen:
                seen, moved_at = control.progress, now
            for rank, pid in enumerate(control.pids):
                if pid and _is_stopped(pid):
                    stopped_since.setdefault(rank, now)
                else:
                    stopped_since.pop(rank, None)
            is_alone = all(pid and _is_gone(pid) for pid in control.pids) and not control.has_left
            alone_since = (alone_since or now) if is_alone else None
            if alone_since is not None and now - alone_since > ALONE_S:
                self._end_all("the ranks ended without a word and without an error, as by os._exit(0)")
                os.kill(os.getpid(), signal.SIGQUIT)  # the launcher waits for what they return
                return
            is_hung = now - moved_at > hang_s
            for rank, since in stopped_since.items():
                if is_hung or now - since > STOPPED_S:
                    self._end_all(f"rank {rank} (pid {control.pids[rank]}) was stopped from outside (SIGSTOP)")
                    return
            if is_hung:
                slowest = min(range(len(seen)), key=seen.__getitem__)
                behind = f"; rank {slowest} (pid {control.pids[slowest]}) is behind" if len(set(seen)) > 1 else ""
                self._end_all(f"no rank has made a step for {hang_s:.0f} s (runtime.hang_timeout_s){behind}")
                return

    def _record_ranks(self) -> bool:
        """Whether the attempt's record names the processes, so that a later attempt can end them."""
        try:
            found = [ws.RankProcess.of(rank, pid) for rank, pid in enumerate(self._job.control.pids)]
            ws.record_ranks(self._job.workspace, self._job.attempt, found)
        except (psutil.NoSuchProcess, OSError):
            return False
        return True

    def _end_all(self, verdict: str) -> None:
        self.verdict = f"{verdict}; the ranks were ended. Run the same command again to go on from the last checkpoint"
        for pid in self._job.control.pids:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _first_failure(folder: Path, verdict: str | None, job: Job) -> EverstepError:
    """The error of the rank that failed first; the others only lost their partner."""
    if verdict is not None:
        return RankError(verdict)
    failures = [json.loads(path.read_text()) for path in folder.glob("failure-*.json")]
    failures.sort(key=lambda failure: (bool(LOST_PARTNER.search(failure["message"])), failure["time"]))
    if not failures or LOST_PARTNER.search(failures[0]["message"]):
        spoke = {failure["rank"] for failure in failures}
        first_rank = job.node * job.experiment.runtime.nproc
        silent = [rank for rank in range(first_rank, first_rank + job.experiment.runtime.nproc) if rank not in spoke]
        who = f"rank {', '.join(map(str, silent))}" if silent else "a rank of another node"
        return RankError(
            f"{who} was killed without a word (out of memory?). Run the same command again to go on from the last "
            f"checkpoint"
        )
    first = failures[0]
    kind = getattr(errors, first["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EverstepError):
        return kind(first["message"])
    logger.error("rank %d failed:\n%s", first["rank"], first["traceback"])
    return RankError(f"rank {first['rank']} failed: {first['kind']}: {first['message']}")


def _note_killed(folder: Path, rank: int, name: str) -> None:
    message = (
        f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}. Run the same command again to go on "
        f"from the last checkpoint"
    )
    failure = {"rank": rank, "time": 0.0, "kind": "RankError", "message": f"rank {rank} was {message}"}
    write_json(folder / "failure-killed.json", failure)


def _why_stopped(control: Control) -> str:
    if control.stop_signal:
        return f"stopped by {signal.Signals(control.stop_signal).name}"
    return "stopped before the deadline"


def _newest(workspace: Path) -> str | None:
    """Name of the newest checkpoint, verified or not."""
    paths = checkpoint.published(ws.checkpoints_dir(workspace))
    return paths[-1].name if paths else None


def _step_of(name: str | None) -> int:
    match = checkpoint.NAME.fullmatch(name or "")
    return int(match["step"]) if match else 0


def _refuse_stalled(job: Job, newest: str | None) -> None:
    """K interrupted attempts in a row that saved nothing new end the run, with the reason."""
    stalled: list[str] = []
    for record in reversed(ws.list_attempts(job.workspace)):
        reason = record.reason or "killed"
        if record.resumed_from != newest or reason.startswith(("stalled", "failed", "finished", "pruned")):
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


# -- a rank -------------------------------------------------------------------------------------------------------


def _rank(job: Job, parent: RootOrchestrator, folder: Path, launcher: int) -> dict[str, Any]:
    """What the ranks do, in a process of their own; what they return is the outcome of the attempt."""
    from workflow_lib.runtime.threads import keep_freed_memory

    ranks = Ranks.from_env()
    _die_with(launcher)
    keep_freed_memory()
    job.control.enter(ranks.local_rank)
    sys.audit("everstep", "rank")
    try:
        outcome = _fit(job, parent, ranks)
        job.control.leave(ranks.local_rank)
        return outcome
    except BaseException as error:
        _fail(folder, ranks, error)


def _fit(job: Job, parent: RootOrchestrator, ranks: Ranks) -> dict[str, Any]:
    import torch.distributed as dist

    from workflow_lib import shards, tasks
    from workflow_lib.checkpoint import CheckpointStore
    from workflow_lib.orchestrator import RootOrchestrator
    from workflow_lib.runtime import telemetry
    from workflow_lib.saver import Saver
    from workflow_lib.training import Trainer

    settings = job.experiment.checkpoint
    with RootOrchestrator(job.experiment, job.run, job.workspace, job.attempt, ranks) as root:
        is_shared = job.run.training.parallel == "fsdp"
        if ranks.world_size > 1 or is_shared:
            sys.audit("everstep", "join")
            dist.init_process_group("cpu:gloo,cuda:nccl" if root.device.type == "cuda" else "gloo")
        sys.audit("everstep", "build")
        store = CheckpointStore(
            ws.checkpoints_dir(job.workspace),
            fingerprint={"run": job.digest, "data": job.manifest.digest},
            attempt=job.attempt,
            may_publish=parent.lease.holds if parent.ranks.is_owner else lambda: False,
            keep_last=settings.keep_last,
            keep_every_h=settings.keep_every_h,
            peers=Peers(ranks.rank, ranks.world_size, dist.new_group(backend="gloo")) if is_shared else None,
        )
        runtime = job.experiment.runtime

        def load(split: str) -> shards.Split | shards.MappedSplit:
            return shards.load_split(
                job.manifest,
                split,
                job.work,
                str(root.device),
                in_memory=job.experiment.data.in_memory,
                workers=runtime.workers,
                ranks=ranks,
                processes=runtime.nproc,
                tick=lambda: job.control.tick(ranks.local_rank, 0),  # verifying large data may take long
            )

        saver = Saver(
            store,
            interval_s=settings.interval_s,
            interval_steps=settings.interval_steps,
            mtbf_s=settings.mtbf_s,
        )
        trainer = Trainer(
            job.run,
            spec=job.manifest.spec,
            task=tasks.build(
                job.run.training,
                job.manifest.spec,
                root.device,
                counts=job.manifest.splits["train"].per_class,
                target_std=job.manifest.target_std,
            ),
            train=load("train"),
            validation=load("val"),
            ranks=ranks,
            device=root.device,
            control=job.control,
            store=store,
            saver=saver,
            events=root.events,
            environment={**telemetry.fingerprint(root.device, ranks.world_size), **_texts(job.run)},
            metrics_file=ws.metrics_file(job.workspace),
            stop_early=job.stop_early,
        )
        outcome = trainer.fit()
        sys.audit("everstep", "leave")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return asdict(outcome)


def _texts(run: plan.RunConfig) -> dict[str, str]:
    """Digests of the person's files that the settings only name: a changed one changes the training."""
    modules = {"model_text": plugins.load("models", run.model.name)}
    if run.training.hooks is not None:
        modules["hooks_text"] = plugins.load_hooks(run.training.hooks)
    return {name: provenance.file_digest(Path(str(module.__file__))) for name, module in modules.items()}


def _die_with(launcher: int) -> None:
    """The kernel ends this process when the launcher ends: no orphan goes on computing."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(FAILED)


def _fail(folder: Path, ranks: Ranks, error: BaseException) -> NoReturn:
    """The launcher can read what happened; the others notice that this process is gone."""
    failure: Mapping[str, Any] = {
        "rank": ranks.rank,
        "time": time.monotonic(),
        "kind": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    try:
        write_json(folder / f"failure-{ranks.rank}.json", failure)
    except OSError:  # the disk is full, say: the job's log has the last word
        print(f"rank {ranks.rank} failed: {failure['kind']}: {failure['message']}", file=sys.stderr, flush=True)
    os._exit(FAILED)


# -- outputs ------------------------------------------------------------------------------------------------------


def _csv(history: list[Row], task: plugins.Task) -> str:
    """The curve as a table; numbers read back exactly."""
    columns = ("epoch", "step", "lr", *METRICS[task])
    lines = [",".join(columns), *(",".join(repr(row[name]) for name in columns) for row in history)]
    return "\n".join(lines) + "\n"

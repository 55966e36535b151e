"""Setup of a training process in seven phases; all resources are released at the end, in reverse order.

    1 determinism      seeds, deterministic algorithms
    2 runtime          threads, precision, the device (resolved once)
    3 filesystem       the workspace's folders
    4 logging          lines to the standard error, events to the workspace
    5 configuration    the frozen settings: written if missing, else compared
    6 guard            orphans ended, the workspace and local GPUs leased
    7 environment      the description of this machine, recorded in the events

The launcher of the first node runs all of them: it owns the workspace, and never touches CUDA, so that it can fork the
ranks. Ranks and the launchers of other nodes run 1, 2 and 4, and ranks bind their device. Phases 3 to 5 come before the
lease, so they must not disturb a live owner: they create what is missing, append, and compare.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from workflow_lib.config import Experiment
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.errors import WorkspaceBusy
from workflow_lib.plan import RunConfig, freeze
from workflow_lib.runtime import device, gpus
from workflow_lib.runtime.determinism import empty_caches, set_determinism, set_precision
from workflow_lib.runtime.device_lease import lease_devices
from workflow_lib.runtime.environment import environment
from workflow_lib.runtime.seed import seed_everything
from workflow_lib.runtime.threads import set_threads
from workflow_lib.store import attempts
from workflow_lib.store.events import NAME, EventLog, open_log
from workflow_lib.store.layout import events_file
from workflow_lib.store.lease import Lease
from workflow_lib.store.orphans import end_orphans


@dataclass(frozen=True)
class Services:
    """The functions that the phases call, each replaceable in tests."""

    seed: Callable[[int, int], None] = seed_everything
    set_determinism: Callable[[str], None] = set_determinism
    set_threads: Callable[[int], None] = set_threads
    set_precision: Callable[[str], None] = set_precision
    resolve_device: Callable[[str, int], torch.device] = device.resolve
    check_precision: Callable[[torch.device, str], None] = device.check_precision
    bind_device: Callable[[torch.device], None] = device.bind
    create_workspace: Callable[[Path], None] = attempts.create
    open_log: Callable[[str, Ranks, EventLog], AbstractContextManager[logging.Logger]] = open_log
    record_config: Callable[[RunConfig, Path], Path] = freeze
    end_orphans: Callable[[Path], Any] = end_orphans
    acquire_lease: Callable[..., Lease] = Lease.acquire
    lease_devices: Callable[..., AbstractContextManager[tuple[str, ...]]] = lease_devices
    report_environment: Callable[[torch.device], dict[str, Any]] = environment
    empty_caches: Callable[[], None] = empty_caches


class RootOrchestrator:
    """The resources of a process during one attempt, as a context manager.

    In the block: `device`, `log`, `events`; for the owner also `lease`, `environment`, `devices` (leased GPUs) and
    `waited_s`, the seconds that it waited for them. Entering it again inside its block changes nothing; after the
    release it raises RuntimeError.
    """

    device: torch.device
    lease: Lease
    environment: dict[str, Any]

    def __init__(
        self,
        settings: Experiment,
        run_config: RunConfig,
        workspace: Path,
        attempt: str,
        ranks: Ranks,
        services: Services | None = None,
    ) -> None:
        self.settings = settings
        self.run_config = run_config
        self.workspace = workspace
        self.attempt = attempt
        self.ranks = ranks
        self.services = services or Services()
        self.log = logging.getLogger(NAME)
        place = {} if ranks.is_launcher else {"rank": ranks.rank}
        self.events = EventLog(events_file(workspace), attempt=attempt, **place)
        self.devices: tuple[str, ...] = ()
        self.waited_s = 0.0
        self._held: ExitStack | None = None
        self._is_used = False

    def __enter__(self) -> RootOrchestrator:
        if self._held is not None:
            return self
        if self._is_used:
            raise RuntimeError("a RootOrchestrator is for one attempt: create another one")
        self._is_used = True
        with ExitStack() as held:
            held.callback(self.services.empty_caches)
            for name, phase, every_rank in PHASES:
                if every_rank or self.ranks.is_owner:
                    self._run(name, phase, held)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release lease, GPUs, log and caches; a second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _run(self, name: str, phase: Phase, held: ExitStack) -> None:
        try:
            phase(self, held)
        except BaseException as error:
            error.add_note(f"while setting up: {name}")
            raise

    def _set_determinism(self, held: ExitStack) -> None:
        self.services.seed(self.run_config.seed, self.ranks.rank)
        self.services.set_determinism(self.run_config.training.determinism)

    def _configure_runtime(self, held: ExitStack) -> None:
        runtime, precision = self.settings.runtime, self.run_config.training.precision
        # a process that has computed with several threads cannot be forked: its children would wait for them
        self.services.set_threads(1 if self.ranks.is_launcher else runtime.threads)
        self.services.set_precision(precision)
        if self.ranks.is_launcher:
            # fails before the fork if there is no device for the last rank
            self.services.resolve_device(runtime.device, runtime.nproc - 1)
        self.device = self.services.resolve_device(runtime.device, self.ranks.local_rank)
        if not self.ranks.is_launcher:
            self.services.bind_device(self.device)
        # a launcher does not know yet which GPUs it will lease; each rank then checks its own
        is_undecided = self.ranks.is_launcher and ":" not in runtime.device
        checked = torch.device(self.device.type) if is_undecided else self.device
        self.services.check_precision(checked, precision)

    def _make_workspace(self, held: ExitStack) -> None:
        self.services.create_workspace(self.workspace)

    def _open_log(self, held: ExitStack) -> None:
        level = self.settings.runtime.log_level
        self.log = held.enter_context(self.services.open_log(level, self.ranks, self.events))

    def _record_config(self, held: ExitStack) -> None:
        self.services.record_config(self.run_config, self.workspace.parents[2])

    def _guard(self, held: ExitStack) -> None:
        runtime = self.settings.runtime
        self.services.end_orphans(self.workspace)
        try:
            self.lease = self.services.acquire_lease(
                self.workspace, self.attempt, timeout_s=runtime.lease_timeout_s, wait_s=runtime.lease_wait_s
            )
        except WorkspaceBusy as error:
            self.events.append("refused", reason=str(error))
            raise
        held.callback(self.lease.release)
        self.services.create_workspace(self.workspace)  # again: `everstep clean` may have removed it meanwhile
        if self.device.type == "cuda" and ":" not in runtime.device:
            self._lease_devices(held)

    def _lease_devices(self, held: ExitStack) -> None:
        """Let the ranks see only GPUs that this training has leased; a named device (cuda:N) is shared, not leased."""
        began, run = time.monotonic(), f"run {self.workspace.parent.name[:12]}"
        leased = self.services.lease_devices(self.settings.runtime.nproc, run, report=self._report_waiting)
        self.devices = held.enter_context(leased)
        self.waited_s = time.monotonic() - began
        held.callback(_restore, gpus.VISIBLE, os.environ.get(gpus.VISIBLE))
        os.environ[gpus.VISIBLE] = ",".join(self.devices)

    def _report_waiting(self, reason: str) -> None:
        self.log.info(reason)
        self.events.append("waiting", reason=reason)

    def _report_environment(self, held: ExitStack) -> None:
        self.environment = self.services.report_environment(self.device)
        self.events.append("environment", **self.environment)


Phase = Callable[[RootOrchestrator, ExitStack], None]
PHASES: tuple[tuple[str, Phase, bool], ...] = (  # name, function, True if every rank runs it
    ("determinism", RootOrchestrator._set_determinism, True),
    ("runtime", RootOrchestrator._configure_runtime, True),
    ("filesystem", RootOrchestrator._make_workspace, False),
    ("logging", RootOrchestrator._open_log, True),
    ("configuration", RootOrchestrator._record_config, False),
    ("guard", RootOrchestrator._guard, False),
    ("environment", RootOrchestrator._report_environment, False),
)


def _restore(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value

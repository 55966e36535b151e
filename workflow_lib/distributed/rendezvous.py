"""Rendezvous of the processes of one training, closed to other processes as far as torch allows (docs/security.md).

On one machine the launcher keeps its store in memory, and its ranks meet through a file in a private folder. The only
ports are those that gloo and NCCL open for tensors, on the loopback interface. Between nodes, the first launcher
listens on the job's own address, and the keys of its store have a prefix that only processes of the job know. Data from
a store or from the network is never unpickled, unlike in torch's own elastic rendezvous.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from torch.distributed import FileStore, HashStore, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from workflow_lib.errors import ConfigError, RankError
from workflow_lib.slurm import nodes

BACKEND = "everstep"
LOOPBACK = "127.0.0.1"
LEAST_S = 300.0  # least wait for the other nodes of a job: prologs, imports from a slow disk
COMPARED_S = 30.0  # if digests differ, longest wait of the first launcher until the others have read them
POLL_S = 0.1
PREFIX = "everstep-meeting-"
CHECK = (
    "Check the log of the job for that node, that it is up (`sinfo -R`), and that the nodes can reach this address "
    "(firewall). Run the same command again to go on"
)


@dataclass(frozen=True)
class Rendezvous:
    """The rendezvous of an attempt. ``folder`` is private to the user, on a disk of this machine."""

    folder: Path
    nodes: int
    node: int
    digests: Mapping[str, str] = field(default_factory=dict)  # of the files that this node has read

    def settings(self, poll: Callable[[], None], *, wait_s: float) -> dict[str, Any]:
        """Return the fields of torch's LaunchConfig for the rendezvous of the launchers.

        This launcher waits for the others for at most ``wait_s`` seconds. Meanwhile it calls ``poll``, which may raise
        to end the wait.
        """
        rendezvous_handler_registry.register(BACKEND, _handler)
        return {
            "run_id": str(os.getpid()),
            "rdzv_backend": BACKEND,
            "rdzv_endpoint": LOOPBACK,
            "rdzv_configs": {"rendezvous": self, "poll": poll, "wait_s": wait_s},
            "local_addr": LOOPBACK,
        }

    def store(self, world_size: int, timeout: timedelta) -> Store:
        """Return the store of the process group, for a rank."""
        if self.nodes == 1:
            return FileStore(str(self.folder / "ranks"), world_size)
        return PrefixStore(f"{nodes.token()}/ranks", _connected(timeout))

    def bind_sockets(self) -> None:
        """Bind gloo and NCCL to loopback on one machine; between nodes, bind gloo to the route to the first node."""
        if self.nodes == 1:
            found = interface(LOOPBACK)
            if found is not None:
                os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = found
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(nodes.endpoint())  # sends nothing: only asks the routing table
            found = interface(probe.getsockname()[0])
        if found is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


@contextmanager
def open_rendezvous(nodes: int, node: int, digests: Mapping[str, str] | None = None) -> Iterator[Rendezvous]:
    """Yield a rendezvous, and remove its folder at the end; also remove the folders of launchers that were killed."""
    _sweep()
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))  # readable by its owner only
    # Locked while this process or a rank forked from it lives. The lock comes before the final name, since another
    # launcher removes folders of that name without a lock.
    lock = _lock(hidden)
    folder = hidden.rename(hidden.with_name(hidden.name[1:]))
    try:
        yield Rendezvous(folder, nodes, node, digests or {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep() -> None:
    """Remove the folders of this user that no process has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if path.stat(follow_symlinks=False).st_uid == os.getuid() and (lock := _lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(path: Path) -> int | None:
    """Return the locked folder; None if another process has locked it. Raises OSError if it is not a folder."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        return None
    return folder


def interface(address: str) -> str | None:
    """Return the name of the network interface with the IPv4 address; None if there is none."""
    for name, found in psutil.net_if_addrs().items():
        if any((entry.family, entry.address) == (socket.AF_INET, address) for entry in found):
            return name
    return None


class _Handler(RendezvousHandler):
    """torch's view of the rendezvous: a fixed number of launchers that meet once."""

    def __init__(self, rendezvous: Rendezvous, poll: Callable[[], None], wait_s: float) -> None:
        self._rendezvous, self._poll, self._wait_s = rendezvous, poll, wait_s
        self._listening: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until all launchers are here.

        Raises RankError if one is not in time, ConfigError on every node if the nodes have read different files, and
        the errors of ``poll``.
        """
        here = RendezvousStoreInfo(LOOPBACK, 0)  # unused: ranks get their store from ``Rendezvous.store``
        if self._rendezvous.nodes == 1:
            return RendezvousInfo(HashStore(), 0, 1, here)
        store = PrefixStore(f"{nodes.token()}/launchers", self._shared())
        store.set(f"here/{self._rendezvous.node}", json.dumps([socket.gethostname(), dict(self._rendezvous.digests)]))
        if missing := self._wait(store, "here", self._wait_s):
            address, port = nodes.endpoint()
            raise RankError(
                f"no launcher of {nodes.described(missing)} of the job has connected to {address}:{port} within "
                f"{self._wait_s:.0f} s. {CHECK}"
            )
        self._compare(store)
        return RendezvousInfo(store, self._rendezvous.node, self._rendezvous.nodes, here)

    def _shared(self) -> TCPStore:
        """Return the store that all launchers share; the first launcher hosts it."""
        address, port = nodes.endpoint()
        if self._rendezvous.node == 0:
            self._listening = _listening(address, port)
            return self._listening
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return _connected(timedelta(seconds=5))
            except RuntimeError as error:
                self._poll()
                if time.monotonic() > deadline:
                    raise RankError(
                        f"node {self._rendezvous.node}: the launcher of {nodes.described([0])} does not answer at "
                        f"{address}:{port} after {self._wait_s:.0f} s ({_first_line(error)}). {CHECK}"
                    ) from error

    def _wait(self, store: Store, key: str, timeout_s: float) -> list[int]:
        """Wait until all launchers have set the key; return the nodes of those that have not after the timeout."""
        deadline = time.monotonic() + timeout_s
        while missing := [node for node in range(self._rendezvous.nodes) if not store.check([f"{key}/{node}"])]:
            self._poll()
            if time.monotonic() > deadline:
                return missing
            time.sleep(POLL_S)
        return []

    def _compare(self, store: Store) -> None:
        """Raise ConfigError if the nodes have read different files."""
        found = [json.loads(store.get(f"here/{node}")) for node in range(self._rendezvous.nodes)]
        first, expected = found[0]
        for node, (host, digests) in enumerate(found):
            if digests == expected:
                continue
            store.set(f"compared/{self._rendezvous.node}", "1")
            if self._rendezvous.node == 0:  # it hosts the store, which the other launchers are still reading
                self._wait(store, "compared", COMPARED_S)
            what = next(name for name in expected if digests.get(name) != expected[name])
            raise ConfigError(
                f"the nodes of the job have read different files: the digest of the {what} is {expected[what][:12]} on "
                f"node 0 ({first}), and {str(digests.get(what))[:12]} on node {node} ({host}). Nothing was trained. "
                f"Wait until all nodes see the same files, and run the same command again"
            )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0  # no node joins later

    def get_run_id(self) -> str:
        return str(os.getpid())

    def shutdown(self) -> bool:
        return True


def _handler(parameters: RendezvousParameters) -> RendezvousHandler:
    return _Handler(parameters.config["rendezvous"], parameters.config["poll"], parameters.config["wait_s"])


def _listening(address: str, port: int) -> TCPStore:
    """Return a store that listens on this address only. By itself, torch's TCPStore listens on every address."""
    try:
        server = socket.create_server((address, port), reuse_port=False)
    except OSError as error:
        raise RankError(
            f"node 0 cannot listen at {address}:{port}, where the launchers of the job connect: {error.strerror}. Run "
            f"the same command again; if it fails again, check that {address} belongs to the node where the job started"
        ) from error
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach(), use_libuv=True
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _connected(timeout: timedelta) -> TCPStore:
    address, port = nodes.endpoint()
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)

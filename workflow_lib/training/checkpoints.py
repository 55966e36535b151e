"""Saves of a training's state, and its restoration from the newest checkpoint, the same on all ranks.

With whole models (ddp) rank 0 reads and writes, and the others send and receive. With a model that the ranks share
(fsdp) every rank reads and writes its own tensors.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from workflow_lib.checkpoint import CheckpointStore, Snapshot, read_state, read_tensors
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.results import steps
from workflow_lib.training import snapshot
from workflow_lib.training.metrics_file import Curve
from workflow_lib.training.state import Named, State


class Checkpoints:
    """The checkpoints of one run, as its training reads and writes them."""

    def __init__(self, state: State, store: CheckpointStore, saver: Saver, curve: Curve) -> None:
        self._state, self._store, self._saver, self._curve = state, store, saver, curve
        self._peers = state.peers

    @property
    def are_written_here(self) -> bool:
        """True if this rank writes files of a checkpoint."""
        return self._state.ranks.is_main or self._state.parallel.is_shared

    def start_save(self) -> None:
        """Start to save the last commit in the background. All ranks call it."""
        sys.audit("everstep", "save")
        ranks = snapshot.gather_rank_states(self._state)
        if self.are_written_here:
            self._saver.start(snapshot.take(self._state, ranks))

    def save_last(self) -> None:
        """Save the last commit, unless it is saved already, and return when it is durable. All ranks call it."""
        sys.audit("everstep", "final save")
        ranks, progress = snapshot.gather_rank_states(self._state), self._state.progress
        if not self.are_written_here:
            return
        self._saver.wait()
        is_final = progress.cursor.phase == "finish"
        if self._state.ranks.is_main and is_final:
            self._curve.seal(progress.history)
        latest = self._saver.latest
        if self._as_on_rank_0(latest is None or latest.about["cursor"] != asdict(progress.cursor)):
            self._saver.finish(snapshot.take(self._state, ranks))
            if self._as_on_rank_0(is_final and self._store.is_alone()):
                # a second copy, so that one damaged file does not cost a finished run
                self._saver.finish(snapshot.take(self._state, ranks))

    def load(self) -> Snapshot | None:
        """Return the newest verified checkpoint, the same one on all ranks, or None. All ranks call it."""
        sys.audit("everstep", "load")
        if self._state.parallel.is_shared:
            return self._load_shared()
        loaded = self._store.load_latest() if self._state.ranks.is_main else None
        if loaded is not None:
            self._saver.latest = loaded[0]
        found = loaded and {"step": loaded[1].step, "state": loaded[1].state, "about": loaded[1].about}
        received = self._peers.broadcast(found)
        if received is None:
            return None
        tensors = loaded[1].tensors if loaded is not None else {}
        # only rank 0 has the best weights and the state of the user's metrics
        own: dict[str, Named] = {name: tensors.pop(name) for name in ("best", "metrics") if name in tensors}
        return Snapshot(tensors={**self._peers.broadcast_tensors(tensors), **own}, **received)

    def _load_shared(self) -> Snapshot | None:
        latest = self._store.find_shared()
        if latest is None:
            return None
        self._saver.latest = latest
        groups = ("ranks", "metrics", steps.GROUP)
        whole = [group for group in groups if f"{group}.safetensors" in latest.manifest["files"]]
        tensors = {**self._state.parallel.read(latest.path), **{group: read_tensors(latest, group) for group in whole}}
        return Snapshot(latest.step, tensors, read_state(latest), latest.about)

    def restore(self, loaded: Snapshot | None) -> None:
        """Set the state to the loaded one, or to that of a new run, and allocate the memory that saves copy into."""
        state = self._state
        # pinned memory is allocated now: it takes so long that it would delay the first save
        is_reserving = self.are_written_here and self._saver.device.type == "cuda"
        shapes = snapshot.shapes_after_a_step(state) if loaded is None and is_reserving else None
        if loaded is None:
            state.reset()
        else:
            snapshot.restore(state, loaded)
        state.begin()
        if is_reserving:
            self._saver.reserve(shapes or snapshot.mutable_tensors(state))

    def _as_on_rank_0(self, answer: bool) -> bool:
        """Return the answer of rank 0, on all ranks that write."""
        return bool(self._peers.broadcast(answer)) if self._state.parallel.is_shared else answer

"""The trace of a training: for each optimizer step and rank, digests of what the step used and changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.checkpoint import safetensors
from workflow_lib.files import blake2b

if TYPE_CHECKING:
    import torch

    from workflow_lib.training.state import State

# in the order of computation: a difference in one explains the differences after it
ORDER = ("samples", "inputs", "generators", "loss", "model", "optimizer", "ema", "state")
Trace = dict[tuple[int, int], list[dict[str, str]]]


class Tracer:
    """An audit hook that writes a line of digests for each optimizer step of this process's rank."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._samples: Any = None
        self._inputs: Any = None

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event; only the points of the training loop matter."""
        if event != "everstep":
            return
        match arguments:
            case ("fetch", rows):
                self._samples = _chain(self._samples, rows)
            case ("forward", inputs):
                self._inputs = _chain(self._inputs, inputs)
            case ("commit", state):
                self._write(state)
                self._samples = self._inputs = None

    def _write(self, state: State) -> None:
        from workflow_lib.training import snapshot

        groups, record = snapshot.tensors(state), snapshot.record(state)
        rank = state.ranks.rank
        line = {
            "step": state.progress.cursor.step,
            "rank": rank,
            "samples": self._samples.hexdigest(),
            # a step that is captured as a graph does not give its inputs away
            "inputs": self._inputs.hexdigest() if self._inputs is not None else None,
            "state": blake2b(json.dumps(record, sort_keys=True).encode(), size=8).hexdigest(),
            **{name: _digest(tensors) for name, tensors in groups.items()},
        }
        with (self._folder / f"trace-{rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _chain(hasher: Any, tensor: torch.Tensor) -> Any:
    hasher = hasher or blake2b(size=8)
    hasher.update(safetensors.bytes_of(tensor.cpu()))
    return hasher


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    hasher = blake2b(size=8)
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(safetensors.bytes_of(tensors[name].detach().cpu()))
    return hasher.hexdigest()


def read_trace(folder: Path) -> Trace:
    """Return the lines of each step and rank; there are several if a kill made the run repeat the step."""
    lines: Trace = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                digests = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            lines.setdefault((digests.pop("step"), digests.pop("rank")), []).append(digests)
    return lines


def first_difference(expected: Trace, found: Trace) -> str | None:
    """Return the first state that differs, and where; None if the traces agree."""
    for step, rank in sorted(expected):
        for digests in found.get((step, rank), []):
            for name in ORDER:
                if digests.get(name) != expected[step, rank][0].get(name):
                    return f"{name} of rank {rank} is the first state that differs, at step {step} of the training"
    return None

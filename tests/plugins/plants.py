"""Changes that tests make in the process of an attempt before it starts: bugs to be found, and instruments."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workflow_lib.data import shard
from workflow_lib.distributed import rendezvous
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.rendezvous import Rendezvous
from workflow_lib.launch import worker
from workflow_lib.launch.context import AttemptContext
from workflow_lib.runtime import environment
from workflow_lib.tasks.classification import CrossEntropy
from workflow_lib.training import state as room
from workflow_lib.training.divergence import Divergence
from workflow_lib.training.trainer import Trainer


def rank_one_hangs() -> None:
    """Rank 1 sleeps in its third step."""
    _in_step(3, lambda: time.sleep(3600))


def pruned_by_the_third_validation() -> None:
    """Prune the run when it has three rows."""
    Trainer._is_pruned = lambda self: len(self.state.progress.history) >= 3  # type: ignore[method-assign]


def rank_one_never_joins() -> None:
    """Rank 1 sleeps before it joins the process group."""
    join = worker._join

    def sleep(context: AttemptContext, device: torch.device, ranks: Ranks, rendezvous: Rendezvous) -> None:
        if ranks.rank == 1:
            time.sleep(3600)
        join(context, device, ranks, rendezvous)

    worker._join = sleep


def nodes_come_at_once() -> None:
    """Start the launchers of a job's nodes at the same moment."""
    rendezvous.LEAST_S = 1.0


def few_descriptors() -> None:
    """Let the process and its children open only as many further files as the environment says."""
    used, spare = max(int(name) for name in os.listdir("/proc/self/fd")), int(os.environ["SPARE_DESCRIPTORS"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))


def the_rank_leaves() -> None:
    """End the only rank in its third step, with exit code 0."""

    def leave(self: Trainer, *_: Any) -> None:
        if self.state.progress.cursor.step == 2:
            os._exit(0)
        step(self, *_)

    step, Trainer._step = Trainer._step, leave  # type: ignore[method-assign]


def rank_one_has_another_gpu() -> None:
    """Let rank 1 report a device with another name."""
    fingerprint = environment.fingerprint

    def of_rank(*given: Any, **options: Any) -> dict[str, Any]:
        return {**fingerprint(*given, **options), "device_name": f"GPU {os.environ['RANK']}"}

    environment.fingerprint = of_rank  # type: ignore[assignment]


def compiling_takes_seconds() -> None:
    """Let the compiler of the model work in a subprocess for longer than hang_timeout_s."""

    class Slow(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model, self.is_compiled = model, False

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if not self.is_compiled:
                work = "import time\nwhile time.process_time() < 8: pass"
                subprocess.run([sys.executable, "-c", work], check=True)
                self.is_compiled = True
            outputs: torch.Tensor = self.model(inputs)
            return outputs

    room.compiled = lambda model, is_strict: Slow(model)


def the_compiler_hangs() -> None:
    """Let the compiler wait forever without using the CPU."""
    room.compiled = lambda model, is_strict: _Hanging()


class _Hanging(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(3600)
        return inputs


def reads_are_counted() -> None:
    """Record how many batches a rank validates in an epoch, and how often it reads a number from its device."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def watched(self: Trainer) -> None:
        measured = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal measured
            measured += event == "everstep" and arguments[0] == "validate"

        sys.addaudithook(hook)
        with Reads() as reads:
            validate(self)
        Path("reads.txt").write_text(f"{measured} {reads.count}")

    validate, Trainer._validate = Trainer._validate, watched  # type: ignore[method-assign]


def the_system_is_a_mac() -> None:
    """Remove the features that only Linux has."""
    sys.platform = "darwin"
    del os.sched_getaffinity
    ctypes.CDLL = _library  # type: ignore[assignment, misc]
    torch.backends.mps.is_available = lambda: True

    def refuse(path: Path, *given: Any, **options: Any) -> str:
        if path.parts[:2] in (("/", "proc"), ("/", "sys")):
            raise FileNotFoundError(path)
        return read(path, *given, **options)

    read, Path.read_text = Path.read_text, refuse  # type: ignore[method-assign, assignment]


def _library(name: str | None, *_: Any, **__: Any) -> object:
    """Return a C library without the functions that only Linux has; no other library loads."""
    if name is not None:
        raise OSError(f"{name} is not here")
    return object()


def validation_diverges() -> None:
    """Make the loss of the second batch of a validation not finite."""

    def measured(self: CrossEntropy, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.batches = getattr(self, "batches", 0) + 1  # type: ignore[attr-defined]
        return measure(self, outputs * (float("nan") if self.batches == 2 else 1.0), targets)  # type: ignore[attr-defined]

    measure, CrossEntropy.measure = CrossEntropy.measure, measured  # type: ignore[method-assign]


def rank_one_raises() -> None:
    """Rank 1 fails in its third step."""

    def fail() -> None:
        raise ValueError("a bug in the user's model")

    _in_step(3, fail)


def the_model_raises() -> None:
    """Every rank fails in its 20th step."""
    _raise_in(20, ValueError("a bug in the user's model"))


def the_model_raises_later() -> None:
    """Every rank fails in its 22nd step."""
    _raise_in(22, ValueError("a bug in the user's model"))


def memory_is_short() -> None:
    """The 20th step needs more memory than there is."""
    _raise_in(20, MemoryError("a large array"))


def _raise_in(number: int, error: Exception) -> None:
    step = Trainer._step

    def struck(self: Trainer, *arguments: Any) -> None:
        if self.state.progress.cursor.step == number - 1:
            raise error
        step(self, *arguments)

    Trainer._step = struck  # type: ignore[method-assign]


def the_loss_is_infinite_once_somebody_waits() -> None:
    """The 20th step waits for the file `go`; its loss is infinite."""

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        while not Path("go").exists():
            time.sleep(0.02)
        return loss / 0

    _spoil_loss(spoil)


def samples_are_written() -> None:
    """Each rank writes the epoch and the numbers of the samples of every finished step."""
    step = Trainer._step

    def watched(self: Trainer, micro_batches: Any, batches: Any) -> None:
        epoch = self.state.progress.cursor.epoch
        mine = [sample for micro_batch in micro_batches for sample in micro_batch.samples.tolist()]
        step(self, micro_batches, batches)
        with open(f"samples-{self.ranks.rank}.txt", "a") as file:
            file.write(" ".join(map(str, [epoch, *mine])) + "\n")

    Trainer._step = watched  # type: ignore[method-assign]


def shards_are_slow() -> None:
    """The verification of every shard takes 0.75 s."""
    verify = shard.content_digest

    def slow(*arrays: Any) -> str:
        time.sleep(0.75)
        return verify(*arrays)

    shard.content_digest = slow


def a_loss_is_infinite() -> None:
    """Only the loss of the 20th step is infinite."""
    _spoil_loss(lambda loss: loss / 0)


def a_loss_of_rank_one_is_infinite() -> None:
    """The loss of the 20th step is infinite on rank 1, and so are the gradients of all ranks."""
    _spoil_loss(lambda loss: loss / 0 if torch.distributed.get_rank() == 1 else loss)


def only_a_loss_of_rank_one_is_infinite() -> None:
    """The loss of the 20th step is infinite on rank 1; its gradient is finite, so that rank 0 finds nothing."""
    _spoil_loss(lambda loss: loss + loss.detach() / 0 if torch.distributed.get_rank() == 1 else loss)


def code_fails_on_an_infinite_loss() -> None:
    """The loss of the 20th step is infinite on rank 1, whose sum of losses then fails, as the user's code may."""
    only_a_loss_of_rank_one_is_infinite()
    add = room.State.add_losses

    def checked(self: room.State, losses: Any) -> None:
        if not all(loss.isfinite() for loss, _ in losses):
            raise KeyError("a bug in the user's code")
        add(self, losses)

    room.State.add_losses = checked  # type: ignore[method-assign]


def a_gradient_is_not_a_number() -> None:
    """The gradient of the 20th step is NaN; its loss is finite."""
    _spoil_loss(lambda loss: loss + (loss - loss.detach()).sqrt())


def a_gradient_is_not_a_number_on_a_device() -> None:
    """The same, on a device that the training would have to wait for."""
    a_gradient_is_not_a_number()
    begin = Divergence.__init__

    def far_away(self: Divergence, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self._waits_for_device = True

    Divergence.__init__ = far_away  # type: ignore[method-assign]


def _spoil_loss(act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    step, loss = Trainer._step, CrossEntropy.loss
    reached: list[int] = []

    def numbered(self: Trainer, *arguments: Any) -> None:
        reached[:] = [self.state.progress.cursor.step + 1]
        step(self, *arguments)

    def spoilt(self: CrossEntropy, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = loss(self, outputs, targets)
        return act(found) if reached == [20] else found

    Trainer._step = numbered  # type: ignore[method-assign]
    CrossEntropy.loss = spoilt  # type: ignore[method-assign]


def _in_step(number: int, act: Callable[[], object]) -> None:
    step = Trainer._step

    def struck(self: Trainer, *arguments: Any) -> None:
        if self.ranks.rank == 1 and self.state.progress.cursor.step == number:
            act()
        step(self, *arguments)

    Trainer._step = struck  # type: ignore[method-assign]

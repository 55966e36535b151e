"""A simulated device that copies to the host as late as the program allows.

CUDA promises an order within a stream and nothing between streams, but for the events that one waits for. Here the
main stream is the process itself, and what is given to another stream is done when something waits for it: when the
host waits for an event or a stream, or when the main stream is made to wait for one. A thread that is not the main one
waits until the training itself has waited: so no copy is early because a writer happened to be fast.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from workflow_lib.checkpoint import saver


class Stream:
    """A queue of work, of which the first ``done`` items are done."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0
        self.moved = threading.Condition()

    def wait_stream(self, other: Any) -> None:
        """The main stream is always done, so there is nothing to wait for."""

    def reach(self, end: int) -> None:
        """Do the first ``end`` items of work."""
        with self.moved:
            if threading.current_thread() is not threading.main_thread():
                self.moved.wait_for(lambda: self.done >= end)
            while self.done < end:
                self.work[self.done]()
                self.done += 1
            self.moved.notify_all()


class Event:
    """A position in the work of a stream."""

    def record(self, stream: Stream) -> None:
        self.stream, self.end = stream, len(stream.work)

    def synchronize(self) -> None:
        """Wait on the host until the stream has reached the event."""
        self.stream.reach(self.end)


class MainStream:
    """The stream of work that the process does immediately."""

    def wait_event(self, event: Event) -> None:
        """Let all later work of the process come after the event."""
        event.stream.reach(event.end)


class Queueing(TorchFunctionMode):
    """Queue copies on the stream; each copies the content that its source has when it runs."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            target, source = args[:2]
            self.stream.work.append(lambda: _copied(target, source))
            return target
        return func(*args, **(kwargs or {}))


def _copied(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    with Queueing(stream):
        yield


class Runtime:
    """The functions of the CUDA runtime that are called; each returns ``code``, 0 for success."""

    code = 0

    def cudaHostRegister(  # noqa: N802
        self, pointer: int, size: int, flags: int
    ) -> int:
        return self.code

    def cudaHostUnregister(  # noqa: N802
        self, pointer: int
    ) -> int:
        return self.code


def imitate_device(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the functions of torch.cuda that a saver uses by such a device."""
    parts: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "stream": _on,
        "current_stream": lambda device=None: MainStream(),
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "cudart": Runtime,
    }
    for name, part in parts.items():
        put(torch.cuda, name, part)


def copies_come_late() -> None:
    """Make the saver of a training treat CPU tensors as tensors of such a device.

    A save is out before the next is due, however slow the disk: so it is known which steps are saved.
    """
    imitate_device()
    begin, is_due = saver.Saver.__init__, saver.Saver.is_due

    def on_device(self: saver.Saver, *given: Any, **options: Any) -> None:
        begin(self, *given, **{**options, "device": torch.device("cuda", 0)})

    def is_due_now(self: saver.Saver, step: int) -> bool:
        self.wait()
        return is_due(self, step)

    saver.Saver.__init__, saver.Saver.is_due = on_device, is_due_now  # type: ignore[method-assign]

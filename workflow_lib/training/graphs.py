"""CUDA graphs: the kernels of a function, recorded once, that one call launches again on the same memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, final

import torch

from workflow_lib.config.run_checks import graph_problem
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.plan import RunConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Graph(Protocol):
    """A recording of a function on a device. Numbers that the function reads on the host are recorded as they are."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Call the function as it will be recorded, so that it has allocated and chosen what it keeps."""

    def watched(self, function: Callable[[], T]) -> tuple[T, str | None]:
        """Do the same, and also return the place where the function waited for the device, or None if it did not."""

    def capture(self, function: Callable[[], T]) -> T:
        """Record the function, which has the effects of a call or none; return its result.

        Tensors in the result have their values after each `replay`. Raises an error of torch if it cannot be recorded.
        """

    def replay(self) -> None:
        """Compute what is recorded, on the current values of all tensors that the function was given."""


@final
class CudaGraph:
    """A graph on a GPU. Random numbers come from the GPU's default generator, as in a call."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], T]) -> T:
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        try:
            with torch.cuda.stream(self._stream):
                return function()
        finally:
            main.wait_stream(self._stream)

    def watched(self, function: Callable[[], T]) -> tuple[T, str | None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = self.warm_up(function)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [entry for entry in found if "synchronizing CUDA operation" in str(entry.message)]
        return result, f"{waits[0].filename}, line {waits[0].lineno}" if waits else None

    def capture(self, function: Callable[[], T]) -> T:
        main = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        untouched = generator.graphsafe_get_state()
        # a capture that fails leaves the generator unable to draw, so it gets a copy that can be thrown away
        generator.graphsafe_set_state(generator.clone_state())
        try:
            # other threads read data ahead and write checkpoints, and may allocate pinned memory meanwhile
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                return function()
        except BaseException:
            torch.cuda.set_stream(main)  # torch leaves this to a capture that succeeds
            generator.graphsafe_set_state(untouched)
            raise

    def replay(self) -> None:
        self._graph.replay()


def graph_for(
    setting: Literal["auto", "on", "off"], run: RunConfig, device: torch.device, processes: int, *, is_main: bool
) -> Graph | None:
    """Return a graph for the steps of a run, or None if they are computed one by one.

    Raises ConfigError if graphs are `on` and known to be impossible; with `auto` the log has the reason.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return None
    problem = f"a GPU is needed, and the device is {device}" if device.type != "cuda" else None
    problem = problem or graph_problem(run.training, run.optimizer.name, processes)
    if problem is None:
        return CudaGraph(device)
    if setting == "on":
        raise ConfigError(f"runtime.cuda_graphs: on is impossible: {problem}; allowed: auto, off")
    if is_main:
        logger.info("steps are not captured as a CUDA graph: %s", problem)
    return None

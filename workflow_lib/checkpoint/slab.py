"""Host memory for copies of a state: one block, reused by every save, and pinned if a GPU copies into it.

The page faults of fresh memory cost ten times as much as the copy. A GPU copies asynchronously only into pinned memory.
Pinning 1.5 GB takes about a second, so it is done before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

import torch

from workflow_lib.text import byte_size

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, torch.Tensor]]
ALIGNMENT = 64  # bytes: valid for every dtype, and no two tensors share a cache line


class Slab:
    """A block of host memory that grows to the largest requested size, and never shrinks."""

    def __init__(self, device: torch.device) -> None:
        self.is_pinned = False
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process CUDA may be shut down already
            self._unpin()  # otherwise CUDA believes that the next memory at this address is pinned

    def reserve(self, tensors: Groups) -> None:
        """Allocate memory for tensors of these shapes and dtypes, on any device."""
        needed = sum(_room(tensor) for named in tensors.values() for tensor in named.values())
        if needed > self._memory.nbytes:
            self._unpin()
            self._memory = torch.empty(0, dtype=torch.uint8)  # frees the old block before the new block is allocated
            self._memory = torch.empty(needed, dtype=torch.uint8)
            if self._device.type == "cuda":
                self._pin()

    def like(self, tensors: Groups) -> dict[str, dict[str, torch.Tensor]]:
        """Return a host tensor of the shape and dtype of each, in the same memory at every call."""
        self.reserve(tensors)
        views: dict[str, dict[str, torch.Tensor]] = {}
        begin = 0
        for group, named in tensors.items():
            views[group] = {}
            for name, tensor in named.items():
                part = self._memory[begin : begin + tensor.nbytes]
                views[group][name] = part.view(tensor.dtype).view(tensor.shape)
                begin += _room(tensor)
        return views

    def _pin(self) -> None:
        """Pin the block if the system allows it; copies into pageable memory are correct, but slower.

        Uses cudaHostRegister, since torch's allocator of pinned memory rounds up to a power of two.
        """
        try:
            with torch.cuda.device(self._device):
                code = int(torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), self._memory.nbytes, 0))
                if code:
                    _forget_error(self._device)
            reason = f"CUDA error {code}"
        except RuntimeError as error:
            code, reason = 1, str(error).partition("\n")[0]
        self.is_pinned = code == 0
        if not self.is_pinned:
            size = byte_size(self._memory.nbytes)
            logger.warning("%s of host memory cannot be pinned (%s): saves will block longer", size, reason)

    def _unpin(self) -> None:
        if self.is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            self.is_pinned = False


def _room(tensor: torch.Tensor) -> int:
    """Return the bytes from the start of a tensor to the start of the next one."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _forget_error(device: torch.device) -> None:
    """Clear the last error of CUDA, which would otherwise be reported by the next kernel launch."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return

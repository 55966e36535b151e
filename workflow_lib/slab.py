"""Host memory for the copies of a state: one block, kept from save to save, and pinned where a GPU copies into it.

Fresh memory costs ten times the copy, in page faults. A GPU copies into pinned memory without the program waiting for
it; to pin 1.5 GB takes about a second, so it is done before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

import torch

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, torch.Tensor]]
ALIGNMENT = 64  # bytes: every dtype may begin there, and no two tensors share a cache line


class Slab:
    """Grows to what it is asked for, and never shrinks."""

    def __init__(self, device: torch.device) -> None:
        self.is_pinned = False
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process CUDA may be gone already
            self._unpin()  # else CUDA takes whatever memory comes to that address for pinned

    def reserve(self, tensors: Groups) -> None:
        """There is room for tensors of these shapes and types, wherever they are."""
        needed = sum(_room(tensor) for named in tensors.values() for tensor in named.values())
        if needed > self._memory.nbytes:
            self._unpin()
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old block goes before the new one comes
            self._memory = torch.empty(needed, dtype=torch.uint8)
            if self._device.type == "cuda":
                self._pin()

    def like(self, tensors: Groups) -> dict[str, dict[str, torch.Tensor]]:
        """A host tensor of the shape and type of each; the same memory at every call."""
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
        """Its pages are locked, if the system allows it; a copy into others is right too, only slower.

        Registered by hand, since torch's own allocator of pinned memory rounds up to a power of two.
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
            size = self._memory.nbytes / 1e9
            logger.warning("%.2f GB of host memory cannot be pinned (%s): saves will block longer", size, reason)

    def _unpin(self) -> None:
        if self.is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            self.is_pinned = False


def _room(tensor: torch.Tensor) -> int:
    """Bytes from the begin of a tensor to that of the next."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _forget_error(device: torch.device) -> None:
    """CUDA keeps the last error until somebody asks; a kernel that is launched next would be blamed for it."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return

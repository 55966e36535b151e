"""A shuffled order of any length without memory: each sample is computed from its place, the seed and the epoch.

The permutation is a Feistel network on the bits of a place (Luby and Rackoff 1988, "How to construct pseudorandom
permutations"), repeated until the result is below the number of samples ("cycle walking": Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). On average it is repeated less than twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from workflow_lib.runtime.seed import derive

ROUNDS = 12  # six for each half of the bits; four of a random function are enough to look random
GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Computed:
    """A vector whose values are computed when they are read, from their places."""

    def __init__(self, length: int, values: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._length, self._values = length, values

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: slice) -> torch.Tensor:
        return self._values(torch.arange(*places.indices(self._length)))


class Permutation:
    """Every number below `samples` once, in an order that the seed and the epoch decide."""

    def __init__(self, seed: int, epoch: int, samples: int) -> None:
        bits = max(2, (samples - 1).bit_length())
        self._samples, self._low_bits = np.uint64(samples), bits // 2
        self._masks = np.uint64((1 << bits // 2) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = [np.uint64(derive(seed, "keyed order", epoch, number)) for number in range(ROUNDS)]

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """Return the samples at these places, int64 on the CPU."""
        values = self._permuted(places.numpy().astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self._samples)):
            values[outside] = self._permuted(values[outside])
        return torch.from_numpy(values.astype(np.int64))

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        """Return another number of as many bits for each value; different values give different numbers."""
        halves = [values & self._masks[0], values >> np.uint64(self._low_bits)]
        for number, key in enumerate(self._keys):
            changed = number % 2
            halves[changed] = halves[changed] ^ (_mixed(halves[1 - changed], key) & self._masks[changed])
        low, high = halves
        return (high << np.uint64(self._low_bits)) | low


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Return a hash of each value (the finaliser of splitmix64: Steele, Lea and Flood 2014)."""
    mixed = (values + np.uint64(1)) * GOLDEN + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    return mixed ^ (mixed >> np.uint64(31))

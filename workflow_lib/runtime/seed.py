"""Random numbers are a function of the seed, and the state of every generator can be kept as tensors.

A snapshot of the generators is taken at every optimizer step. Python's and numpy's own `getstate` take 25 and
75 microseconds, nearly all of it to build one object for each of the 624 words of the Mersenne twister; a
copy of the memory they lie in takes one. Where they lie is found once, by comparison with `getstate`; where
that does not succeed, `getstate` itself is used. Both ways give the same bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import torch

from workflow_lib.errors import UserError

WORDS = 624
TWISTER = struct.Struct(f"<{WORDS}Ii?d")  # words, position, is a normal deviate kept, the deviate
TAIL = struct.Struct("<?d")


def derive(seed: int, *names: object) -> int:
    """Seed in [0, 2**63) that depends on all that is named, and is unrelated to that of other names."""
    text = json.dumps([seed, *names], ensure_ascii=False)
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"everstep.seed").digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int, rank: int = 0) -> None:
    """Python, numpy, torch and every CUDA device draw from a stream of their own for this seed and rank."""
    random.seed(derive(seed, "python", rank))
    np.random.seed(derive(seed, "numpy", rank) % 2**32)
    torch.manual_seed(derive(seed, "torch", rank))


def capture_rng(device: torch.device) -> dict[str, torch.Tensor]:
    """State of this process's generators, as bytes: python, numpy, torch on the CPU and on the device."""
    state = {
        "python": torch.frombuffer(_python_reader()(), dtype=torch.uint8),
        "numpy": torch.frombuffer(_numpy_reader(_numpy_generator())(), dtype=torch.uint8),
        "torch": torch.default_generator.get_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, torch.Tensor]) -> None:
    """Every generator goes on exactly where `capture_rng` saw it; CUDA's on the current device."""
    *words, position, has_gauss, gauss = TWISTER.unpack(bytes(state["python"].numpy()))
    random.setstate((random.Random.VERSION, (*words, position), gauss if has_gauss else None))
    *words, position, has_gauss, gauss = TWISTER.unpack(bytes(state["numpy"].numpy()))
    np.random.set_state(("MT19937", np.array(words, np.uint32), position, int(has_gauss), gauss))
    torch.default_generator.set_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _numpy_generator() -> Any:
    return np.random.get_bit_generator()  # type: ignore[attr-defined]


def _python_slow() -> bytearray:
    _, words, gauss = random.getstate()
    return bytearray(TWISTER.pack(*words, gauss is not None, gauss or 0.0))


def _numpy_slow() -> bytearray:
    state = np.random.get_state()
    _, words, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], state)
    return bytearray(TWISTER.pack(*words.tolist(), position, bool(has_gauss), gauss))


def _memory(address: int, size: int) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * size).from_address(address)


@cache
def _python_reader() -> Callable[[], bytearray]:
    """Copies the words where they lie in the generator of the module `random`, the position before them."""
    generator = random.getstate.__self__  # type: ignore[attr-defined]
    *words, position = random.getstate()[1]
    pattern = struct.pack(f"<i{WORDS}I", position, *words)
    offset = ctypes.string_at(id(generator), type(generator).__basicsize__).find(pattern)
    if offset < 0:
        return _python_slow
    kept_words = _memory(id(generator) + offset + 4, 4 * WORDS)
    kept_position = _memory(id(generator) + offset, 4)

    def read() -> bytearray:
        gauss = generator.gauss_next
        return bytearray(kept_words.raw + kept_position.raw + TAIL.pack(gauss is not None, gauss or 0.0))

    return read if read() == _python_slow() else _python_slow


@cache
def _numpy_reader(bit_generator: Any) -> Callable[[], bytearray]:
    """Copies the words from the address numpy publishes, and the kept deviate from numpy's global object."""
    if not isinstance(bit_generator, np.random.MT19937):
        raise UserError(
            f"numpy's global generator was replaced by {type(bit_generator).__name__}, whose state cannot be "
            "kept. Leave it at MT19937, or draw from a Generator of your own, seeded from the sample."
        )
    places = _deviate_offsets()
    if places is None:
        return _numpy_slow
    owner = id(np.random.get_state.__self__)  # type: ignore[attr-defined]
    words_and_position = _memory(bit_generator.ctypes.state_address, 4 * WORDS + 4)
    has_gauss, gauss = _memory(owner + places[0], 1), _memory(owner + places[1], 8)

    def read() -> bytearray:
        return bytearray(words_and_position.raw + has_gauss.raw + gauss.raw)

    return read if read() == _numpy_slow() else _numpy_slow


def _deviate_offsets() -> tuple[int, int] | None:
    """Where a numpy RandomState keeps its flag "a normal deviate is kept", and the deviate."""
    probe = np.random.RandomState(0)
    deviate = 0.12345678901234567

    def image(has_gauss: int) -> bytes:
        probe.set_state(("MT19937", np.arange(WORDS, dtype=np.uint32), 1, has_gauss, deviate))
        return ctypes.string_at(id(probe), type(probe).__basicsize__)

    with_deviate, without = image(1), image(0)
    flags = [i for i, (one, other) in enumerate(zip(with_deviate, without, strict=True)) if one != other]
    place = with_deviate.find(struct.pack("<d", deviate))
    return (flags[0], place) if len(flags) == 1 and place >= 0 else None

"""Seeds that are derived from names, and the states of all random generators as tensors of bytes."""

from __future__ import annotations

import json
import random
import struct

import numpy as np
import torch

from workflow_lib.errors import UserError
from workflow_lib.files import blake2b

WORDS = 624
TWISTER = struct.Struct(f"<{WORDS}Ii?d")  # Mersenne twister: words, position, has a spare normal deviate, the deviate


def derive(seed: int, *names: object) -> int:
    """Return a seed in [0, 2**63) that depends on the seed and on every name, in their order."""
    text = json.dumps([seed, *names], ensure_ascii=False)
    digest = blake2b(text.encode(), size=8, kind="everstep.seed").digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed python, numpy, torch and every CUDA device, each with its own stream for this seed and rank."""
    random.seed(derive(seed, "python", rank))
    np.random.seed(derive(seed, "numpy", rank) % 2**32)
    torch.manual_seed(derive(seed, "torch", rank))


def capture_rng(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of this process's generators as uint8 tensors: python, numpy, torch on CPU and device."""
    state = {
        "python": torch.frombuffer(_python_state(), dtype=torch.uint8),
        "numpy": torch.frombuffer(_numpy_state(), dtype=torch.uint8),
        "torch": torch.default_generator.get_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, torch.Tensor]) -> None:
    """Restore the states that `capture_rng` returned; that of CUDA on the current device."""
    *words, position, has_gauss, gauss = TWISTER.unpack(bytes(state["python"].numpy()))
    random.setstate((random.Random.VERSION, (*words, position), gauss if has_gauss else None))
    *words, position, has_gauss, gauss = TWISTER.unpack(bytes(state["numpy"].numpy()))
    np.random.set_state(("MT19937", np.array(words, np.uint32), position, int(has_gauss), gauss))
    torch.default_generator.set_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _python_state() -> bytearray:
    _, words, gauss = random.getstate()
    return bytearray(TWISTER.pack(*words, gauss is not None, gauss or 0.0))


def _numpy_state() -> bytearray:
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise UserError(
            f"numpy's global generator was replaced by {state['bit_generator']}: its state cannot be saved. "
            "Leave it at MT19937, or draw from a numpy.random.Generator seeded with (seed, epoch, sample)."
        )
    words, position = state["state"]["key"].tolist(), state["state"]["pos"]
    return bytearray(TWISTER.pack(*words, position, bool(state["has_gauss"]), state["gauss"]))

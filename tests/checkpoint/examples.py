"""A store, states to save in it, and damage to its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workflow_lib.checkpoint import CheckpointStore, Snapshot, safetensors

FINGERPRINT = {"run": "a" * 32, "data": "b" * 32}
FIRST, SECOND = "1" * 32, "2" * 32
MEMORY = Path("/dev/shm")  # a sync costs nothing there
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def store(directory: Path, attempt: str = FIRST, **options: Any) -> CheckpointStore:
    settings = {"fingerprint": FINGERPRINT, "may_publish": lambda: True, **options}
    return CheckpointStore(directory / "checkpoints", attempt=attempt, **settings)


def snapshot(step: int) -> Snapshot:
    """Return a state that depends on the step, with every dtype that a checkpoint can hold and with odd shapes."""
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4) + step
    tensors = {dtype: values.to(getattr(torch, dtype)) for dtype in safetensors.DTYPES}
    odd = {
        "scalar": torch.tensor(step, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "transposed": values.t(),
        "expanded": values[:1, :1].expand(2, 2),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "learnt": values.clone().requires_grad_(),
    }
    state = {"cursor": {"step": step}, "history": [{"loss": 0.1 + step}], "text": "ä"}
    return Snapshot(step, {"model": tensors, "optimizer": odd}, state, {"cursor": {"step": step}})


def assert_is_snapshot(loaded: Any, step: int) -> None:
    """Assert that the loaded state is that of the step, in every bit."""
    found, contents = loaded
    want = snapshot(step)
    assert found.step == step
    assert (contents.step, contents.state, contents.about) == (step, want.state, want.about)
    assert contents.tensors.keys() == want.tensors.keys()
    for group, named in want.tensors.items():
        assert contents.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            got = contents.tensors[group][name]
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
            assert bits(got) == bits(tensor), name


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def newest_step(directory: Path) -> int:
    loaded = store(directory, SECOND).load_latest()
    assert loaded is not None
    assert_is_snapshot(loaded, loaded[0].step)
    return loaded[0].step


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip_bit,
    "a flipped last bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "a lost last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "nothing": lambda path: os.truncate(path, 0),
    "no file": Path.unlink,
    "a folder": make_folder,
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"}"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}

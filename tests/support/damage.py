"""Damage to the file of a shard."""

from __future__ import annotations

from pathlib import Path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    path.write_bytes(next(p for p in sorted(path.parent.glob("*.safetensors")) if p != path).read_bytes())

"""A training on a billion samples starts and resumes anywhere in an epoch without skipping, in the same memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.billion import BATCH, STEPS, starts
from workflow_lib.data import Manifest
from workflow_lib.training.permutation import Permutation

SAMPLES = 10**9
ROOM = 1 << 29  # an order of a billion samples would take 8 GB


def test_a_training_is_resumed_near_the_end_of_a_billion_samples(tmp_path: Path) -> None:
    first, resumed = starts(tmp_path, SAMPLES)
    manifest = Manifest.load(tmp_path / "manifest.json")
    samples = manifest.splits["train"].samples
    assert samples == SAMPLES - 200
    assert max(first["memory"], resumed["memory"]) < ROOM
    order = Permutation(0, 0, samples)
    for start, measured in ((0, first), ((samples // BATCH - STEPS - 1) * BATCH, resumed)):
        expected = order(torch.arange(start, start + STEPS * BATCH)).view(STEPS, BATCH).tolist()
        assert measured["samples"] == expected
        assert measured["sample"] == start + STEPS * BATCH
    size = sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file())
    assert size < 1 << 20
    assert json.loads((tmp_path / "manifest.json").read_text())["shards"] == []

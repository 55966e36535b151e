"""A result is exact only if two uninterrupted trainings would give the same bits."""

import pytest
import torch

from workflow_lib.training.state import repeats_bits


@pytest.mark.parametrize(
    ("device", "determinism", "repeats"),
    [("cpu", "strict", True), ("cpu", "standard", True), ("cuda", "strict", True), ("cuda", "warn", True)]
    + [("cuda", "standard", False)],
)
def test_a_gpu_repeats_its_bits_only_with_deterministic_kernels(device: str, determinism: str, repeats: bool) -> None:
    assert repeats_bits(torch.device(device), determinism) is repeats

"""A reader of safetensors files allocates no memory for what a damaged header says."""

from __future__ import annotations

import io
import json

import pytest
import torch

from workflow_lib.checkpoint import safetensors


def test_a_header_that_does_not_describe_its_file_is_an_error_and_takes_no_memory() -> None:
    """This holds for any damaged byte, since a file is parsed before its digest is known."""
    content = b"".join(map(bytes, safetensors.encode("g", {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)})))
    header = 8 + int.from_bytes(content[:8], "little")
    read = 0
    for place in range(header):
        for bit in (1, 4, 16, 64):
            damaged = bytearray(content)
            damaged[place] ^= bit
            try:
                tensors = safetensors.read(io.BytesIO(bytes(damaged)), len(damaged))
            except ValueError:
                continue
            read += 1  # damage to a name, or to a shape with the same product
            assert sum(tensor.nbytes for tensor in tensors.values()) == len(content) - header
    assert read < header


def test_a_shape_that_no_tensor_can_have_is_an_error_of_the_header() -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}).encode()
    content = len(header).to_bytes(8, "little") + header
    with pytest.raises(ValueError, match="header is damaged"):
        safetensors.read(io.BytesIO(content), len(content))


@pytest.mark.parametrize("end", [0, 4, 20, -1])
def test_a_file_of_tensors_that_ends_early_is_an_error(end: int) -> None:
    content = b"".join(map(bytes, safetensors.encode("g", {"a": torch.arange(6.0)})))[:end]
    for size in (len(content), len(content) + 9):
        with pytest.raises(ValueError, match="ends|ended|longer|belong"):
            safetensors.read(io.BytesIO(content), size)

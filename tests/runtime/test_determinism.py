"""TF32 is used for the precision `tf32` only."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_tf32_is_what_the_settings_say_whatever_a_module_of_the_user_switched_on(precision: str, expected: str) -> None:
    """torch has two sets of switches; either can have been used when the user's module was imported."""
    code = f"""
import torch
torch.backends.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
from workflow_lib.runtime.determinism import set_precision
from workflow_lib.runtime.environment import _cuda_switches
_cuda_switches()
set_precision({precision!r})
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
      torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected] * 3 + [str(precision == "tf32")] * 2

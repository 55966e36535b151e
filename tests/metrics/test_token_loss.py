"""The loss of tokens in chunks is that of all at once, but for rounding, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from workflow_lib.metrics import token_loss
from workflow_lib.tasks.language import TokenCrossEntropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_all_tokens_at_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(11, (3, 7), generator=generator)
    targets[1, 2] = token_loss.IGNORED
    expected = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(expected * 8, logits)
    loss = TokenCrossEntropy(smoothing=0.1, chunk=4).loss(logits, targets)
    (found,) = torch.autograd.grad(loss * 8, logits)
    assert (loss.dtype, found.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient)
    whole, parts = (TokenCrossEntropy(chunk=chunk).measure(logits, targets) for chunk in (None, 4))
    torch.testing.assert_close(parts, whole, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_no_float32_tensor_is_larger_than_a_chunk() -> None:
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float32:
                sizes.append(found.numel())
            return found

    logits = torch.randn(1, 64, 9).to(torch.bfloat16).requires_grad_()
    targets = torch.zeros(1, 64, dtype=torch.int64)
    with Watch():
        TokenCrossEntropy(chunk=8).loss(logits, targets).backward()
        TokenCrossEntropy(chunk=8).measure(logits.detach(), targets)
    assert max(sizes) == 8 * 9

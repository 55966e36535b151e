"""Models without a plugin's `Params` and `build`, which are named by the path of their class or function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Net(nn.Module):
    """Linear layers with dropout; `returns` says in which form the logits are returned."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        hidden: Sequence[int] = (12,),
        returns: str = "mapping",
        activation: Callable[[], nn.Module] = nn.ReLU,
        table: Path | None = None,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), activation(), nn.Dropout(0.1))
            for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.head = nn.Linear(sizes[-1], classes)
        self.returns = returns
        if table is not None:
            self.head.bias.data += len(table.read_text())

    def forward(self, inputs: Tensor) -> Any:
        features = inputs.flatten(1)
        for block in self.blocks:
            features = block(features)
        logits = self.head(features)
        forms = {
            "tensor": logits,
            "tuple": (logits, features),
            "mapping": {"loss": None, "logits": logits},
            "object": Output(logits, features),
            "text": "logits",
            "unnamed": {"scores": logits},
        }
        return forms[self.returns]


@dataclass
class Output:
    logits: Tensor
    features: Tensor


def make(width: int = 8, **rest: Any) -> nn.Module:
    """A function with `**`, as in timm and torchvision."""
    return Net(64, 10, (width,), **rest)


def ready_made(pretrained: bool = False) -> nn.Module:
    return Net(64, 10)


class ValueDependent(nn.Module):
    """Cannot be built without memory: it reads a number of a tensor."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(64, int(torch.full((), 10).item()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1))


class Unfinished(nn.Module):
    """Has no `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)


def described() -> nn.Module:
    raise RuntimeError("no metadata")

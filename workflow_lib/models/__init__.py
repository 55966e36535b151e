"""Models, one file each: `model.name: mine` is `mine.py` here, `model.name: mypackage.mine` is a module of the user.

`model.name: mypackage.nets:Net` is a class or function that returns a model; it needs no such file.

    from pydantic import Field
    from workflow_lib.plugins import Section

    class Params(Section):
        width: int = Field(64, ge=1, description="hidden units")                   # model.params.width

    def build(params, spec):
        import math
        from torch import nn

        inputs = math.prod(spec.input_shape)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, params.width), nn.ReLU(), nn.Linear(params.width, spec.outputs)
        )

`spec`, a `data.ModelSpec`, comes from the data. The model turns float32 [B, *input_shape] into [B, outputs]: logits
of classes, or the standardised numbers of a regression. Of a language, int64 tokens [B, T <= context] become logits
[B, T, outputs] of the next token; of a table, `spec.categories` says which columns hold numbers of categories.
Its first weights come from torch's global generator, which the training seeds. `tests/models/contract.py` has the laws.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflow_lib import plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.config.run import Model
    from workflow_lib.data import ModelSpec

OUTPUTS = ("logits", "out")  # the output among several by name: of Transformers, of torchvision's segmentation


def build(section: Model, spec: ModelSpec) -> nn.Module:
    """Return the model of these settings, whose output is a tensor. Weights are drawn from torch's global generator."""
    from torch import nn

    plugin = plugins.load("models", section.name)
    is_own = "." in section.name or ":" in section.name
    with plugins.user_code_errors(f"model.name: {section.name}") if is_own else contextlib.nullcontext():
        network: nn.Module = plugin.build(plugin.Params.model_validate(section.params), spec)
    if isinstance(network, nn.Module):
        # a hook, and no module around the model: the names of its weights stay its own
        network.register_forward_hook(lambda module, inputs, outputs: tensor_of(outputs))
    return network


def read_from_files(network: nn.Module) -> frozenset[str]:
    """Return the names of weights that `build` reads from files whose content is part of the run's identity."""
    return getattr(network, "read_from_files", frozenset())


def not_saved(network: nn.Module) -> set[str]:
    """Return the names of the weights that are read from files and frozen, as beside adapters: no run saves them."""
    frozen = {name for name, weight in network.state_dict(keep_vars=True).items() if not weight.requires_grad}
    return frozen & read_from_files(network)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a training, without those that were read from files and never trained."""
    kept = {name: value for name, value in network.state_dict().items() if name in read_from_files(network)}
    network.load_state_dict({**kept, **weights})


def merged(network: nn.Module) -> nn.Module:
    """Return a copy of a model in which its adapters are part of its weights; without adapters, the model itself."""
    if "peft" not in sys.modules:
        return network
    from workflow_lib.models import _adapters

    return _adapters.merged(network)


def tensor_of(outputs: Any) -> Any:
    """Return the tensor among a model's outputs: the first of a tuple, the `logits` of a mapping or an object."""
    if isinstance(outputs, Mapping):
        return next((outputs[name] for name in OUTPUTS if name in outputs), outputs)
    if (logits := getattr(outputs, "logits", None)) is not None:
        return logits
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs

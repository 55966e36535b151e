"""Adapters by PEFT beside the frozen weights of a model of Transformers."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.models.transformers import Lora


def add_adapters(network: nn.Module, settings: Lora, *, trains_head: bool) -> None:
    """Freeze the weights that were read from files, and add trained matrices of a low rank beside them."""
    from peft import LoraConfig, inject_adapter_in_model

    base: Any = network
    prefix, read = f"{base.base_model_prefix}.", base.read_from_files
    before = {id(weight): name for name, weight in network.named_parameters(remove_duplicate=False)}
    targets = settings.target_modules or _linear_layers(network, prefix)
    if not targets:
        raise ConfigError(
            "model.params.lora: the model has no linear layer besides its head; name the layers to adapt in "
            "model.params.lora.target_modules, or train all weights (lora: null)"
        )
    lora: Any = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT finds out itself how GPT-2 stores weights
            inject_adapter_in_model(LoraConfig(target_modules=targets, **lora), base)
    except ValueError as error:
        raise ConfigError(f"model.params.lora.target_modules: {' '.join(str(error).split())}") from error
    frozen = []
    for name, weight in network.named_parameters(remove_duplicate=False):
        old = before.get(id(weight))
        is_trained = old is None or (trains_head and not old.startswith(prefix)) or (bool(read) and old not in read)
        weight.requires_grad_(is_trained)
        frozen += [] if is_trained or old not in read else [name]
    base.read_from_files = frozenset(frozen)


def _linear_layers(network: nn.Module, prefix: str) -> list[str]:
    """Return the names of the linear layers without the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = (nn.Linear, Conv1D)
    return [name for name, module in network.named_modules() if isinstance(module, layers) and name.startswith(prefix)]


def merged(network: nn.Module) -> nn.Module:
    """Return a copy in which each weight contains the product of the matrices beside it; the model if it has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return network

"""The memory of a training step of one's own: all its models and optimizers, built on torch's meta device.

This module imports torch inside its functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workflow_lib import plugins, tasks
from workflow_lib.errors import ConfigError
from workflow_lib.plan.metric_check import made_up_targets
from workflow_lib.plan.model_check import Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from workflow_lib.data import ModelSpec
    from workflow_lib.plan import RunConfig
    from workflow_lib.training.state import State


def sizes(run: RunConfig, spec: ModelSpec, processes: int) -> Sizes | None:
    """Return the sizes of all that the step trains and keeps; None if it cannot be built without memory.

    Raises ConfigError if checkpoints would lack a part of it.
    """
    import torch

    from workflow_lib.distributed.ranks import Peers, Ranks
    from workflow_lib.training.state import State

    changes = {"precision": "fp32", "activation_checkpointing": False, "hooks": None}
    plain = run.model_copy(update={"training": run.training.model_copy(update=changes)})
    meta = torch.device("meta")
    with meta, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, for weights that are loaded into tensors without memory
        try:
            state = State(plain, spec, ranks=Ranks(), peers=Peers(), device=meta, environment={})
        except ConfigError as error:
            if error.__cause__ is None:
                raise
            return None  # the user's code failed, which it may do only without memory
        except Exception:
            return None
        for group in state.optimizer.param_groups:
            group.update({"fused": False} if group.get("fused") else {})  # such a kernel needs a device
        samples = max(1, run.training.batch_size // processes)
        everything = [*state.module.parameters(), *state.module.buffers()]
        trained = state.parallel.optimized
        return Sizes(
            parameters=sum(weight.numel() for weight in state.module.parameters()),
            trained=sum(weight.numel() for weight in trained),
            weights=sum(tensor.nbytes for tensor in everything),
            gradients=sum(weight.nbytes for weight in trained),
            optimizer=_optimizer_state(state),
            averages=sum(average.nbytes for average in (state.ema or {}).values()),
            activations=_activations(state, spec, samples),
            samples=samples,
        )


def _optimizer_state(state: State) -> int | None:
    """Return the bytes that the optimizers keep after a step; None if one cannot take it without memory."""
    import torch

    from workflow_lib.runtime.torch_internals import unwrapped_step
    from workflow_lib.training.step_building import Joined

    parts = state.optimizer.parts if isinstance(state.optimizer, Joined) else {}
    total = 0
    for part in parts.values():
        weights = [weight for group in part.param_groups for weight in group["params"]]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        try:
            unwrapped_step(part)()
        except Exception:
            return None
        total += sum(
            value.nbytes for weight in weights for value in part.state[weight].values() if torch.is_tensor(value)
        )
    state.optimizer.zero_grad()
    return total


def _activations(state: State, spec: ModelSpec, samples: int) -> int | None:
    """Return the most bytes that graphs keep at a time in a call of `step`; None if it needs real numbers."""
    import torch

    from workflow_lib.training.step_context import Context

    probe, shape = tasks.load(spec.task).probe(spec)
    inputs = torch.zeros((samples, *spec.input_shape), dtype=probe.dtype)
    targets = made_up_targets(plugins.task_facts(spec.task).targets, (samples, *shape[1:]))
    context = Context(state)
    context.samples = samples
    kept = Kept([*state.module.parameters(), *state.module.buffers()])
    state.set_training()
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            state.step.step((inputs, targets), context)  # type: ignore[union-attr]
    except Exception:
        return None
    return kept.most


class Kept:
    """Bytes of the tensors that autograd keeps for backward passes, without those that are kept anyway.

    Attributes:
        most: the largest number of bytes at a time
    """

    def __init__(self, without: Iterable[Tensor]) -> None:
        from workflow_lib.runtime.torch_internals import storage_address

        self._address = storage_address
        self._without = {storage_address(tensor) for tensor in without}
        self._uses: dict[int, int] = {}
        self._bytes, self.most = 0, 0

    def pack(self, tensor: Tensor) -> Saved:
        """Return what autograd keeps in place of the tensor."""
        address = self._address(tensor)
        if address not in self._without:
            self._uses[address] = self._uses.get(address, 0) + 1
            self._bytes += tensor.untyped_storage().nbytes() if self._uses[address] == 1 else 0
            self.most = max(self.most, self._bytes)
        return Saved(tensor, self)

    def unpack(self, saved: Saved) -> Tensor:
        """Return the tensor again."""
        return saved.tensor

    def drop(self, tensor: Tensor) -> None:
        """Count a tensor no longer, since its graph is freed."""
        address = self._address(tensor)
        if address in self._uses:
            self._uses[address] -= 1
            if not self._uses[address]:
                del self._uses[address]
                self._bytes -= tensor.untyped_storage().nbytes()


class Saved:
    """A tensor that autograd keeps until its graph is freed."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self._kept = tensor, kept

    def __del__(self) -> None:
        self._kept.drop(self.tensor)

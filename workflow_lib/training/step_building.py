"""A training step of the user, built and checked: all its state must be in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib import plan, plugins
from workflow_lib.config.step import file_arguments, run_arguments, step_class
from workflow_lib.errors import ConfigError, shortened
from workflow_lib.runtime.torch_internals import unwrapped_step
from workflow_lib.training.step import Setup, TrainingStep

if TYPE_CHECKING:
    from workflow_lib.config.run import Training


def new_step(training: Training, weights: Mapping[str, Path]) -> TrainingStep | None:
    """Return an object of the class at `training.step`, or None if there is none.

    `weights` are those of other runs by setting; an argument whose run is not trained yet is its id.
    """
    if training.step is None:
        return None
    given = training.step_params
    runs = run_arguments(training.step, given)
    trained = {name: weights.get(f"{plan.STEP_PARAMS}.{name}", Path(run)) for name, run in runs.items()}
    params = {**given, **file_arguments(training.step, given), **trained}
    with plugins.user_code_errors(f"training.step: {training.step}"):
        step: TrainingStep = step_class(training.step)(**params)
        return step


def build_step(step: TrainingStep, setup: Setup) -> None:
    """Give the step the run's model, and let it build its other modules."""
    step.model = setup.model
    with plugins.user_code_errors(f"training.step: {type(step).__name__}.build()"):
        step.build(setup)
    if step.model is not setup.model:
        raise ConfigError(f"training.step: {type(step).__name__}.build() replaces self.model, which model.name names")


def joined_optimizers(step: TrainingStep, setup: Setup) -> Joined:
    """Return the optimizers of a built step as one; no attribute of the step may be set after this."""
    with plugins.user_code_errors(f"training.step: {type(step).__name__}.optimizers()"):
        parts = step.optimizers(setup)
    is_dict = isinstance(parts, dict) and len(parts) > 0
    if not is_dict or not all(isinstance(part, torch.optim.Optimizer) for part in parts.values()):
        raise ConfigError(
            f"training.step: {type(step).__name__}.optimizers() must return a dict of names and torch optimizers, such "
            'as {"model": setup.optimizer(self.model)}'
        )
    _check_registered(step, parts)
    _check_trained(step, parts)
    step._is_built = True
    return Joined(parts, setup.section.lr)


def check_equal_values(step: TrainingStep, number: int, by_rank: Sequence[torch.Tensor]) -> None:
    """Raise ConfigError if the step's values, as bytes of JSON, differ between ranks: a resume would change them."""
    texts = [bytes(text.tolist()).decode() for text in by_rank]
    for rank, text in enumerate(texts):
        if text != texts[0]:
            raise ConfigError(
                f"training.step: {type(step).__name__}.values differs between ranks at step {number}: "
                f"{shortened(texts[0])} on rank 0, {shortened(text)} on rank {rank}; keep there what is equal on all "
                "ranks, such as a count of steps, or average it by context.mean"
            )


class Joined(torch.optim.Optimizer):
    """Several optimizers as one, with the groups of all of them; its state is theirs, and is saved and restored."""

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], learning_rate: float) -> None:
        self.parts = dict(parts)
        groups = [group for part in parts.values() for group in part.param_groups]
        super().__init__([dict(group) for group in groups], {})
        for group in self.param_groups:
            group["lr_scale"] = group.get("lr_scale", 1.0) * float(group["lr"]) / learning_rate
        for part in parts.values():
            self.state.update(part.state)
        self._steps = {name: unwrapped_step(part) for name, part in parts.items()}
        self._share()

    def step_of(self, name: str) -> None:
        """Take a step of one of the optimizers."""
        self._steps[name]()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of every optimizer."""
        for step in self._steps.values():
            step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state, and give it to the parts: a load makes new objects."""
        super().load_state_dict(dict(state_dict))
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts.values():
            count = len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first : first + count], self.state
            first += count


def _check_registered(step: TrainingStep, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise ConfigError if an attribute of a built step would be missing from checkpoints."""
    what = type(step).__name__
    for name, value in vars(step).items():
        if name in vars(nn.Module()) or name == "values":
            continue
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        for found in (value, *inside):
            if isinstance(found, torch.Tensor):
                hint = f'a buffer: self.register_buffer("{name}", ...)'
            elif isinstance(found, nn.Module):
                hint = "a torch.nn.ModuleList or ModuleDict"
            elif isinstance(found, torch.optim.Optimizer) and found not in optimizers.values():
                hint = f"one of those that {what}.optimizers() returns"
            else:
                continue
            raise ConfigError(f"training.step: {what}.{name} would be missing from checkpoints: make it {hint}")


def _check_trained(step: TrainingStep, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise ConfigError unless each weight that requires gradients belongs to exactly one optimizer."""
    names = {id(weight): name for name, weight in step.named_parameters()}
    owners: dict[int, str] = {}
    for owner, optimizer in optimizers.items():
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            if id(weight) not in names:
                raise ConfigError(
                    f"training.step: the optimizer `{owner}` has a weight that is in no module of the step"
                )
            if id(weight) in owners:
                raise ConfigError(
                    f"training.step: {names[id(weight)]} is trained by two optimizers, `{owners[id(weight)]}` and "
                    f"`{owner}`; give each weight to one"
                )
            owners[id(weight)] = owner
    for weight_id, name in names.items():
        if weight_id not in owners and step.get_parameter(name).requires_grad:
            raise ConfigError(
                f"training.step: {name} requires gradients, and no optimizer has it: give it to one, or freeze it "
                f"in `build`: module.requires_grad_(False)"
            )

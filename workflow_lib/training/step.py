"""The base class of a training step of one's own: several models and optimizers, and any number of backward passes.

    class Step(TrainingStep):
        def build(self, setup):                 # self.model is the run's model; other modules are attributes
            self.critic = Critic(setup.spec)

        def optimizers(self, setup):
            return {"model": setup.optimizer(self.model), "critic": setup.optimizer(self.critic, lr=1e-4)}

        def step(self, batch, context):         # one training batch: backward passes and `optimizer.step()`
            ...
            return loss

A step is a `torch.nn.Module`: its modules, parameters and buffers are in every checkpoint, as are the optimizers, the
dict `values` and the generators. It keeps no other state. A call of `step` is never interrupted by a save or a stop:
both happen between two calls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from workflow_lib.config.init import Init
    from workflow_lib.config.optimization import Optimizer
    from workflow_lib.data import ModelSpec
    from workflow_lib.training.step_context import Context

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setup:
    """The data, settings and model that `build` and `optimizers` of a step may use.

    Attributes:
        spec: shapes of the data, and its task
        device: to which the step is moved after `build`
        section: the settings under `optimizer`
        init: the settings under `model.init`, which give weights of the run's model rates and decays of their own
        model: the run's model
    """

    spec: ModelSpec
    device: torch.device
    section: Optimizer
    init: Init
    model: nn.Module

    def optimizer(self, module: nn.Module, **changes: Any) -> torch.optim.Optimizer:
        """Return the optimizer of the experiment file for a module's weights, with some settings changed."""
        from workflow_lib.training.optimizers import build_optimizer
        from workflow_lib.training.parameter_groups import parameter_groups

        section = type(self.section).model_validate({**self.section.model_dump(), **changes})
        named = [(name, w) for name, w in module.named_parameters(remove_duplicate=False) if w.requires_grad]
        groups = parameter_groups(self.init, named) if module is self.model else None
        return build_optimizer(section, module, groups)

    def build_model(self, name: str, params: Mapping[str, Any] | None = None) -> nn.Module:
        """Return another model for this data, built as if `model.name` and `model.params` were these."""
        from workflow_lib import models
        from workflow_lib.config.run import Model

        return models.build(Model.model_validate({"name": name, "params": dict(params or {})}), self.spec)

    def trained_model(self, weights: Path) -> nn.Module:
        """Return the model of another run, such as a teacher: frozen, and computing as in validation in every step.

        `weights` is the value of an argument of type `Path` that names the run, whose settings the model has. Raises
        ConfigError if it is a file that no run has written.
        """
        from safetensors.torch import load_file

        from workflow_lib import models, plan
        from workflow_lib.results import layout as results_layout
        from workflow_lib.results.statements import read_training
        from workflow_lib.store.layout import WORK

        statement = weights.with_name(results_layout.TRAIN)
        if not statement.exists():
            raise ConfigError(
                f"{weights} is not the weights of a run, whose model is known: name a run or an experiment file, or "
                "build the model by setup.build_model"
            )
        run, _ = plan.load_run(read_training(statement)["digest"], WORK)
        network = models.build(run.model, self.spec)
        network.load_state_dict(load_file(weights))
        return _Frozen(network)


class _Frozen(nn.Module):
    """A network that stays in evaluation mode and requires no gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)

    def forward(self, *given: Any) -> Any:
        return self.network(*given)


class TrainingStep(nn.Module):
    """A training step of one's own, named by `training.step`. `training.step_params` are its keyword arguments.

    Attributes:
        logs: names of the values that `step` logs; each is a column `train_<name>`, its mean over the epoch
        metrics: names of the values that `validate` returns, and which is better; each is a column `val_<name>`
        model: the run's model, which is validated, evaluated and exported; averaged if `training.ema_decay` is set
        values: state besides tensors, such as counters: JSON values, equal on all ranks
    """

    logs: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Mapping[str, Literal["lower", "higher"]]] = {"loss": "lower"}

    model: nn.Module
    _is_built = False

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def build(self, setup: Setup) -> None:
        """Create further modules as attributes, and buffers by `register_buffer`. `self.model` exists already.

        Modules that no optimizer trains are frozen: `module.requires_grad_(False)`. They stay in evaluation mode.
        """

    def optimizers(self, setup: Setup) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by name: by default one for the model, with the settings under `optimizer`."""
        return {"model": setup.optimizer(self.model)}

    @abstractmethod
    def step(self, batch: Batch, context: Context) -> torch.Tensor:
        """Train on a batch of inputs and targets; return the loss to show, the mean over its samples.

        Gradients are zero at the start. `optimizer.step()` averages the gradients of its weights over the ranks, checks
        that they are finite, clips them to `training.clip_norm`, and updates the weights.
        """

    def validate(self, batch: Batch, context: Context) -> Mapping[str, torch.Tensor | float]:
        """Return each of `metrics` as the mean over the samples of a validation batch.

        Without this method, the model is validated as in any training of the task.
        """
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor) -> Any:
        """Return the outputs of the model; the validation of the task calls it."""
        return self.model(inputs)

    def example_inputs(self, spec: ModelSpec, samples: int) -> torch.Tensor | None:
        """Return inputs of the model for so many samples if it takes other inputs than the data's, such as noise.

        Such a model cannot be evaluated as one of the task: the metrics of `validate` are its result.
        """
        return None

    @classmethod
    def has_own_inputs(cls) -> bool:
        """Return True if the class defines `example_inputs`."""
        return cls.example_inputs is not TrainingStep.example_inputs

    @classmethod
    def has_own_validation(cls) -> bool:
        """Return True if the class defines `validate`."""
        return cls.validate is not TrainingStep.validate

    @classmethod
    def curves(cls) -> tuple[str, ...]:
        """Return the columns that the class adds to those of the task, or has instead of them."""
        logged = tuple(f"train_{name}" for name in cls.logs)
        return logged + (tuple(f"val_{name}" for name in cls.metrics) if cls.has_own_validation() else ())

    def train(self, mode: bool = True) -> TrainingStep:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        self.training = mode
        for child in self.children():
            weights = list(child.parameters())
            child.train(mode and (not weights or any(weight.requires_grad for weight in weights)))
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_built and name != "training" and name not in self._buffers:
            raise ConfigError(
                f"training.step: {type(self).__name__}.{name} is set after `build`, and no checkpoint would have it: "
                f'keep numbers and text in self.values["{name}"], tensors in a buffer (self.register_buffer)'
            )
        super().__setattr__(name, value)

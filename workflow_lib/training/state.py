"""The state of a training in one process: model, optimizer, averages, progress. `snapshot` lists what is saved.

Between two optimizer steps parameters and moments do not change. A forward pass changes the generators and the buffers,
which are backed up at the start of a step of several micro-batches. So a save at any point can write the last commit:
the state after the last optimizer step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from workflow_lib import models, plan, plugins
from workflow_lib.distributed import parallel
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import capture_rng, derive, seed_everything
from workflow_lib.runtime.torch_internals import foreach_lerp_
from workflow_lib.training import initial_weights, parameter_groups
from workflow_lib.training.activation_checkpointing import recompute_blocks
from workflow_lib.training.hooks import Hooks
from workflow_lib.training.model import build_model, compiled, set_memory_format
from workflow_lib.training.optimizers import build_optimizer
from workflow_lib.training.selection import Plateau
from workflow_lib.training.step import Setup
from workflow_lib.training.step_building import build_step, joined_optimizers, new_step

if TYPE_CHECKING:
    from workflow_lib.data import ModelSpec
    from workflow_lib.metrics.own import Measures
    from workflow_lib.plan import RunConfig

Phase = Literal["train", "validate", "finish"]
EpochMetrics = dict[str, float | None]  # None: a metric of the user that has no finite value
Named = dict[str, torch.Tensor]
Losses = list[tuple[torch.Tensor, int]]  # of the micro-batches of a step: mean loss, number of samples

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def repeats_bits(device: torch.device, determinism: str) -> bool:
    """Return True if two uninterrupted trainings give the same bits; on a GPU not with the fastest kernels.

    With `warn`, they do until an operation without a deterministic kernel is met.
    """
    return device.type == "cpu" or determinism != "standard"


@dataclass
class Cursor:
    """The place in the run: optimizer steps done, and samples of the epoch and validation batches that are used."""

    phase: Phase = "train"
    epoch: int = 0
    step: int = 0
    sample: int = 0
    val_index: int = 0


@dataclass
class Progress:
    """The state besides tensors.

    history      the metrics of each validation
    best         those of the best one
    bad_epochs   validations since ``watched``, the best value of early stopping
    validation   sums of the validation batches that are done
    exact        False once a resume changed the environment, or if the device does not repeat its bits
    """

    cursor: Cursor = field(default_factory=Cursor)
    history: list[EpochMetrics] = field(default_factory=list)
    best: EpochMetrics | None = None
    bad_epochs: int = 0
    watched: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    validation: dict[str, float] = field(default_factory=dict)
    exact: bool = True

    @property
    def steps_since_validation(self) -> int:
        """The steps whose losses are in the loss sum."""
        return self.cursor.step - int((self.history[-1]["step"] if self.history else 0) or 0)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        """Return the progress whose ``dataclasses.asdict`` is the value."""
        fields = dict(value)
        return cls(**{**fields, "cursor": Cursor(**fields["cursor"]), "plateau": Plateau(**fields["plateau"])})


class State:
    """The state that one process holds.

    loss_sum      float64, on the device: sum of this rank's losses since the last validation
    log           float64 [rows, 3]: the rows of `StepLog`; log_sum is the sum of losses since the last one
    best          inference weights of the best validation, on the CPU; only on ranks that save them
    model         the run's model
    step          the user's training step, or None
    module        all that is trained and saved: the model, or the user's step, in which the model is `model`
    logged        float64 [names, 2], on the device: sums and numbers of samples of what the user's step logged
    ema           averaged weights of the model by name in ``module``, or None
    hooks         the user's functions; only on rank 0
    initialised   record of the weights that the model started from, or None
    measures      the metrics of `training.metrics`, or None; only rank 0 adds batches to their state
    environment   fingerprint of the machine and the software
    """

    def __init__(
        self,
        run: RunConfig,
        spec: ModelSpec,
        *,
        ranks: Ranks,
        peers: Peers,
        device: torch.device,
        environment: Mapping[str, Any],
        weights: Mapping[str, Path] | None = None,
        measures: Measures | None = None,
    ) -> None:
        training = run.training
        self.run, self.ranks, self.peers, self.device, self.environment = run, ranks, peers, device, dict(environment)
        self.progress = Progress(exact=repeats_bits(device, training.determinism))
        self.measures = measures
        self.restored_metrics: Named = {}  # tensors of a checkpoint, until `measures` takes them
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.log = torch.zeros((0, 3), dtype=torch.float64)
        self.log_sum = torch.zeros_like(self.loss_sum)
        self.is_logged = training.log_every_steps is not None
        self.best: Named = {}
        self._pre_step_backup: tuple[Named, Named] | None = None  # generators, and tensors that forward passes change
        hooks = training.hooks if ranks.is_main else None
        self.hooks = Hooks(plugins.load_hooks(hooks)) if hooks is not None else None
        seed_everything(derive(run.seed, "initial"))
        weights = weights or {}
        self.step = new_step(training, weights)
        self.model = build_model(run.model, spec, self.step.example_inputs(spec, 2) if self.step is not None else None)
        read = models.read_from_files(self.model)
        versions = {name: weight._version for name, weight in self.model.named_parameters(remove_duplicate=False)}
        # first, since frozen weights that were read from files need not be in the source
        self._frozen_modules = parameter_groups.freeze(self.model, run.model.init.freeze)
        source = weights.get(plan.INIT)
        self.initialised = None if source is None else initial_weights.load(self.model, run.model.init, source)
        # frozen weights as they were read: every process reads them from the same content, so no checkpoint has them
        self._read = {
            name
            for name, weight in self.model.named_parameters(remove_duplicate=False)
            if name in read and not weight.requires_grad and weight._version == versions[name] and self.step is None
        }
        if training.activation_checkpointing:
            recompute_blocks(self.model, device)
        self.module: nn.Module = self.model
        setup = Setup(spec, device, run.optimizer, run.model.init, self.model)
        if self.step is not None:
            build_step(self.step, setup)
            self.module = self.step
            set_memory_format(training.memory_format, self.module)
            self.parallel: parallel.Parallel = parallel.Replicated(self.module, device, 1, None)
        else:
            set_memory_format(training.memory_format, self.module)
            compiling = functools.partial(compiled, is_strict=training.determinism != "standard")
            self.parallel = parallel.build(
                training.parallel, self.model, device, ranks, compiling if training.compile else None
            )
        self._frozen = {
            name: weight
            for name, weight in self.module.named_parameters(remove_duplicate=False)
            if not weight.requires_grad
        }
        self._note_versions()
        # a copy, since the warm-up before the first step changes buffers
        self._initial = {name: value.detach().clone() for name, value in self._without_read().items()}
        self.logged = torch.zeros(
            (len(self.step.logs) if self.step is not None else 0, 2), dtype=torch.float64, device=device
        )
        if self.step is not None:
            self.optimizer: torch.optim.Optimizer = joined_optimizers(self.step, setup)
        else:
            groups = parameter_groups.parameter_groups(run.model.init, self.parallel.names())
            self.optimizer = build_optimizer(run.optimizer, self.model, groups)
        self.parallel.optimized = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.scaler = self.parallel.scaler(enabled=training.precision == "fp16")
        averaged = training.ema_decay is not None
        firsts = {id(p): name for name, p in reversed([*self.parallel.names()])}  # a tied weight has several names
        own = {id(p) for p in self.model.parameters()}
        self._averaged = [p for p in self.parallel.parameters if self.step is None or id(p) in own]
        self.ema = {firsts[id(p)]: p.detach().clone() for p in self._averaged} if averaged else None

    def reset(self) -> None:
        """Set the weights and the generators to those of a new run."""
        self.load(self._initial)
        seed_everything(derive(self.run.seed, "train"), self.ranks.rank)

    def begin(self) -> None:
        """Free the initial weights. Called once, after `reset` or after the state of a checkpoint is restored."""
        self._note_versions()
        del self._initial

    def _note_versions(self) -> None:
        """Remember the versions of frozen weights, which torch increments with each write into a tensor."""
        self._versions = {name: weight._version for name, weight in self._frozen.items()}

    def set_training(self) -> None:
        """Set the model to training mode; modules that are frozen as a whole stay in evaluation mode."""
        parameter_groups.set_training(self.module, self._frozen_modules)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the model computes: in ``training.precision``."""
        dtype = AUTOCAST.get(self.run.training.precision)
        if dtype is None:
            return contextlib.nullcontext()
        # casts that are cached outside of a graph would be missing in its replays
        is_captured = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        return torch.autocast(self.device.type, dtype, cache_enabled=not is_captured)

    @property
    def average_weight(self) -> float:
        """The weight of the new weights in the averages, in the next step."""
        step = self.progress.cursor.step
        # the decay is smaller in the first steps, so that the random initial weights do not remain in the average
        return 1 - min(self.run.training.ema_decay or 0.0, (1 + step) / (10 + step))

    def update_averages(self, weight: float | torch.Tensor) -> None:
        """Move the averages towards the weights after an optimizer step, by `average_weight`."""
        averages, live = list((self.ema or {}).values()), [parameter.detach() for parameter in self._averaged]
        if isinstance(weight, torch.Tensor):
            for average, parameter in zip(averages, live, strict=True):
                average.lerp_(parameter, weight.to(average.dtype))
        else:
            foreach_lerp_(averages, live, weight)

    def add_losses(self, losses: Losses) -> None:
        """Add the losses of a step to the sums."""
        for loss, samples in losses:
            self.loss_sum.add_(loss, alpha=samples)
            if self.is_logged:
                self.log_sum.add_(loss, alpha=samples)

    def logged_means(self, all_gather: Callable[[torch.Tensor], list[torch.Tensor]]) -> dict[str, float]:
        """Return the means of what the user's step logged on all ranks, by column. All ranks call it."""
        if self.step is None or not self.step.logs:
            return {}
        total = torch.stack(all_gather(self.logged.cpu())).sum(0).tolist()
        for name, (_, samples) in zip(self.step.logs, total, strict=True):
            if not samples:
                raise ConfigError(
                    f"training.step: {type(self.step).__name__}.logs has `{name}`, and nothing was logged under it up "
                    f"to step {self.progress.cursor.step}; log it between any two validations, or leave it out"
                )
        return {f"train_{name}": value / samples for name, (value, samples) in zip(self.step.logs, total, strict=True)}

    def inference_weights(self) -> Named:
        """Return the weights and buffers that are validated and exported: averaged weights if there are any."""
        weights = self._without_read()
        if self.ema is not None:
            averages = dict(zip(self._averaged, self.ema.values(), strict=True))
            weights.update({name: averages[p] for name, p in self.parallel.names() if p in averages})
        if self.step is not None:
            prefix = "model."
            weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        return weights

    def back_up(self) -> None:
        """Copy what the forward passes of a step change, so that a save in the step writes the last commit."""
        self._pre_step_backup = capture_rng(self.device), self._copies_of_changing()

    def commit(self, samples: int) -> None:
        """Count a step of ``samples`` samples over all ranks, and drop the backup."""
        self.progress.cursor.step += 1
        self.progress.cursor.sample += samples
        self._pre_step_backup = None

    def generators(self) -> Named:
        """Return the states of all generators as of the last commit."""
        return self._pre_step_backup[0] if self._pre_step_backup else capture_rng(self.device)

    def weights(self) -> Named:
        """Return weights and buffers as of the last commit; those that a forward pass changes are copies."""
        changing = self._pre_step_backup[1] if self._pre_step_backup else self._copies_of_changing()
        return {**self._without_read(), **changing}

    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Copy saved weights and buffers into the model."""
        state = self.parallel.state()
        self._read -= saved.keys()  # these were written before they were saved
        self.parallel.load({**{name: state[name] for name in self._read}, **saved})
        self._note_versions()

    def _without_read(self) -> Named:
        """Return weights and buffers, without frozen weights that were read from files and not written since."""
        is_written = {name for name, weight in self._frozen.items() if weight._version != self._versions[name]}
        left_out = self._read if self.parallel.is_shared else self._read - is_written
        return {name: value for name, value in self.parallel.state().items() if name not in left_out}

    def _copies_of_changing(self) -> Named:
        """Return copies of all that a forward pass may change, made on the main stream before any later work.

        A forward pass changes buffers (statistics of batch norm) and weights that are not trained (a teacher that
        follows the model), and the copies of a save are made while it runs. If the frozen weights are larger than the
        trained ones, they are probably a backbone: each of them is copied only after something was written into it.
        """
        saved = self.module.state_dict().keys()
        changing = dict(self.module.named_buffers(remove_duplicate=False))
        frozen = {} if self.parallel.is_shared else self._frozen
        are_many = _size(frozen.values()) > _size(self.parallel.parameters)
        changing |= {
            name: weight for name, weight in frozen.items() if not are_many or weight._version != self._versions[name]
        }
        return {
            name: tensor.detach().clone()
            for name, tensor in changing.items()
            if name in saved and (name not in self._read or tensor._version != self._versions[name])
        }


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

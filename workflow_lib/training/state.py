"""The state of a run: all that its training has made so far, as a checkpoint keeps it and as a resume gets it back.

    moving     weights, buffers, moments, averages: every step changes them
    resting    best weights, and of each rank its generators and its loss sum: replaced as a whole
    record     everything else, as JSON

Between two optimizer steps parameters and moments do not change. What a forward pass does change, the generators and
the buffers, is set aside at the start of a window of more than one micro-batch. So what is saved is always whole: the
state after the last step that was done.
"""

from __future__ import annotations

import copy
import functools
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from workflow_lib import plugins
from workflow_lib.checkpoint import Snapshot
from workflow_lib.distributed import parallel
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.runtime.seed import capture_rng, derive, restore_rng, seed_everything
from workflow_lib.runtime.torch_internals import unwrapped_step
from workflow_lib.training.activation_checkpointing import recompute_blocks
from workflow_lib.training.hooks import Hooks
from workflow_lib.training.model import build_model, compiled
from workflow_lib.training.optimizers import Plateau, build_optimizer

if TYPE_CHECKING:
    from workflow_lib.data import ModelSpec
    from workflow_lib.plan import RunConfig

logger = logging.getLogger(__name__)

Phase = Literal["train", "validate", "finish"]
Row = dict[str, float]
Named = dict[str, torch.Tensor]
Loaded = tuple[dict[str, Named], dict[str, Any], dict[str, Any]]
"""Of a checkpoint: tensors by group, record, and what is said about it."""


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def repeats_bits(device: torch.device, determinism: str) -> bool:
    """Return True if two uninterrupted trainings give the same bits; on a GPU only with strict determinism."""
    return device.type == "cpu" or determinism == "strict"


@dataclass
class Cursor:
    """Where the run is: optimizer steps done, samples of the epoch used, validation batches done."""

    phase: Phase = "train"
    epoch: int = 0
    step: int = 0
    sample: int = 0
    val_index: int = 0


@dataclass
class Progressing:
    """What the run knows besides its tensors: how far it is, and how good."""

    cursor: Cursor = field(default_factory=Cursor)
    history: list[Row] = field(default_factory=list)
    best: Row | None = None
    bad_epochs: int = 0
    watched: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    validation: dict[str, float] = field(default_factory=dict)
    exact: bool = True

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progressing:
        """The state that ``dataclasses.asdict`` made."""
        fields = dict(value)
        return cls(**{**fields, "cursor": Cursor(**fields["cursor"]), "plateau": Plateau(**fields["plateau"])})


class State:
    """What one process holds of it."""

    def __init__(
        self,
        run: RunConfig,
        spec: ModelSpec,
        *,
        ranks: Ranks,
        peers: Peers,
        device: torch.device,
        environment: Mapping[str, Any],
    ) -> None:
        training = run.training
        self.ranks = ranks
        self._run, self._peers, self._device, self._environment = run, peers, device, dict(environment)
        self.progress = Progressing(exact=repeats_bits(device, training.determinism))
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.best: Named = {}
        self._aside: dict[str, Named] | None = None
        hooks = training.hooks if ranks.is_main else None
        self.hooks = Hooks(plugins.load_hooks(hooks)) if hooks is not None else None
        seed_everything(derive(run.seed, "initial"))
        self.model = build_model(run.model, spec)
        if training.activation_checkpointing:
            recompute_blocks(self.model, device)
        compiling = functools.partial(compiled, is_strict=training.determinism == "strict")
        self.parallel = parallel.build(
            training.parallel, self.model, device, ranks, compiling if training.compile else None
        )
        self._frozen = {
            name: one for name, one in self.model.named_parameters(remove_duplicate=False) if not one.requires_grad
        }
        self._versions = dict.fromkeys(self._frozen, 0)  # torch counts what is written into each tensor
        self._initial = {name: value.detach().clone() for name, value in self.parallel.state().items()}
        self.optimizer = build_optimizer(run.optimizer, self.model, self.parallel.parameters)
        self.scaler = self.parallel.scaler(enabled=training.precision == "fp16")
        averaged = training.ema_decay is not None
        firsts = {id(p): name for name, p in reversed([*self.parallel.names()])}  # a tied weight has several names
        self.ema = {firsts[id(p)]: p.detach().clone() for p in self.parallel.parameters} if averaged else None

    def served(self) -> Named:
        """Weights and buffers that are validated and handed out: averaged ones where there is an average."""
        served = self.parallel.state()
        if self.ema is not None:
            averages = dict(zip(self.parallel.parameters, self.ema.values(), strict=True))
            served.update({name: averages[one] for name, one in self.parallel.names()})
        return served

    # -- a step ---------------------------------------------------------------------------------------------------

    def set_aside(self) -> None:
        """Back up what the forward passes of a step change, so that a save inside it writes the last commit."""
        self._aside = {"rng": capture_rng(self._device), "changing": self._copies_of_changing()}

    def commit(self, samples: int) -> None:
        """The step is done: it counts, and what was set aside before it is gone."""
        self.progress.cursor.step += 1
        self.progress.cursor.sample += samples
        self._aside = None

    # -- saved ----------------------------------------------------------------------------------------------------

    def of_ranks(self) -> list[Named]:
        """Generators and loss sum of every rank, on rank 0; all ranks ask."""
        rng = self._aside["rng"] if self._aside else capture_rng(self._device)
        sys.audit("everstep", "gather")
        return self._peers.gather_tensors({**rng, "loss_sum": self.loss_sum.detach().cpu().clone()})

    def snapshot(self, ranks: list[Named]) -> tuple[Snapshot, parallel.Groups]:
        """What this process saves: the moving tensors with the record, and the resting ones."""
        moving, places = self.parallel.files("moving", self.moving())
        resting, more = self.parallel.files("resting", self._resting(ranks))
        step = self.progress.cursor.step
        return Snapshot(step, moving, self.record(), self._about(), {**places, **more}), resting

    def tensors(self) -> dict[str, Named]:
        """All tensors of this process that a checkpoint keeps, by group: for a look from outside at a commit."""
        rng = capture_rng(self._device)
        return {**self.moving(), "generators": rng, "loss": {"sum": self.loss_sum}}

    def record(self) -> dict[str, Any]:
        """All that a checkpoint keeps besides tensors, as JSON values."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.state_dict()["param_groups"]]
        scaler = self.scaler.state_dict() if self.scaler.is_enabled() else None
        kept = {"hooks": self.hooks.state()} if self.hooks is not None else {}
        return {"progress": asdict(self.progress), "optimizer": groups, "scaler": scaler, **kept}

    def layout(self) -> dict[str, Named]:
        """Return tensors without memory, with the shapes that ``moving`` has after the first step.

        Must be called before ``begin``. The optimizer creates its moments in its first step, so this takes a step with
        zero gradients and a learning rate of zero, and then restores the state of the optimizer.
        """
        fresh = copy.deepcopy(self.optimizer.state_dict())
        for parameter in self.parallel.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        unwrapped_step(self.optimizer)()
        shapes = {
            group: {name: torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
            for group, named in self.moving().items()
        }
        self.optimizer.load_state_dict(fresh)
        self.parallel.zero_grad()
        return shapes

    def _copies_of_changing(self) -> Named:
        """Return copies of all that a forward pass may change, made on the main stream before any later work.

        A forward pass changes buffers (statistics of batch norm) and weights that are not trained (a teacher that
        follows the model), and the copies of a save are made while it runs. Where more weights are frozen than trained
        they are probably a backbone: each of them is copied only after something was written into it.
        """
        saved = self.model.state_dict().keys()
        changing = dict(self.model.named_buffers(remove_duplicate=False))
        frozen = {} if self.parallel.is_shared else self._frozen
        are_many = _size(frozen.values()) > _size(self.parallel.parameters)
        changing |= {name: one for name, one in frozen.items() if not are_many or one._version != self._versions[name]}
        return {name: tensor.detach().clone() for name, tensor in changing.items() if name in saved}

    def moving(self) -> dict[str, Named]:
        """Return what steps change, by group, as of the last commit; tensors that a forward pass changes are copies."""
        changing = self._aside["changing"] if self._aside else self._copies_of_changing()
        optimizer = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if value is not None
        }
        moving = {"model": {**self.parallel.state(), **changing}, "optimizer": optimizer}
        return moving if self.ema is None else {**moving, "ema": self.ema}

    def _resting(self, ranks: list[Named]) -> dict[str, Named]:
        of_ranks = {f"{rank}.{name}": value for rank, values in enumerate(ranks) for name, value in values.items()}
        return {"ranks": of_ranks, **({"best": self.best} if self.best else {})}

    def _about(self) -> dict[str, Any]:
        return {
            "cursor": asdict(self.progress.cursor),
            "exact": self.progress.exact,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "environment": self._environment,
        }

    # -- restored -------------------------------------------------------------------------------------------------

    def begin(self, loaded: Loaded | None) -> None:
        """The state is that of the checkpoint, or of the start; once, since the first weights are then forgotten."""
        if loaded is None:
            self.parallel.load(self._initial)
            seed_everything(derive(self._run.seed, "train"), self.ranks.rank)
        else:
            self._restore(*loaded)
        self._versions = {name: one._version for name, one in self._frozen.items()}
        del self._initial

    def _restore(self, tensors: dict[str, Named], record: dict[str, Any], about: dict[str, Any]) -> None:
        self.progress = Progressing.from_json(record["progress"])
        self.parallel.load(tensors.pop("model"))  # frees the memory once it is copied
        state: dict[int, Named] = {}
        for key, value in tensors.pop("optimizer").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        shapes = self.optimizer.state_dict()["param_groups"]
        groups = [{**kept, "params": now["params"]} for kept, now in zip(record["optimizer"], shapes, strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if record["scaler"] is not None:
            self.scaler.load_state_dict(record["scaler"])
        if self.ema is not None:
            for name, value in tensors["ema"].items():
                self.ema[name].copy_(value)
        self.best = tensors.get("best", {})
        if self.hooks is not None:
            self.hooks.restore(record["hooks"])
        self._restore_ranks(tensors["ranks"], about)

    def _restore_ranks(self, ranks: Named, about: dict[str, Any]) -> None:
        """Generators as they were; with other ranks than before they start anew, and the run is no longer exact."""
        mine = {k.split(".", 1)[1]: v for k, v in ranks.items() if k.split(".", 1)[0] == str(self.ranks.rank)}
        changed = sorted(k for k in self._environment if self._environment[k] != about["environment"].get(k))
        if "world_size" not in changed:
            self.loss_sum.copy_(mine.pop("loss_sum"))
        else:
            total = sum((v for k, v in ranks.items() if k.endswith(".loss_sum")), torch.zeros((), dtype=torch.float64))
            self.loss_sum.copy_(total if self.ranks.is_main else torch.zeros_like(total))
        if changed and self.ranks.is_main:
            logger.warning("not exact from here: %s changed since the checkpoint", ", ".join(changed))
        self.progress.exact = self.progress.exact and not changed
        seed_everything(derive(self._run.seed, "train", self.progress.cursor.step), self.ranks.rank)
        if "world_size" not in changed:
            restore_rng(mine)

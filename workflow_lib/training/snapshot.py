"""Contents of a checkpoint: every part of the training state, with the functions that save and restore it.

    MUTABLE   tensors that an optimizer step changes in place: they are copied before the next step
    STABLE    tensors that are only ever replaced as a whole: a save can write them without a copy
    RECORD    JSON values

The generators and the loss sums of every rank are gathered on rank 0, as the group ``ranks`` of the stable tensors.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from workflow_lib import config
from workflow_lib.checkpoint import Snapshot
from workflow_lib.config.optimization import OwnOptimizer
from workflow_lib.results import steps
from workflow_lib.runtime.seed import capture_rng, derive, restore_rng, seed_everything
from workflow_lib.runtime.torch_internals import unwrapped_step
from workflow_lib.training import optimizer_state
from workflow_lib.training.hooks import json_state
from workflow_lib.training.state import Named, Progress
from workflow_lib.training.step_building import check_equal_values

if TYPE_CHECKING:
    from workflow_lib.training.state import State

logger = logging.getLogger(__name__)

T = TypeVar("T")
VALUES = "values"


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of the state, under its name in a checkpoint; it is not saved while ``has`` is False."""

    name: str
    save: Callable[[State], T]
    restore: Callable[[State, T], None]
    has: Callable[[State], bool] = lambda state: True


def take(state: State, rank_states: list[Named]) -> Snapshot:
    """Return what this process saves: the state as of the last commit. Mutable tensors are shared, not copied."""
    ranks = {f"{rank}.{name}": value for rank, named in enumerate(rank_states) for name, value in named.items()}
    stable_tensors: dict[str, Named] = {**_saved(STABLE, state), "ranks": ranks}
    # "moving" and "resting" are the names of files that checkpoints have had from the start
    mutable, offsets = state.parallel.files("moving", mutable_tensors(state))
    stable, more = state.parallel.files("resting", stable_tensors)
    return Snapshot(
        state.progress.cursor.step,
        {group: dict(named) for group, named in (*mutable.items(), *stable.items())},
        record(state),
        _about(state),
        offsets={**offsets, **more},
        stable=frozenset(stable),
    )


def restore(state: State, snapshot: Snapshot) -> None:
    """Set the state to that of a checkpoint. The tensors are taken out of the snapshot, to free their memory early."""
    for part in (*MUTABLE, *STABLE):
        if part.name in snapshot.tensors:
            part.restore(state, snapshot.tensors.pop(part.name))
    for entry in RECORD:
        if entry.name in snapshot.state:
            entry.restore(state, snapshot.state[entry.name])
    _restore_ranks(state, snapshot.tensors["ranks"], snapshot.about)  # last, since the other parts may draw


def mutable_tensors(state: State) -> dict[str, Named]:
    """Return the tensors that steps change, by group, as of the last commit."""
    return _saved(MUTABLE, state)


def record(state: State) -> dict[str, Any]:
    """Return all that a checkpoint holds besides tensors, as JSON values."""
    return _saved(RECORD, state)


def tensors(state: State) -> dict[str, Named]:
    """Return all tensors of this process that decide how the run continues, by group, at a commit."""
    return {**mutable_tensors(state), "generators": capture_rng(state.device), "loss": _sums(state)}


def shapes_after_a_step(state: State) -> dict[str, Named]:
    """Return tensors without memory, with the shapes that `mutable_tensors` has after the first step of a new run.

    The optimizer creates its moments in its first step. So this takes a step with zero gradients and a learning rate
    of zero, and then restores the optimizer; the weights must be reset afterwards.
    """
    fresh = {name: value.clone() for name, value in optimizer_state.tensors(state.optimizer).items()}
    values, settings = optimizer_state.values(state.optimizer), optimizer_state.settings(state.optimizer)
    for parameter in state.parallel.parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    unwrapped_step(state.optimizer)()
    shapes = {
        group: {name: torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
        for group, named in mutable_tensors(state).items()
    }
    optimizer_state.restore(state.optimizer, fresh, values)
    optimizer_state.restore_settings(state.optimizer, copy.deepcopy(settings))
    state.parallel.zero_grad()
    return shapes


def gather_rank_states(state: State) -> list[Named]:
    """Return the generators and the sums of every rank, on rank 0. A collective: all ranks call it.

    Raises ConfigError on rank 0 if the values of the user's step differ between ranks.
    """
    generators = state.generators()
    sys.audit("everstep", "gather")
    sums = {name: value.detach().cpu().clone() for name, value in _sums(state).items()}
    by_rank = state.peers.gather_tensors({**generators, **sums, **_compared(state)})
    if state.step is not None:
        check_equal_values(state.step, state.progress.cursor.step, [named.pop(VALUES) for named in by_rank])
    return by_rank


def _compared(state: State) -> Named:
    """Return the values of the user's step as bytes of JSON, to be compared between ranks."""
    if state.step is None:
        return {}
    return {VALUES: torch.tensor([*config.canonical(_save_values(state)).encode()], dtype=torch.uint8)}


def _restore_ranks(state: State, ranks: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Restore generators and loss sum. With another number of ranks, seed new generators; rank 0 gets the loss sum."""
    before, now = about["environment"], state.environment
    changed = sorted(key for key in now if now[key] != before.get(key))
    if changed and state.ranks.is_main:
        logger.warning("not exact from here: %s changed since the checkpoint", ", ".join(changed))
    state.progress.exact = state.progress.exact and not changed
    seed_everything(derive(state.run.seed, "train", state.progress.cursor.step), state.ranks.rank)
    if "world_size" not in changed:
        prefix = f"{state.ranks.rank}."
        mine = {key.removeprefix(prefix): value for key, value in ranks.items() if key.startswith(prefix)}
        for name, value in _sums(state).items():
            value.copy_(mine.pop(name))
        restore_rng(mine)
    else:
        for name, value in _sums(state).items():
            total = torch.stack([saved for key, saved in ranks.items() if key.endswith(f".{name}")]).sum(0)
            value.copy_(total if state.ranks.is_main else torch.zeros_like(total))


def _sums(state: State) -> Named:
    """Return the sums of this rank since the last validation, and since the last row of the log, by name."""
    logged = {"logged": state.logged} if len(state.logged) else {}
    return {"loss_sum": state.loss_sum, **logged, **({"log_sum": state.log_sum} if state.is_logged else {})}


def _about(state: State) -> dict[str, Any]:
    return {
        "cursor": asdict(state.progress.cursor),
        "exact": state.progress.exact,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "environment": state.environment,
        **({} if state.initialised is None else {"initialised": state.initialised}),
    }


def _saved(parts: tuple[Part[T], ...], state: State) -> dict[str, T]:
    return {part.name: part.save(state) for part in parts if part.has(state)}


def _save_moments(state: State) -> Named:
    return optimizer_state.tensors(state.optimizer)


def _restore_moments(state: State, saved: Named) -> None:
    optimizer_state.restore(state.optimizer, saved, {})


def _save_optimizer_values(state: State) -> dict[str, Any]:
    return optimizer_state.values(state.optimizer)


def _restore_optimizer_values(state: State, saved: dict[str, Any]) -> None:
    optimizer_state.restore(state.optimizer, optimizer_state.tensors(state.optimizer), saved)


def _save_averages(state: State) -> Named:
    return dict(state.ema or {})


def _restore_averages(state: State, saved: Named) -> None:
    for name, average in (state.ema or {}).items():
        average.copy_(saved[name])


def _save_best(state: State) -> Named:
    return state.best


def _restore_best(state: State, saved: Named) -> None:
    state.best = saved


def _save_log(state: State) -> Named:
    return {steps.TENSOR: state.log}


def _restore_log(state: State, saved: Named) -> None:
    state.log = saved[steps.TENSOR]


def _save_settings(state: State) -> list[dict[str, Any]]:
    return optimizer_state.settings(state.optimizer)


def _restore_settings(state: State, saved: list[dict[str, Any]]) -> None:
    optimizer_state.restore_settings(state.optimizer, saved)


def _save_strides(state: State) -> dict[str, list[int]]:
    return optimizer_state.strides(state.optimizer)


def _restore_strides(state: State, saved: dict[str, list[int]]) -> None:
    optimizer_state.restore_strides(state.optimizer, saved)


def _save_progress(state: State) -> dict[str, Any]:
    return asdict(state.progress)


def _restore_progress(state: State, saved: dict[str, Any]) -> None:
    state.progress = Progress.from_json(saved)


def _save_scaler(state: State) -> dict[str, Any] | None:
    return state.scaler.state_dict() if state.scaler.is_enabled() else None


def _restore_scaler(state: State, saved: dict[str, Any] | None) -> None:
    if saved is not None:
        state.scaler.load_state_dict(saved)


def _save_values(state: State) -> Any:
    return (
        None
        if state.step is None
        else json_state(state.step.values, f"training.step: {type(state.step).__name__}.values holds")
    )


def _restore_values(state: State, saved: Any) -> None:
    if state.step is not None:
        state.step.values.clear()
        state.step.values.update(saved)


def _save_hooks(state: State) -> Any:
    return state.hooks.state() if state.hooks is not None else None


def _restore_hooks(state: State, saved: Any) -> None:
    if state.hooks is not None:
        state.hooks.restore(saved)


def _has_metrics(state: State) -> bool:
    """Return True in a validation with metrics of the user, on rank 0, which holds their state."""
    return state.measures is not None and state.ranks.is_main and state.progress.cursor.phase == "validate"


def _save_metrics(state: State) -> Named:
    return state.measures.save()[0] if state.measures is not None else {}


def _restore_metrics(state: State, saved: Named) -> None:
    state.restored_metrics = saved


def _save_metric_values(state: State) -> dict[str, Any]:
    return state.measures.save()[1] if state.measures is not None else {}


def _restore_metric_values(state: State, saved: dict[str, Any]) -> None:
    if state.measures is not None and state.ranks.is_main:
        state.measures.load(state.restored_metrics, saved)
    state.restored_metrics = {}


MUTABLE: tuple[Part[Named], ...] = (
    Part("model", lambda state: state.weights(), lambda state, saved: state.load(saved)),
    Part("optimizer", _save_moments, _restore_moments),
    Part("ema", _save_averages, _restore_averages, has=lambda state: state.ema is not None),
)
STABLE: tuple[Part[Named], ...] = (
    Part("best", _save_best, _restore_best, has=lambda state: bool(state.best)),
    Part("metrics", _save_metrics, _restore_metrics, has=lambda s: _has_metrics(s) and bool(_save_metrics(s))),
    Part(steps.GROUP, _save_log, _restore_log, has=lambda state: len(state.log) > 0),
)
RECORD: tuple[Part[Any], ...] = (
    Part("progress", _save_progress, _restore_progress),
    Part("optimizer", _save_settings, _restore_settings),
    Part(
        "optimizer_values",
        _save_optimizer_values,
        _restore_optimizer_values,
        has=lambda state: isinstance(state.run.optimizer, OwnOptimizer) or state.step is not None,
    ),
    Part("optimizer_strides", _save_strides, _restore_strides, has=lambda state: bool(_save_strides(state))),
    Part("scaler", _save_scaler, _restore_scaler),
    Part("step", _save_values, _restore_values, has=lambda state: state.step is not None),
    Part("metrics", _save_metric_values, _restore_metric_values, has=_has_metrics),
    Part("hooks", _save_hooks, _restore_hooks, has=lambda state: state.hooks is not None),
)

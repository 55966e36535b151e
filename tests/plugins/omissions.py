"""Bugs that tests plant in the process of an attempt: one kind of state is not restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workflow_lib.checkpoint import Snapshot
from workflow_lib.runtime.seed import capture_rng
from workflow_lib.training import metrics_file, snapshot
from workflow_lib.training.hooks import Hooks
from workflow_lib.training.metrics_file import Curve
from workflow_lib.training.selection import Plateau
from workflow_lib.training.state import State


def without_model() -> None:
    """Weights and buffers stay those of a new model."""
    _restore_instead(model=lambda state, saved: _copies(state.parallel.state()))


def without_buffers() -> None:
    """Running means and variances stay those of a new model."""
    _restore_instead(model=lambda state, saved: {**saved, **_copies(dict(state.model.named_buffers()))})


def without_moments() -> None:
    """The optimizer starts from zero moments."""
    _restore_instead(optimizer=lambda state, saved: {name: one * 0 for name, one in saved.items()})


def without_ema() -> None:
    """The average starts from the weights of a new model."""
    _restore_instead(ema=lambda state, saved: _copies(state.ema))


def without_best_weights() -> None:
    """The best weights are not restored."""
    _after_restoring(lambda state: state.best.clear())


def without_best_metric() -> None:
    """The best metric is not restored."""
    _after_restoring(lambda state: setattr(state.progress, "best", None))


def without_plateau() -> None:
    """Reduce-on-plateau starts again."""
    _after_restoring(lambda state: setattr(state.progress, "plateau", Plateau()))


def without_patience() -> None:
    """Early stopping starts to count again."""

    def forget(state: State) -> None:
        state.progress.watched, state.progress.bad_epochs = None, 0

    _after_restoring(forget)


def without_validation() -> None:
    """The sums of the finished validation batches are not restored."""
    _after_restoring(lambda state: state.progress.validation.update(loss=0.0, correct=0.0))


def without_loss_sum() -> None:
    """The loss sum of this epoch is not restored."""
    _after_restoring(lambda state: state.loss_sum.zero_())


def without_log_sum() -> None:
    """The losses since the last row of the log are not restored."""
    _after_restoring(lambda state: state.log_sum.zero_())


def without_log() -> None:
    """The rows of the log are not restored."""
    _after_restoring(lambda state: setattr(state, "log", state.log[:0]))


def without_logged() -> None:
    """The values that the user's step logged are not restored."""
    _after_restoring(lambda state: state.logged.zero_())


def without_values() -> None:
    """The values of the user's step are not restored."""
    _after_restoring(lambda state: state.step.values.update(generator_steps=0))  # type: ignore[union-attr]


def without_sample() -> None:
    """The last batch is drawn again."""
    _after_restoring(_move_back)


def without_scaler() -> None:
    """The loss scale is not restored."""
    torch.amp.GradScaler.load_state_dict = lambda self, state_dict: None  # type: ignore[method-assign]


def without_hooks() -> None:
    """The state of the user's hooks is not restored."""
    Hooks.restore = lambda self, state: None  # type: ignore[method-assign]


def without_python() -> None:
    """Python's generator is not restored."""
    _restore_generators_but("python")


def without_numpy() -> None:
    """Numpy's generator is not restored."""
    _restore_generators_but("numpy")


def without_torch() -> None:
    """Torch's generator is not restored."""
    _restore_generators_but("torch")


def without_metrics() -> None:
    """Rows are only appended to the metrics file."""

    entered: list[Curve] = []

    def append(self: Curve, history: metrics_file.Rows) -> None:
        if self not in entered:
            entered.append(self)  # the original would repair the file here
            return
        with self._path.open("ab") as file:
            file.write(metrics_file.lines(history[-1:]))

    Curve.write = append  # type: ignore[method-assign]
    Curve.seal = lambda self, history: None  # type: ignore[method-assign]


def without_sealed_metrics() -> None:
    """The metrics file is not synced before the final checkpoint."""
    Curve.seal = lambda self, history: None  # type: ignore[method-assign]


def _restore_instead(**parts: Callable[[State, dict[str, Any]], dict[str, Any]]) -> None:
    restore = snapshot.restore

    def partly(state: State, loaded: Snapshot) -> None:
        loaded.tensors.update({name: part(state, loaded.tensors[name]) for name, part in parts.items()})
        restore(state, loaded)

    snapshot.restore = partly


def _after_restoring(act: Callable[[State], object]) -> None:
    restore = snapshot.restore

    def spoilt(state: State, loaded: Snapshot) -> None:
        restore(state, loaded)
        act(state)

    snapshot.restore = spoilt


def _restore_generators_but(name: str) -> None:
    restore = snapshot.restore_rng

    def partly(state: dict[str, torch.Tensor]) -> None:
        restore({**state, name: capture_rng(torch.device("cpu"))[name]})

    snapshot.restore_rng = partly


def _move_back(state: State) -> None:
    state.progress.cursor.sample -= state.run.training.batch_size


def _copies(tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in (tensors or {}).items()}

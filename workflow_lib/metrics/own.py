"""The metrics of `training.metrics` over the batches of a split, in the order of batches.

Each batch gives a contribution, computed on the rank that has the batch; contributions are added in the order of
batches, on rank 0. So a value does not depend on the number of ranks.

    Merged      a metric of torchmetrics whose states are sums, extremes or lists: the contribution is its state after
                the batch alone. The memory is that of the states, except for lists, which hold numbers of each sample.
    Stepwise    any other class: the contribution is outputs and targets, with which the metric is updated
    Whole       a function of all outputs and targets, which are kept
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

from workflow_lib import plugins
from workflow_lib.config.measures import KNOWN
from workflow_lib.errors import ConfigError
from workflow_lib.metrics.kept import put_together, take_apart
from workflow_lib.plugins.objects import parameters

if TYPE_CHECKING:
    from workflow_lib.config.measures import Metric
    from workflow_lib.data import Manifest, ModelSpec

Named = dict[str, torch.Tensor]
Reduction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

REDUCTIONS: dict[Any, Reduction] = {dim_zero_sum: torch.add, dim_zero_max: torch.maximum, dim_zero_min: torch.minimum}


class Measure(ABC):
    """One metric over the batches of a split; `name` is that in messages."""

    name: str
    is_large: bool  # True if a contribution is as large as the outputs

    @abstractmethod
    def contribution(self, outputs: torch.Tensor, targets: torch.Tensor) -> Named | None:
        """Return what a batch adds, on the device of its outputs; None for its outputs and targets."""

    @abstractmethod
    def add(self, contribution: Named) -> None:
        """Add the contribution of the next batch."""

    @abstractmethod
    def compute(self) -> Any:
        """Return the value over all batches so far."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    @abstractmethod
    def state(self) -> Any:
        """Return the state: nested mappings and lists of tensors and JSON values, which nothing changes afterwards."""

    @abstractmethod
    def load(self, state: Any) -> None:
        """Set the state."""

    def value(self) -> float:
        """Return the value as a number; several, such as one of each class, are averaged. NaN if there is none."""
        with plugins.user_code_errors(f"training.metrics: {self.name}: compute"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes that a split lacks: the value says it
            found = self.compute()
        if isinstance(found, torch.Tensor) and found.numel() and not found.is_complex():
            return float(found.double().mean())
        if isinstance(found, bool) or not isinstance(found, int | float):
            given = f"a tensor {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            raise ConfigError(
                f"training.metrics: {self.name} computes {given}; allowed: a number, or a tensor of numbers, which are "
                f"averaged"
            )
        return float(found)


@final
class Merged(Measure):
    """A metric of torchmetrics whose states can be merged."""

    def __init__(self, name: str, metric: TorchMetric) -> None:
        self.name, self._metric = name, metric
        self._reductions: dict[str, Any] = reductions(metric)
        self.is_large = dim_zero_cat in self._reductions.values()
        self.reset()

    def reset(self) -> None:
        self._metric.reset()
        self._state = _copied(self._metric)

    def contribution(self, outputs: torch.Tensor, targets: torch.Tensor) -> Named:
        metric = self._metric.to(outputs.device)
        metric.reset()
        _update(self.name, metric, outputs, targets)
        named: Named = {}
        for name, value in metric.metric_state.items():
            if isinstance(value, list):
                # a copy, since states of several metrics may be the outputs themselves
                named.update({f"{name}.{index}": item.clone() for index, item in enumerate(value)})
            else:
                named[name] = value.clone()
        return named

    def add(self, contribution: Named) -> None:
        for name, reduction in self._reductions.items():
            mine = self._state[name]
            if isinstance(mine, list):
                found = [key for key in contribution if key.partition(".")[0] == name and "." in key]
                mine.extend(contribution[f"{name}.{index}"] for index in range(len(found)))
            elif reduction is dim_zero_cat:
                self._state[name] = torch.cat([mine, contribution[name]])
            else:
                self._state[name] = REDUCTIONS[reduction](mine, contribution[name])

    def compute(self) -> Any:
        metric = self._metric.to("cpu")
        for name, value in self._state.items():
            setattr(metric, name, copy.copy(value))
        return type(metric).compute(metric)

    def state(self) -> dict[str, Any]:
        return dict(self._state)

    def load(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)


@final
class Stepwise(Measure):
    """A metric that is updated with the outputs of one batch after another."""

    is_large = True

    def __init__(self, name: str, build: Callable[[], Any]) -> None:
        self.name, self._build = name, build
        self.reset()

    def reset(self) -> None:
        with plugins.user_code_errors(f"training.metrics: {self.name}"):
            self._metric = self._build()

    def contribution(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        return None

    def add(self, contribution: Named) -> None:
        _update(self.name, self._metric, contribution["outputs"], contribution["targets"])

    def compute(self) -> Any:
        return type(self._metric).compute(self._metric)

    def state(self) -> Any:
        if isinstance(self._metric, TorchMetric):
            return _copied(self._metric)
        with plugins.user_code_errors(f"training.metrics: {self.name}: state_dict"):
            return copy.deepcopy(self._metric.state_dict())

    def load(self, state: Any) -> None:
        if isinstance(self._metric, TorchMetric):
            for name, value in state.items():
                setattr(self._metric, name, value)
            return
        with plugins.user_code_errors(f"training.metrics: {self.name}: load_state_dict"):
            self._metric.load_state_dict(state)


@final
class Whole(Measure):
    """A function of all outputs and targets of the split."""

    is_large = True

    def __init__(self, name: str, function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        self.name, self._function = name, function
        self.reset()

    def reset(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {"outputs": [], "targets": []}

    def contribution(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        return None

    def add(self, contribution: Named) -> None:
        for name, part in self._parts.items():
            part.append(contribution[name])

    def compute(self) -> Any:
        return self._function(torch.cat(self._parts["outputs"]), torch.cat(self._parts["targets"]))

    def state(self) -> dict[str, list[torch.Tensor]]:
        return {name: list(part) for name, part in self._parts.items()}

    def load(self, state: Mapping[str, list[torch.Tensor]]) -> None:
        self._parts = {name: list(part) for name, part in state.items()}


class Measures:
    """The metrics of a run over the batches of a split.

    They compare what the field does: probabilities with classes or labels, numbers in the units of the data, logits of
    tokens.
    """

    def __init__(
        self, sections: Sequence[Metric], spec: ModelSpec, mean: Sequence[float] = (0,), std: Sequence[float] = (1,)
    ) -> None:
        self._targets = plugins.task_facts(spec.task).targets
        self._measures = {section.label: build(section, self._targets, spec.outputs) for section in sections}
        self._flattens = {section.label for section in sections if self._targets == "tokens" and is_flat(section)}
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)

    @classmethod
    def of(cls, sections: Sequence[Metric], manifest: Manifest) -> Measures:
        """Return the metrics for data that is prepared."""
        return cls(sections, manifest.spec, manifest.target_mean, manifest.target_std)

    def compared(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the metrics compare, from outputs in float32 and targets of a batch."""
        if self._targets in ("classes", "masks"):
            return outputs.softmax(1), targets
        if self._targets == "labels":
            return outputs.sigmoid(), targets
        if self._targets == "numbers":
            mean, std = self._mean.to(outputs), self._std.to(outputs)
            pair = outputs * std + mean, targets.view_as(outputs) * std + mean
            return (pair[0].squeeze(1), pair[1].squeeze(1)) if outputs.shape[1] == 1 else pair
        return outputs, targets

    @property
    def are_large(self) -> bool:
        """True if the contributions of some metric are as large as the outputs."""
        return any(measure.is_large for measure in self._measures.values())

    def reset(self) -> None:
        """Forget all batches."""
        for measure in self._measures.values():
            measure.reset()

    def contribution(self, outputs: torch.Tensor, targets: torch.Tensor) -> Named:
        """Return what a batch adds to all metrics, from outputs in float32."""
        named: Named = {}
        outputs, targets = self.compared(outputs, targets)
        for label, measure in self._measures.items():
            pair = (outputs, targets)
            if label in self._flattens:
                pair = outputs.flatten(0, 1), targets.flatten()
            if (part := measure.contribution(*pair)) is None:
                named |= {"outputs": outputs, "targets": targets}
            else:
                named |= {f"{label}/{key}": value for key, value in part.items()}
        return named

    def add(self, contribution: Named) -> None:
        """Add the contribution of the next batch, which may have been computed in inference mode."""
        with torch.inference_mode(False), torch.no_grad():
            for label, measure in self._measures.items():
                start = f"{label}/" if isinstance(measure, Merged) else ""
                mine = {
                    key.removeprefix(start): value.to("cpu", copy=True)
                    for key, value in contribution.items()
                    if (key.startswith(start) if start else key in ("outputs", "targets"))
                }
                measure.add(mine)

    def values(self) -> dict[str, float | None]:
        """Return the value of each metric by its label; None if it has no finite value."""
        with torch.inference_mode(False), torch.no_grad():
            found = {label: measure.value() for label, measure in self._measures.items()}
        return {label: value if math.isfinite(value) else None for label, value in found.items()}

    def save(self) -> tuple[Named, dict[str, Any]]:
        """Return the state of all metrics as tensors and JSON values."""
        tensors: Named = {}
        rest = {
            label: take_apart(measure.state(), label, tensors, f"training.metrics: {measure.name}: state_dict")
            for label, measure in self._measures.items()
        }
        return tensors, rest

    def load(self, tensors: Named, rest: Mapping[str, Any]) -> None:
        """Set the state of all metrics."""
        for label, measure in self._measures.items():
            measure.load(put_together(rest[label], tensors))


def build(section: Metric, targets: str, outputs: int) -> Measure:
    """Return the metric for targets of this kind and a model with so many outputs. Raises ConfigError if it cannot."""
    path, given = section.target(targets)
    found = plugins.load_object("metric", path)
    named = parameters(found) or {}
    filled = {"numbers": "num_outputs", "labels": "num_labels"}.get(targets, "num_classes")
    given = {**({filled: outputs} if filled in named else {}), **given}
    if not inspect.isclass(found):
        return Whole(section.name, functools.partial(found, **given))
    make = functools.partial(found, **given)
    with plugins.user_code_errors(f"training.metrics: {section.name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of states that hold numbers of each sample: the pages say it
        made = make()
    if not isinstance(made, TorchMetric):
        return Stepwise(section.name, make)
    if any(isinstance(inner, TorchMetric) for inner in made.modules() if inner is not made):
        raise ConfigError(f"training.metrics: {section.name} wraps other metrics; name each of them by itself")
    return Merged(section.name, made) if is_mergeable(made) else Stepwise(section.name, make)


def is_mergeable(metric: TorchMetric) -> bool:
    """Return True if the state over several batches is the reduction of those of each batch."""
    known = {*REDUCTIONS, dim_zero_cat}
    return not metric.full_state_update and all(each in known for each in reductions(metric).values())


def reductions(metric: TorchMetric) -> dict[str, Any]:
    """Return the function that merges each state of the metric; torchmetrics has no public name for them."""
    found: dict[str, Any] = metric._reductions
    return found


def is_flat(section: Metric) -> bool:
    """Return True if a metric of tokens takes each token as a sample: all of the short names but perplexity."""
    return section.name in KNOWN and section.name != "perplexity"


def _copied(metric: TorchMetric) -> dict[str, Any]:
    """Return the states of the metric on the CPU: copies of tensors, since an update may change them in place."""
    return {
        name: [item.cpu() for item in value] if isinstance(value, list) else value.detach().to("cpu", copy=True)
        for name, value in metric.metric_state.items()
    }


def _update(name: str, metric: Any, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Update the metric; of torchmetrics without its wrapper, which counts and caches for its own exchange of ranks."""
    with plugins.user_code_errors(f"training.metrics: {name}: update"):
        type(metric).update(metric, outputs, targets)

"""Metrics of the validation and the test that the user adds to those of the task: `training.metrics`.

A metric is one of the short names here, or the import path of a class of torchmetrics, of your own, or a function.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.config.by_path import check_arguments, first_arguments, loaded
from workflow_lib.config.step import step_class
from workflow_lib.plugins import Section
from workflow_lib.plugins.objects import parameters
from workflow_lib.text import joined, nearest

if TYPE_CHECKING:
    from workflow_lib.config.run import Training

# arguments that are filled in from the data if a metric has them and the user does not set them
FILLED = ("num_classes", "num_labels", "num_outputs")
IGNORED = 255  # class of the pixels of a mask that are not counted, as in workflow_lib.data
OWN_LOSS = "own_loss"  # name of `training.loss` among the metrics of the test split
METHODS = ("update", "compute", "state_dict", "load_state_dict")  # that a class of the user needs


@dataclass(frozen=True)
class Known:
    """A short name: its direction, and by kind of targets the class and its arguments."""

    maximize: bool
    classes: Mapping[str, tuple[str, Mapping[str, Any]]]


def _known(maximize: bool, **classes: tuple[str, Mapping[str, Any]]) -> Known:
    return Known(maximize, classes)


def _of(name: str, **arguments: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the class for samples of one class and, with its own name, for those of any number of labels."""
    return {
        kind: (f"torchmetrics.classification:{prefix}{name}", arguments)
        for kind, prefix in (("classes", "Multiclass"), ("labels", "Multilabel"))
    }


def _numbers(name: str, **arguments: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {"numbers": (f"torchmetrics.regression:{name}", arguments)}


def _masks(name: str, **arguments: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {"masks": (f"torchmetrics.classification:Multiclass{name}", {"ignore_index": IGNORED, **arguments})}


def _only(kind: str, metrics: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {kind: metrics[kind]}


MACRO, MICRO, WEIGHTED = {"average": "macro"}, {"average": "micro"}, {"average": "weighted"}
TOP5 = {"top_k": 5, "average": "micro"}

KNOWN: dict[str, Known] = {
    "f1_macro": _known(True, **_of("F1Score", **MACRO), **_masks("F1Score", **MACRO)),
    "f1_micro": _known(True, **_of("F1Score", **MICRO), **_masks("F1Score", **MICRO)),
    "f1_weighted": _known(True, **_of("F1Score", **WEIGHTED), **_masks("F1Score", **WEIGHTED)),
    "precision": _known(True, **_of("Precision", **MACRO), **_masks("Precision", **MACRO)),
    "recall": _known(True, **_of("Recall", **MACRO), **_masks("Recall", **MACRO)),
    "specificity": _known(True, **_of("Specificity", **MACRO), **_masks("Specificity", **MACRO)),
    "accuracy_balanced": _known(True, **_only("classes", _of("Accuracy", **MACRO)), **_masks("Accuracy", **MACRO)),
    "accuracy_top5": _known(
        True,
        **_only("classes", _of("Accuracy", **TOP5)),
        tokens=("torchmetrics.classification:MulticlassAccuracy", TOP5),
    ),
    "auroc": _known(True, **_of("AUROC", **MACRO)),
    "average_precision": _known(True, **_of("AveragePrecision", **MACRO)),
    "cohen_kappa": _known(True, **_only("classes", _of("CohenKappa"))),
    "matthews": _known(True, **_of("MatthewsCorrCoef")),
    "calibration_error": _known(False, **_only("classes", _of("CalibrationError"))),
    "hamming": _known(False, **_only("labels", _of("HammingDistance", **MICRO))),
    "exact_match": _known(True, **_only("labels", _of("ExactMatch"))),
    "ranking_loss": _known(False, **_only("labels", _of("RankingLoss"))),
    "iou": _known(True, **_of("JaccardIndex", **MACRO), **_masks("JaccardIndex", **MACRO)),
    "dice": _known(True, **_masks("F1Score", **MACRO)),
    "r2": _known(True, **_numbers("R2Score")),
    "mse": _known(False, **_numbers("MeanSquaredError")),
    "rmse": _known(False, **_numbers("MeanSquaredError", squared=False)),
    "mape": _known(False, **_numbers("MeanAbsolutePercentageError")),
    "smape": _known(False, **_numbers("SymmetricMeanAbsolutePercentageError")),
    "pearson": _known(True, **_numbers("PearsonCorrCoef")),
    "spearman": _known(True, **_numbers("SpearmanCorrCoef")),
    "concordance": _known(True, **_numbers("ConcordanceCorrCoef")),
    "explained_variance": _known(True, **_numbers("ExplainedVariance")),
    "perplexity": _known(False, tokens=("torchmetrics.text:Perplexity", {})),
}


def names_for(targets: str) -> list[str]:
    """Return the short names of metrics for targets of this kind."""
    return [name for name, known in KNOWN.items() if targets in known.classes]


class Metric(Section):
    """A metric of the validation and the test. In short: its name, or `{NAME: {argument: value}}`."""

    name: str = Field(description="short name, or import path of a class of torchmetrics, of your own, or a function")
    params: dict[str, Any] = Field({}, description="arguments of the metric, by name")
    label: str = Field(
        "",
        pattern=r"^([a-z][a-z0-9_]*)?$",
        description="name in results: val_<label> in the curves; empty takes it from the name",
    )
    maximize: bool | None = Field(
        None, description="true if a larger value is better; null asks the metric (higher_is_better)"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and not value.keys() & cls.model_fields.keys():
            name, params = next(iter(value.items()))
            return {"name": name, "params": {} if params is None else params}
        return value

    @model_validator(mode="after")
    def _fill_in(self) -> Metric:
        known = KNOWN.get(self.name)
        if known is None and not plugins.is_object_path(self.name):
            raise PydanticCustomError(
                "arguments",
                "{message}",
                {"message": joined(f"no metric `{self.name}`{nearest(self.name, KNOWN)}", ALLOWED)},
            )
        maximize = self._direction() if known is None else known.maximize if self.maximize is None else self.maximize
        if known is not None and self.params:
            for target, arguments in known.classes.values():
                self._check(target, loaded("metric", target), (*arguments, *self._filled()))
        filled = {"label": self.label or label_of(self.name), "maximize": maximize}
        for name, found in filled.items():  # the section is frozen for all others
            object.__setattr__(self, name, found)
        return self

    def _check(self, target: str, found: Any, provided: Collection[str]) -> None:
        """Check the arguments. Classes of torchmetrics also take any others, to reject them when they are made."""
        check_arguments(target, found, self.params, provided)
        known = parameters(found) or {}
        if target.startswith("torchmetrics.") and (wrong := [name for name in self.params if name not in known]):
            message = (
                f"{target}: `{wrong[0]}` is no argument of it{nearest(wrong[0], known)} (arguments:"
                f" {', '.join(name for name in known if name not in (*provided, 'kwargs'))})"
            )
            raise PydanticCustomError("arguments", "{message}", {"message": message})

    def _filled(self) -> list[str]:
        return [name for name in FILLED if name not in self.params]

    def _direction(self) -> bool:
        """Check the class or function at the path; return True if a larger value is better."""
        found = loaded("metric", self.name)
        if inspect.isclass(found):
            self._check(self.name, found, self._filled())
            if lacking := [method for method in METHODS if not callable(getattr(found, method, None))]:
                message = (
                    f"{self.name} has no {', '.join(f'`{method}`' for method in lacking)}; a metric is a "
                    f"torchmetrics.Metric, a class with {', '.join(METHODS)}, or a function (outputs, targets)"
                )
                raise PydanticCustomError("arguments", "{message}", {"message": message})
        else:
            check_arguments(self.name, found, self.params, (*first_arguments(found, 2), *self._filled()))
        given = getattr(found, "higher_is_better", None) if self.maximize is None else self.maximize
        if not isinstance(given, bool):
            message = f"{self.name} does not say whether a larger value is better; write maximize: true or false"
            raise PydanticCustomError("arguments", "{message}", {"message": f"{message} beside its name"})
        return given

    def target(self, targets: str) -> tuple[str, dict[str, Any]]:
        """Return import path and arguments for targets of this kind."""
        if self.name not in KNOWN:
            return self.name, self.params
        path, arguments = KNOWN[self.name].classes[targets]
        return path, {**arguments, **self.params}

    @property
    def is_of_torchmetrics(self) -> bool:
        """True if the code of the metric is that of torchmetrics."""
        return self.name in KNOWN or self.name.startswith("torchmetrics.")

    @property
    def curve(self) -> str:
        """The name of the metric in the history."""
        return f"val_{self.label}"

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """Return the schema of all three forms."""
        short = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": {"type": "object"}}
        return {"anyOf": [{"type": "string"}, handler(core), short]}


def label_of(name: str) -> str:
    """Return the label of a metric: its short name, or the name of the class or function in snake case."""
    last = name.rpartition(":")[2].rpartition(".")[2]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", last)
    return words.strip("_").lower()


def repeated(metrics: Sequence[Metric]) -> str | None:
    """Return a label that two metrics have, or None."""
    labels = [metric.label for metric in metrics]
    return next((label for label in labels if labels.count(label) > 1), None)


def maximized(training: Training) -> list[str]:
    """Return the metrics besides those of the task of which a larger value is better."""
    own = [metric.curve for metric in training.metrics if metric.maximize]
    if training.step is not None and (step := step_class(training.step)).has_own_validation():
        own += [f"val_{name}" for name, better in step.metrics.items() if better == "higher"]
    return own


ALLOWED = f"allowed: {', '.join(KNOWN)}, or an import path: torchmetrics.module:Name, mypackage.module:Name"

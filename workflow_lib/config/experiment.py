"""The whole file that a person writes: a class a section, a field a setting, with default, bounds and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, Tag, field_validator

from workflow_lib import plugins
from workflow_lib.config.run import (
    MOST,
    AdamW,
    Augment,
    Constant,
    Data,
    Metric,
    Model,
    Optimizer,
    Schedule,
    Training,
    variant,
)
from workflow_lib.config.yaml import Origins
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import NOT_IDENTITY

Points = list[dict[str, Any]]
Axes = dict[str, Annotated[list[Any], Field(min_length=1)]]

YEAR_S = 31_536_000.0
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_WORDS = {"allowed": "1 to 64 of: letters, digits, and, not first, _ . -"}


class Checkpoint(Section):
    """When the state is saved, and how much is kept."""

    interval_s: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="seconds between saves; auto chooses from the measured cost and mtbf_s"
    )
    interval_steps: int | None = Field(None, ge=1, description="optimizer steps between saves, in place of interval_s")
    mtbf_s: float = Field(14400.0, gt=0, description="expected time between failures of the machines, in seconds")
    keep_last: int = Field(2, ge=1, le=MOST, description="newest checkpoints kept")
    keep_every_h: float | None = Field(
        None, gt=0, description="one more is kept for each so many hours; null keeps none"
    )
    max_stalled_attempts: int = Field(3, ge=1, description="attempts in a row without a new step before giving up")


class Runtime(Section):
    """The machine: no part of a run's identity. Equal bits need as many processes on the same kind of device."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where to train; auto uses an NVIDIA GPU if there is one, else the CPU",
        json_schema_extra={"allowed": "auto, cpu, cuda, or cuda:N (on a Mac: auto or cpu)"},
    )
    nproc: int = Field(1, ge=1, le=1024, description="training processes on each node")
    nodes: int = Field(1, ge=1, le=MOST, description="nodes")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of each process")
    workers: int = Field(
        2,
        ge=0,
        le=1024,
        description="threads of each process that read data ahead, where it is not in memory; 0 reads in turn",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what the log shows")
    lease_timeout_s: float = Field(
        60.0, gt=0, le=YEAR_S, description="seconds without a heartbeat before an owner counts as dead"
    )
    lease_wait_s: float = Field(
        30.0, ge=0, le=YEAR_S, description="seconds to wait for a run that another process owns"
    )
    hang_timeout_s: float = Field(
        600.0, gt=0, le=YEAR_S, description="seconds without progress before a rank counts as hung"
    )


class Sweep(Section):
    """Many runs: grid x zip x list, less exclude. Names are dotted, as in optimizer.lr."""

    grid: Axes = Field(
        {},
        description="every combination of the values of these settings",
        examples=[{"training.label_smoothing": [0.0, 0.1], "seed": [0, 1]}],
    )
    zip: Axes = Field(
        {},
        description="values taken side by side: the first of each, the second of each, ...",
        examples=[{"training.batch_size": [32, 64], "training.epochs": [10, 20]}],
    )
    list: Points = Field(
        [],
        description="points written out, each a mapping of settings",
        examples=[[{"model.name": "mlp"}, {"model.name": "cnn", "training.clip_norm": 1.0}]],
    )
    exclude: Points = Field(
        [],
        description="points to leave out: those with all the values of a mapping",
        examples=[[{"training.label_smoothing": 0.1, "seed": 1}]],
    )

    @field_validator("grid", "zip", "list", "exclude", mode="after")
    @classmethod
    def _in_one_order(cls, value: Any) -> Any:
        """The points and the names of runs do not depend on the order in which keys are written."""
        return sorted_keys(value)


def sorted_keys(value: Any) -> Any:
    """The value with the keys of every mapping in it sorted, as in a frozen file."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value, key=str)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


class _Range(Section):
    log: bool = Field(False, description="draw on a logarithmic scale")


class FloatSpace(_Range):
    """Numbers between two bounds."""

    type: Literal["float"] = Field("float", description="float, int or categorical")
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    step: float | None = Field(None, gt=0, description="distance between values")


class IntSpace(_Range):
    """Whole numbers between two bounds."""

    type: Literal["int"] = Field(description="float, int or categorical")
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")
    step: int = Field(1, ge=1, description="distance between values")


class CategoricalSpace(Section):
    """One of some values."""

    type: Literal["categorical"] = Field(description="float, int or categorical")
    choices: Annotated[list[str | int | float | bool | None], Field(min_length=1)] = Field(description="the values")


Space = Annotated[
    Annotated[FloatSpace, Tag("float")]
    | Annotated[IntSpace, Tag("int")]
    | Annotated[CategoricalSpace, Tag("categorical")],
    variant("type", "float"),
]


class Tune(Section):
    """A study: trials suggested one after the other from the results of earlier ones."""

    name: str = Field(
        "study", pattern=NAME, description="name of the study, for people", json_schema_extra=NOT_IDENTITY | NAME_WORDS
    )
    trials: int = Field(
        20, ge=1, le=100_000, description="trials in all; more can be added later", json_schema_extra=NOT_IDENTITY
    )
    window: int = Field(2, ge=1, description="trials that may run at once")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the suggestions")
    metric: Metric | None = Field(
        None,
        description="what the study improves (accuracy: higher, all else: lower); null takes val_accuracy, or val_loss"
        " where the task has none",
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="how values are suggested")
    pruner: Literal["none", "median"] = Field("none", description="median ends trials worse than half of the others")
    warmup_epochs: int = Field(1, ge=0, description="epochs before a trial can be pruned")
    min_trials: int = Field(5, ge=1, description="finished trials before tpe leaves random search and median prunes")
    space: dict[str, Space] = Field(
        min_length=1,
        description="what is tuned: dotted names, each with a type and its low and high or its choices",
        examples=[
            {
                "optimizer.lr": {"type": "float", "low": 0.0001, "high": 0.01, "log": True},
                "optimizer.weight_decay": {"type": "categorical", "choices": [0.0, 0.01]},
            }
        ],
    )
    set: dict[str, Any] = Field(
        {},
        description="settings of the trials that the best run does not keep, such as fewer epochs",
        examples=[{"training.epochs": 5}],
    )


class Evaluate(Section):
    """The final test."""

    bootstrap: int = Field(1000, ge=0, le=MOST, description="resamples for the intervals; 0 makes none")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    batch_size: int = Field(256, ge=1, le=MOST, description="samples in one forward pass")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the resamples")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where to evaluate; auto uses a GPU only if one is free, else the CPU",
        json_schema_extra=NOT_IDENTITY | {"allowed": "auto, cpu, cuda, or cuda:N"},
    )


class Export(Section):
    """The ONNX model and its check against torch."""

    # What onnxscript's version converter reaches; below it, the exporter would write 18 and say nothing.
    opset: int | None = Field(18, ge=18, le=25, description="ONNX opset; null takes the exporter's newest")
    batch_sizes: list[Annotated[int, Field(ge=1, le=MOST)]] = Field(
        [1, 2, 7], min_length=1, description="batch sizes checked"
    )
    max_batch: int = Field(
        256, ge=1, le=MOST, description="the largest batch checked, as far as the test split has samples"
    )
    atol: float = Field(1e-4, ge=0, description="absolute tolerance of the check")
    rtol: float = Field(1e-3, ge=0, description="relative tolerance of the check")


class Report(Section):
    """The report."""

    title: str | None = Field(None, description="title; null takes the experiment's name")
    theme: Literal["light", "dark", "auto"] = Field("auto", description="colours; auto follows the reader's browser")


if TYPE_CHECKING:
    Tracker = str
else:  # the names are those of the files in workflow_lib/trackers
    Tracker = Literal[tuple(plugins.available("trackers"))]


class Tracking(Section):
    """Copies of the curves for other tools, made by a process of its own."""

    to: list[Tracker] = Field([], description="the tools, each an extra of the package; none: no copies")
    folder: Path = Field(Path("tracking"), description="where the copies lie, those of all experiments together")
    every_s: float = Field(
        10.0,
        gt=0,
        le=YEAR_S,
        description="seconds between two looks at the store, with --follow",
        json_schema_extra=NOT_IDENTITY,
    )


class Experiment(Section):
    """The whole file: one training, or a sweep and a study around it."""

    name: str = Field(
        pattern=NAME,
        description="name of the experiment and its folder in results/",
        json_schema_extra=NOT_IDENTITY | NAME_WORDS,
    )
    labels: dict[str, str] = Field(
        {},
        description="notes for people: any name, any text",
        examples=[{"project": "digits"}],
        json_schema_extra=NOT_IDENTITY,
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of weights, order and everything else random in the training"
    )
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    optimizer: Optimizer = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Constant)
    training: Training = Field(default_factory=Training)
    augment: Augment = Field(default_factory=Augment)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, json_schema_extra=NOT_IDENTITY)
    runtime: Runtime = Field(default_factory=Runtime, json_schema_extra=NOT_IDENTITY)
    sweep: Sweep = Field(default_factory=Sweep, json_schema_extra=NOT_IDENTITY)
    tune: Tune | None = Field(None, description="null has no study", json_schema_extra=NOT_IDENTITY)
    evaluate: Evaluate = Field(default_factory=Evaluate, json_schema_extra=NOT_IDENTITY)
    export: Export = Field(default_factory=Export, json_schema_extra=NOT_IDENTITY)
    report: Report = Field(default_factory=Report, json_schema_extra=NOT_IDENTITY)
    tracking: Tracking = Field(default_factory=Tracking, json_schema_extra=NOT_IDENTITY)

    _origins: Origins = PrivateAttr(Origins())

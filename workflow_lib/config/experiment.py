"""The experiment file: a class for each section, a field for each setting, with default, bounds and description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, Tag, field_validator

from workflow_lib.config.notify import Notify
from workflow_lib.config.optimization import AdamW, Constant, Optimizer, Schedule, variant
from workflow_lib.config.registry import NAME, NAME_ALLOWED, Registry
from workflow_lib.config.run import MOST, MOST_FOLDS, YEAR_S, Augment, Data, Model, Training
from workflow_lib.config.tracking import Tracking
from workflow_lib.config.yaml import Origins
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import ADDED, NOT_IDENTITY

Points = list[dict[str, Any]]
Axes = dict[str, Annotated[list[Any], Field(min_length=1)]]

MOST_SEEDS = 1000


class Checkpoint(Section):
    """Checkpoints: how often they are saved, and how many are kept."""

    interval_s: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="seconds between checkpoints; auto chooses by the measured cost of one and mtbf_s"
    )
    interval_steps: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints, instead of interval_s"
    )
    mtbf_s: float = Field(14400.0, gt=0, description="expected time between failures of the machine, in seconds")
    keep_last: int = Field(2, ge=1, le=MOST, description="number of newest checkpoints that are kept")
    keep_every_h: float | None = Field(
        None, gt=0, description="also keep one checkpoint for each period of this many hours; null keeps none"
    )
    max_stalled_attempts: int = Field(
        3, ge=1, description="consecutive attempts without a new step before the run fails"
    )


class Runtime(Section):
    """The machine. Not part of a run's identity; equal bits need the same number of processes and kind of device."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="device to train on; auto uses an NVIDIA GPU if there is one, else the CPU",
        json_schema_extra={"allowed": "auto, cpu, cuda, or cuda:N (on a Mac: auto or cpu)"},
    )
    nproc: int = Field(1, ge=1, le=1024, description="training processes per node")
    nodes: int = Field(1, ge=1, le=MOST, description="number of nodes")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads per process")
    workers: int = Field(
        2,
        ge=0,
        le=1024,
        description="threads per process that prefetch data that is not in memory; 0 does not prefetch",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "off",
        description="compute whole steps as CUDA graphs: auto does where it gives the same bits, on requires it."
        " Not tested on a GPU yet",
        json_schema_extra=ADDED,
    )
    pack: Annotated[int, Field(ge=1, le=MOST)] | Literal["auto"] = Field(
        1,
        description="most runs that one job trains in forks of a warm process, as many at once as it has threads"
        " and a GPU's memory holds; 1 trains each run in its own job, and auto packs up to 64 where packs are possible"
        " (docs/workflow.md)",
        json_schema_extra=ADDED,
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level of messages in the log"
    )
    lease_timeout_s: float = Field(
        60.0, gt=0, le=YEAR_S, description="seconds without a heartbeat before the owner of a run is considered dead"
    )
    lease_wait_s: float = Field(
        30.0, ge=0, le=YEAR_S, description="seconds to wait for a run that another process owns"
    )
    hang_timeout_s: float = Field(
        600.0, gt=0, le=YEAR_S, description="seconds without progress before a rank is considered hung"
    )


class Sweep(Section):
    """A sweep: grid x zip x list without exclude, one run for each point. Names are dotted, as in optimizer.lr."""

    grid: Axes = Field(
        {},
        description="all combinations of the values of these settings",
        examples=[{"training.label_smoothing": [0.0, 0.1], "seed": [0, 1]}],
    )
    zip: Axes = Field(
        {},
        description="values in parallel: the first of each list, then the second of each, ...",
        examples=[{"training.batch_size": [32, 64], "training.epochs": [10, 20]}],
    )
    list: Points = Field(
        [],
        description="explicit points, each a mapping of settings",
        examples=[[{"model.name": "mlp"}, {"model.name": "cnn", "training.clip_norm": 1.0}]],
    )
    exclude: Points = Field(
        [],
        description="points to leave out: those that have all values of one of these mappings",
        examples=[[{"training.label_smoothing": 0.1, "seed": 1}]],
    )
    seeds: int | None = Field(
        None,
        ge=2,
        le=MOST_SEEDS,
        description="runs of each point, with the seeds seed, seed + 1, ...; the report compares their means",
        json_schema_extra=ADDED,
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=MOST_FOLDS,
        description="cross-validation: runs of each point, each with another part of the data as validation split;"
        " the report compares their means",
        json_schema_extra=ADDED,
    )

    @field_validator("grid", "zip", "list", "exclude", mode="after")
    @classmethod
    def _sort_keys(cls, value: Any) -> Any:
        """Sort the keys, so that points and names of runs do not depend on the order in the file."""
        return sorted_keys(value)


def sorted_keys(value: Any) -> Any:
    """Return the value with sorted keys in every mapping, as in a frozen file."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value, key=str)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


class _Range(Section):
    log: bool = Field(False, description="sample on a logarithmic scale")


class FloatSpace(_Range):
    """A range of numbers."""

    type: Literal["float"] = Field("float", description="float, int or categorical")
    low: float = Field(description="lower bound, included")
    high: float = Field(description="upper bound, included")
    step: float | None = Field(None, gt=0, description="distance between possible values")


class IntSpace(_Range):
    """A range of whole numbers."""

    type: Literal["int"] = Field(description="float, int or categorical")
    low: int = Field(description="lower bound, included")
    high: int = Field(description="upper bound, included")
    step: int = Field(1, ge=1, description="distance between possible values")


class CategoricalSpace(Section):
    """A choice among several values."""

    type: Literal["categorical"] = Field(description="float, int or categorical")
    choices: Annotated[list[str | int | float | bool | None], Field(min_length=1)] = Field(
        description="possible values"
    )


Space = Annotated[
    Annotated[FloatSpace, Tag("float")]
    | Annotated[IntSpace, Tag("int")]
    | Annotated[CategoricalSpace, Tag("categorical")],
    variant("type", "float"),
]


class Tune(Section):
    """A study: hyperparameter tuning by trials, each suggested from the results of earlier ones."""

    name: str = Field(
        "study",
        pattern=NAME,
        description="name of the study; only for display",
        json_schema_extra=NOT_IDENTITY | NAME_ALLOWED,
    )
    trials: int = Field(
        20, ge=1, le=100_000, description="total number of trials; can be raised later", json_schema_extra=NOT_IDENTITY
    )
    window: int = Field(2, ge=1, description="maximum number of trials that run at the same time")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the suggestions")
    metric: str | None = Field(
        None,
        description="metric that the study optimizes (accuracy: higher is better; others: lower); null takes"
        " val_accuracy, or val_loss if the task has no accuracy",
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="algorithm that suggests values")
    pruner: Literal["none", "median"] = Field(
        "none", description="median stops trials that are worse than half of the others"
    )
    warmup_epochs: int = Field(1, ge=0, description="validations before a trial can be pruned")
    min_trials: int = Field(
        5, ge=1, description="finished trials before tpe replaces random search and before median prunes"
    )
    space: dict[str, Space] = Field(
        min_length=1,
        description="tuned settings: dotted names, each with a type and either low and high, or choices",
        examples=[
            {
                "optimizer.lr": {"type": "float", "low": 0.0001, "high": 0.01, "log": True},
                "optimizer.weight_decay": {"type": "categorical", "choices": [0.0, 0.01]},
            }
        ],
    )
    set: dict[str, Any] = Field(
        {},
        description="settings that apply to trials but not to the final run, such as fewer epochs",
        examples=[{"training.epochs": 5}],
    )


class Views(Section):
    """Test-time augmentation: the probabilities of a test image are the mean over views of it; the image is one."""

    flip_horizontal: bool = Field(False, description="also the mirror image, left to right")
    flip_vertical: bool = Field(False, description="also the mirror image, top to bottom")
    shift: int = Field(0, ge=0, le=8192, description="also moved by so many pixels, in each of four directions; 0: not")


class Evaluate(Section):
    """The evaluation on the test split."""

    bootstrap: int = Field(
        1000, ge=0, le=MOST, description="bootstrap resamples for confidence intervals; 0 computes none"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the intervals")
    batch_size: int = Field(256, ge=1, le=MOST, description="samples per forward pass")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the bootstrap")
    tta: Views = Field(default_factory=Views, json_schema_extra=ADDED)
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="device to evaluate on; auto uses a GPU if one is free, else the CPU",
        json_schema_extra=NOT_IDENTITY | {"allowed": "auto, cpu, cuda, or cuda:N"},
    )


class Export(Section):
    """The export to ONNX, and its comparison with torch."""

    # The range of onnxscript's version converter: for a lower opset, the exporter silently writes 18.
    opset: int | None = Field(18, ge=18, le=25, description="ONNX opset; null takes the newest of the exporter")
    batch_sizes: list[Annotated[int, Field(ge=1, le=MOST)]] = Field(
        [1, 2, 7], min_length=1, description="batch sizes that are compared"
    )
    max_batch: int = Field(
        256, ge=1, le=MOST, description="largest batch that is compared, if the test split has so many samples"
    )
    atol: float = Field(1e-4, ge=0, description="absolute tolerance of the comparison")
    rtol: float = Field(1e-3, ge=0, description="relative tolerance of the comparison")


class Price(Section):
    """Prices of an hour, from which the report computes what the trainings cost."""

    gpu_hour: float = Field(0.0, ge=0, le=MOST, description="price of one GPU for an hour")
    cpu_hour: float = Field(0.0, ge=0, le=MOST, description="price of one CPU for an hour")
    currency: str = Field("", max_length=12, description="unit of the prices, such as EUR")


class Report(Section):
    """The report on all runs."""

    title: str | None = Field(None, description="title; null takes the name of the experiment")
    theme: Literal["light", "dark", "auto"] = Field("auto", description="colour theme; auto follows the browser")
    price: Price | None = Field(None, description="null shows hours only", json_schema_extra=ADDED)
    excel: bool = Field(
        False, description="also write runs.xlsx, a workbook of the tables of runs", json_schema_extra=ADDED
    )


class Experiment(Section):
    """The experiment: one training, or a sweep and a study of it."""

    name: str = Field(
        pattern=NAME,
        description="name of the experiment, and of its folder in results/",
        json_schema_extra=NOT_IDENTITY | NAME_ALLOWED,
    )
    labels: dict[str, str] = Field(
        {},
        description="notes: any name, any text",
        examples=[{"project": "digits"}],
        json_schema_extra=NOT_IDENTITY,
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of everything random in the training, such as initial weights and order"
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
    registry: Registry | None = Field(
        None, description="null registers no model", json_schema_extra=NOT_IDENTITY | ADDED
    )
    notify: Notify | None = Field(None, description="null tells nobody", json_schema_extra=NOT_IDENTITY | ADDED)

    _origins: Origins = PrivateAttr(Origins())

"""The sections that determine the result of a run: data, model, optimizer, schedule, training, augmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.config.by_path import BY_PATH, PATTERN, check_loss
from workflow_lib.config.init import Init
from workflow_lib.config.length import without_epochs
from workflow_lib.config.measures import Metric, repeated
from workflow_lib.config.optimization import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Lion,
    Muon,
    OneCycle,
    Optimizer,
    OwnOptimizer,
    OwnSchedule,
    Plateau,
    Schedule,
    Step,
)
from workflow_lib.config.stages import stages
from workflow_lib.config.step import checked_class, checked_step
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import ADDED, NOT_IDENTITY, renamed_from

MOST_FOLDS = 1000
YEAR_S = 31_536_000.0
MOST = 1_000_000  # upper bound of counts such as epochs and trials; a larger number is probably a typo


class _PluginSection(Section):
    """A section that names a plugin, whose `Params` validates `params` and fills in defaults."""

    @field_validator("params", mode="after", check_fields=False)
    @classmethod
    def _validate_params(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" not in info.data:
            return value
        kind = "data" if cls is Data else "models"
        try:
            params = plugins.load(kind, info.data["name"]).Params
        except plugins.PluginError as error:
            raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error
        try:
            filled = params.model_validate(value, context=info.context)
        except ValidationError as error:
            details = {"message": str(error), "section": params, "errors": error.errors()}
            raise PydanticCustomError("params", "{message}", details) from error
        dumped: dict[str, Any] = filled.model_dump(mode="json")
        return dumped


class Data(_PluginSection):
    """The data set and how it is split."""

    name: str = Field("digits", description="data set: a file in workflow_lib/datasets, or an import path")
    params: dict[str, Any] = Field({}, description="settings of the data set")
    validation_fraction: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="fraction of the data for the validation split, unless the data set has one",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="fraction of the data for the test split, unless the data set has one",
    )
    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of the random, stratified split")
    folds: int | None = Field(
        None,
        ge=2,
        le=MOST_FOLDS,
        description="number of folds of a cross-validation; sweep.folds sets it. All samples but those of test are"
        " divided into folds, and validation_fraction is not used; null draws the validation split",
        json_schema_extra=ADDED,
    )
    fold: int | None = Field(
        None,
        ge=0,
        lt=MOST_FOLDS,
        description="fold that is the validation split, counted from 0; sweep.folds sets it",
        json_schema_extra=ADDED,
    )
    min_class_count: int = Field(
        1, ge=1, le=MOST, description="classes with fewer training samples than this are rare: see rare_classes"
    )
    rare_classes: Literal["drop", "merge"] = Field(
        "drop", description="drop removes the samples of rare classes; merge puts them into one class, `other`"
    )
    shard_samples: int = Field(
        4096, ge=1, le=MOST, description="maximum number of samples in a shard file", json_schema_extra=NOT_IDENTITY
    )
    in_memory: bool | Literal["auto"] = Field(
        "auto",
        description="true keeps the data in memory, false reads it from the shards; auto decides by its size",
        json_schema_extra=NOT_IDENTITY,
    )


class Model(_PluginSection):
    """The model; its input shape and number of outputs come from the data."""

    name: str = Field("mlp", description="model: a file in workflow_lib/models, or an import path")
    params: dict[str, Any] = Field({}, description="settings of the model")
    init: Init = Field(default_factory=Init, json_schema_extra=ADDED)


class EarlyStopping(Section):
    """Early stopping: ends the training when a metric stops improving."""

    metric: str = Field("val_loss", description="metric that must improve (accuracy: higher is better; others: lower)")
    patience: int = Field(10, ge=1, description="validations without improvement before the training ends")
    min_delta: float = Field(0.0, ge=0, description="smallest change that counts as improvement")


class Training(Section):
    """The training loop."""

    epochs: int | None = Field(
        10,
        ge=1,
        le=MOST,
        description="passes over the training split; null, and the default where max_steps is given: no such limit",
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps after which the training ends, or epochs, whichever is first; null has no such"
        " limit",
        json_schema_extra=ADDED,
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps from one validation to the next; null validates after each epoch. The last step is"
        " always validated",
        json_schema_extra=ADDED,
    )
    log_every_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps from one row of steps.csv to the next: their mean loss, and the learning rate;"
        " null writes none",
        json_schema_extra=ADDED,
    )
    batch_size: int = Field(
        64, ge=1, le=MOST, description="samples per optimizer step, over all ranks and micro-batches"
    )
    accumulation_steps: int = Field(
        1,
        ge=1,
        description="micro-batches per optimizer step (gradient accumulation); more need less memory",
        json_schema_extra=renamed_from("accumulation"),
    )
    clip_norm: float | None = Field(None, gt=0, description="maximum norm of the gradient; null does not clip")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: probability that is spread over the other classes"
    )
    loss_chunk: int | None = Field(
        None,
        ge=1,
        description="tokens whose loss is computed at once, which needs less memory; null computes that of all",
        json_schema_extra=ADDED,
    )
    focal_gamma: float = Field(
        0.0,
        ge=0,
        description="focal loss: focusing parameter, which down-weights samples that are already classified well; 0 is"
        " cross-entropy",
    )
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="weight of each class in the loss; balanced gives rare classes more; null weights all equally"
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="shuffled: each sample once per epoch; balanced: as many samples, drawn with replacement, with all"
        " classes equally likely",
    )
    loss: str | None = Field(
        None,
        pattern=PATTERN,
        description="import path of a loss(outputs, targets, **loss_params), or of a class that is called so; null is"
        " the loss of the task",
        json_schema_extra={**ADDED, "allowed": "an import path such as mypackage.losses:dice, or null"},
    )
    loss_params: dict[str, Any] = Field({}, description="arguments of the loss, by name", json_schema_extra=ADDED)
    precision: Literal["fp32", "bf16", "fp16", "tf32"] = Field(
        "fp32", description="precision of the forward and backward pass"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is evaluated in their place; it warms"
        " up as (1 + step) / (10 + step); null disables it",
    )
    metrics: list[Metric] = Field(
        [],
        description="metrics of the validation and the test beside those of the task: short names, import paths, or"
        " either with arguments; curves and select_metric have them as val_<name>",
        examples=[["f1_macro", {"name": "auroc", "params": {"thresholds": 200}}]],
        json_schema_extra={**ADDED, "allowed": "a list of names, or {NAME: {argument: value}}"},
    )
    select_metric: str = Field("val_loss", description="metric that selects the epoch of the final model")
    early_stopping: EarlyStopping | None = Field(None, description="null trains for all epochs")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every rank holds the whole model; fsdp: a shard of each tensor, for models too large for one"
        " device",
    )
    determinism: Literal["strict", "warn", "standard"] = Field(
        "strict",
        description="strict: only deterministic algorithms; warn: the same, but an operation that has none is named and"
        " computed; standard: seeded, with the fastest kernels",
    )
    compile: bool = Field(
        False, description="compile the model with torch.compile: about a minute once, then faster steps"
    )
    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous",
        description="order of the weights of 2D convolutions in memory; channels_last can be faster for images, and"
        " changes the last bits",
        json_schema_extra=ADDED,
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations instead of storing them: less memory, a third more time"
    )
    step: str | None = Field(
        None,
        description="training step of one's own, with several models or optimizers: a workflow_lib.TrainingStep at"
        " package.module:Name; null trains the model with the loss of the task",
        json_schema_extra=ADDED,
    )
    step_params: dict[str, Any] = Field({}, description="arguments of training.step", json_schema_extra=ADDED)
    hooks: str | None = Field(
        None, description="import path of a module with hooks, such as on_epoch_end(state); null has none"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_in_steps_alone(cls, value: Any) -> Any:
        return without_epochs("training", value)

    @field_validator("loss_params")
    @classmethod
    def _check_loss(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        target = info.data.get("loss")
        if target is not None:
            check_loss(target, value)
        elif value and "loss" in info.data:
            raise PydanticCustomError("arguments", "are for training.loss, which is not set; allowed: {{}}")
        return value

    @field_validator("step")
    @classmethod
    def _check_step_class(cls, value: str | None) -> str | None:
        return None if value is None else checked_class(value)

    @field_validator("step_params")
    @classmethod
    def _check_step(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        target = info.data.get("step")
        if target is not None:
            return checked_step(target, value, (info.context or {}).get("root"))
        if value and "step" in info.data:
            raise PydanticCustomError("arguments", "are for training.step, which is not set; allowed: {{}}")
        return value

    @field_validator("metrics")
    @classmethod
    def _check_labels(cls, value: list[Metric]) -> list[Metric]:
        if label := repeated(value):
            message = f"two metrics are called `{label}`; give one of them a `label` of its own"
            raise PydanticCustomError("arguments", "{message}", {"message": message})
        return value

    @field_validator("hooks")
    @classmethod
    def _load_hooks(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                plugins.load_hooks(value)
        except plugins.PluginError as error:
            raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error
        return value


class Augment(Section):
    """Random augmentation of training images, drawn again in each epoch; off by default."""

    flip_horizontal: float = Field(0.0, ge=0, le=1, description="probability of a mirror image, left to right")
    flip_vertical: float = Field(0.0, ge=0, le=1, description="probability of a mirror image, top to bottom")
    shift: float = Field(0.0, ge=0, le=1, description="maximum shift, as a fraction of height and width")
    rotation: float = Field(0.0, ge=0, le=180, description="maximum rotation in either direction, in degrees")
    crop: int = Field(
        0, ge=0, le=8192, description="pixels of padding around an image before a random crop of its original size"
    )
    brightness: float = Field(0.0, ge=0, description="maximum change of all values, in standard deviations of the data")
    contrast: float = Field(0.0, ge=0, le=1, description="maximum relative change of the distance from the mean")
    saturation: float = Field(0.0, ge=0, le=1, description="maximum relative change of the distance from grey")
    noise: float = Field(
        0.0, ge=0, description="standard deviation of Gaussian noise, in standard deviations of the data"
    )
    mixup: float = Field(
        0.0, ge=0, description="alpha of the Beta distribution of the weight that blends two samples; 0 disables it"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of the Beta distribution of the area that is kept when a box is replaced; 0 disables it",
    )


# Sections whose settings depend on their `name`: the default name, and the settings of each. `params` belong to one
# plugin, so a change of the plugin drops them and keeps the rest.
_OPTIMIZERS: dict[str, type[Section]] = {"adamw": AdamW, "sgd": SGD, "lion": Lion, "muon": Muon, BY_PATH: OwnOptimizer}
_SCHEDULES: dict[str, type[Section]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "step": Step,
    "one_cycle": OneCycle,
    "plateau": Plateau,
    BY_PATH: OwnSchedule,
}


def _fields(sections: dict[str, type[Section]]) -> dict[str, frozenset[str]]:
    return {name: frozenset(section.model_fields) - {"params"} for name, section in sections.items()}


VARIANTS: dict[str, tuple[str, dict[str, frozenset[str]]]] = {
    "optimizer": ("adamw", _fields(_OPTIMIZERS)),
    "schedule": ("constant", _fields(_SCHEDULES)),
    "data": ("digits", {"*": frozenset(Data.model_fields) - {"params"}}),
    "model": ("mlp", {"*": frozenset(Model.model_fields) - {"params"}}),
}


class RunConfig(Section):
    """All settings that determine the result of a run."""

    seed: int
    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    augment: Augment
    stages: dict[str, int] = Field(default_factory=lambda: stages())

"""The sections that decide the result of a run: data, model, optimizer, schedule, training, augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from workflow_lib import plugins
from workflow_lib.config.stages import stages
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import NOT_IDENTITY, renamed_from

MOST = 1_000_000  # epochs, samples of a batch, trials and so on: beyond it, a number was mistyped

if TYPE_CHECKING:
    Metric: TypeAlias = str
else:  # the metrics of every task, so that messages and the schema list them
    Metric = Literal[tuple(dict.fromkeys(name for facts in plugins.all_facts().values() for name in facts.curves))]


class _Plugged(Section):
    """A section whose `params` are those of the plugin it names."""

    @field_validator("params", mode="after", check_fields=False)
    @classmethod
    def _params_of_the_plugin(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
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


class Data(_Plugged):
    """The data set and how it is split."""

    name: str = Field("digits", description="the data set: a file of workflow_lib/data, or an import path")
    params: dict[str, Any] = Field({}, description="settings of this data set")
    validation_fraction: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="part of the data held out for validation, where the data set brings no such split",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="part of the data held out for the final test, where the data set brings no such split",
    )
    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of the random, stratified splits")
    min_class_count: int = Field(
        1, ge=1, le=MOST, description="classes with fewer samples to train from are dropped or merged"
    )
    rare_classes: Literal["drop", "merge"] = Field(
        "drop", description="whether samples of such classes are left out or make one class, `other`"
    )
    shard_samples: int = Field(
        4096, ge=1, le=MOST, description="at most so many samples in one shard file", json_schema_extra=NOT_IDENTITY
    )
    in_memory: bool | Literal["auto"] = Field(
        "auto",
        description="whether training holds the data in memory or reads it from the shards; auto goes by its size",
        json_schema_extra=NOT_IDENTITY,
    )


class Model(_Plugged):
    """The model; its input shape and classes come from the data."""

    name: str = Field("mlp", description="the model: a file of workflow_lib/models, or an import path")
    params: dict[str, Any] = Field({}, description="settings of this model")


class _Optimizer(Section):
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="weight decay (L2 in sgd, decoupled in all others)")


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = Field("adamw", description="the optimizer")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="decay of the averages of the gradient and of its square"
    )
    eps: float = Field(1e-8, gt=0, description="added to the denominator")


class SGD(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = Field("sgd", description="the optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; 0 is none")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")


class Lion(_Optimizer):
    """The sign of an averaged gradient: one state a weight, and a learning rate 3 to 10 times below adamw's."""

    name: Literal["lion"] = Field("lion", description="the optimizer")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.99), description="part of the average in the step, and decay of the average"
    )


class Muon(_Optimizer):
    """Orthogonal steps for the matrices of hidden layers; adamw for all else, by the same learning rate."""

    name: Literal["muon"] = Field("muon", description="the optimizer")
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of the matrices, in Nesterov's form")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="as in adamw, for what is no hidden matrix")
    eps: float = Field(1e-8, gt=0, description="as in adamw, for what is no hidden matrix")


class _Schedule(Section):
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear growth to the peak; fractions are fine")


class Constant(_Schedule):
    """The peak learning rate throughout."""

    name: Literal["constant"] = Field("constant", description="the learning-rate schedule")


class Cosine(_Schedule):
    """Half a cosine from the peak down to the end of the training."""

    name: Literal["cosine"] = Field("cosine", description="the learning-rate schedule")
    final_fraction: float = Field(0.0, ge=0, le=1, description="last learning rate, as a fraction of the peak")


class Linear(_Schedule):
    """A straight line from the peak down to the end of the training."""

    name: Literal["linear"] = Field("linear", description="the learning-rate schedule")
    final_fraction: float = Field(0.0, ge=0, le=1, description="last learning rate, as a fraction of the peak")


class Step(_Schedule):
    """A lower learning rate every so many epochs."""

    name: Literal["step"] = Field("step", description="the learning-rate schedule")
    every_epochs: int = Field(10, ge=1, description="epochs between two drops, from the start of the training")
    factor: float = Field(0.1, gt=0, lt=1, description="what the learning rate is multiplied by")


class OneCycle(_Schedule):
    """Half a cosine up to the peak and half a cosine down; a warm-up comes before, up to where the cycle starts."""

    name: Literal["one_cycle"] = Field("one_cycle", description="the learning-rate schedule")
    rise_fraction: float = Field(0.3, gt=0, lt=1, description="part of the cycle that rises")
    start_fraction: float = Field(0.04, gt=0, le=1, description="first learning rate, as a fraction of the peak")
    final_fraction: float = Field(1e-4, ge=0, le=1, description="last learning rate, as a fraction of the peak")


class Plateau(_Schedule):
    """A lower learning rate each time training.select_metric stops improving."""

    name: Literal["plateau"] = Field("plateau", description="the learning-rate schedule")
    factor: float = Field(0.5, gt=0, lt=1, description="what the learning rate is multiplied by")
    patience: int = Field(5, ge=0, description="epochs without improvement before that")


def variant(key: str, default: str) -> Discriminator:
    """Chooses the class of a section by one of its settings, or the default one where it is not given."""

    def name_of(value: Any) -> str:
        return str(value.get(key, default) if isinstance(value, dict) else getattr(value, key, default))

    return Discriminator(name_of)


Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[SGD, Tag("sgd")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[Muon, Tag("muon")],
    variant("name", "adamw"),
]
Schedule = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Step, Tag("step")]
    | Annotated[OneCycle, Tag("one_cycle")]
    | Annotated[Plateau, Tag("plateau")],
    variant("name", "constant"),
]


class EarlyStopping(Section):
    """End the training when a metric stops improving."""

    metric: Metric = Field("val_loss", description="what must improve (accuracy: higher, all else: lower)")
    patience: int = Field(10, ge=1, description="epochs without improvement before the end")
    min_delta: float = Field(0.0, ge=0, description="smallest change that counts as improvement")


class Training(Section):
    """The training itself."""

    epochs: int = Field(10, ge=1, le=MOST, description="passes over the training split")
    batch_size: int = Field(
        64, ge=1, le=MOST, description="samples of one optimizer step, over all ranks and accumulated parts"
    )
    accumulation_steps: int = Field(
        1,
        ge=1,
        description="micro-batches per optimizer step (gradient accumulation): less memory, the same batch_size",
        json_schema_extra=renamed_from("accumulation"),
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null does not clip")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over the other classes")
    focal_gamma: float = Field(
        0.0, ge=0, description="focal loss: how much less the samples count that are told already; 0 is cross-entropy"
    )
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="weight of each class in the loss; balanced weighs rare classes more; null weighs all alike"
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="shuffled takes each sample once an epoch; balanced draws as many, with replacement, all classes"
        " equally often",
    )
    precision: Literal["fp32", "bf16", "fp16", "tf32"] = Field("fp32", description="arithmetic of forward and backward")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running mean of the weights, which is then what is evaluated, after a warm-up of"
        " (1 + step) / (10 + step); null has none",
    )
    select_metric: Metric = Field("val_loss", description="the epoch that is best by it gives the final model")
    early_stopping: EarlyStopping | None = Field(None, description="null trains all epochs")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every rank holds the whole model; fsdp: a part of each tensor, for what does not fit one"
        " device",
    )
    determinism: Literal["strict", "standard"] = Field(
        "strict",
        description="strict uses deterministic algorithms only; standard is seeded, with the fastest kernels",
    )
    compile: bool = Field(False, description="compile the model by torch.compile: a minute once, faster steps")
    activation_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them: less memory, a third more time"
    )
    hooks: str | None = Field(
        None, description="import path of a module with functions to call, such as on_epoch_end(state); null calls none"
    )

    @field_validator("hooks")
    @classmethod
    def _functions_that_are_called(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                plugins.load_hooks(value)
        except plugins.PluginError as error:
            raise PydanticCustomError("plugin", "{message}", {"message": str(error)}) from error
        return value


class Augment(Section):
    """Images changed at random in training, anew in each epoch; all off."""

    flip_horizontal: float = Field(0.0, ge=0, le=1, description="probability to mirror left and right")
    flip_vertical: float = Field(0.0, ge=0, le=1, description="probability to mirror top and bottom")
    shift: float = Field(0.0, ge=0, le=1, description="largest shift, as a part of height and of width")
    rotation: float = Field(0.0, ge=0, le=180, description="largest turn to either side, in degrees")
    crop: int = Field(0, ge=0, le=8192, description="pixels put around an image before one of its own size is cut out")
    brightness: float = Field(0.0, ge=0, description="largest change of all values, in their standard deviations")
    contrast: float = Field(
        0.0, ge=0, le=1, description="largest change of the distance from the mean, as a part of it"
    )
    saturation: float = Field(0.0, ge=0, le=1, description="largest change of the distance from grey, as a part of it")
    noise: float = Field(0.0, ge=0, description="standard deviation of normal noise, in those of the data")
    mixup: float = Field(
        0.0, ge=0, description="alpha of the Beta distribution by which two samples are blended; 0 blends none"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of the Beta distribution of the part that stays when a box is replaced; 0 has none",
    )


# Sections that change shape with their `name`: the default name, and the settings each name has. The params
# of a plugin are nobody else's, so a change of plugin keeps all but them.
_OPTIMIZERS: dict[str, type[Section]] = {"adamw": AdamW, "sgd": SGD, "lion": Lion, "muon": Muon}
_SCHEDULES: dict[str, type[Section]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "step": Step,
    "one_cycle": OneCycle,
    "plateau": Plateau,
}


def _fields(sections: dict[str, type[Section]]) -> dict[str, frozenset[str]]:
    return {name: frozenset(section.model_fields) for name, section in sections.items()}


VARIANTS: dict[str, tuple[str, dict[str, frozenset[str]]]] = {
    "optimizer": ("adamw", _fields(_OPTIMIZERS)),
    "schedule": ("constant", _fields(_SCHEDULES)),
    "data": ("digits", {"*": frozenset(Data.model_fields) - {"params"}}),
    "model": ("mlp", {"*": frozenset(Model.model_fields) - {"params"}}),
}


class RunConfig(Section):
    """Everything that decides the result of a training."""

    seed: int
    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    augment: Augment
    stages: dict[str, int] = Field(default_factory=lambda: stages())

"""The optimizer and the learning-rate schedule: a class for each `name`, with the settings of that name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from workflow_lib import plugins
from workflow_lib.config.by_path import BY_PATH, PATTERN, check_optimizer, check_schedule
from workflow_lib.config.length import without_epochs
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import ADDED


class _Optimizer(Section):
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="weight decay: L2 for sgd, decoupled for the others")


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = Field("adamw", description="optimizer")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="decay rates of the running averages of the gradient and of its square"
    )
    eps: float = Field(1e-8, gt=0, description="added to the denominator for numerical stability")


class SGD(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = Field("sgd", description="optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; 0 disables it")
    nesterov: bool = Field(False, description="use Nesterov momentum")


class Lion(_Optimizer):
    """Lion: sign of an averaged gradient. One state per weight; needs a learning rate 3 to 10 times below adamw's."""

    name: Literal["lion"] = Field("lion", description="optimizer")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.99), description="weight of the running average in the step, and its decay rate"
    )


class Muon(_Optimizer):
    """Muon: orthogonalised steps for hidden weight matrices; adamw with the same learning rate for all others."""

    name: Literal["muon"] = Field("muon", description="optimizer")
    momentum: float = Field(0.95, ge=0, lt=1, description="Nesterov momentum of the hidden matrices")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="as in adamw, for all weights but hidden matrices")
    eps: float = Field(1e-8, gt=0, description="as in adamw, for all weights but hidden matrices")


class OwnOptimizer(Section):
    """A torch optimizer by its import path: one of torch.optim, of a package, or your own."""

    name: str = Field(description="import path of a subclass of torch.optim.Optimizer", pattern=PATTERN)
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float | None = Field(
        None, ge=0, description="weight decay, as the optimizer defines it; null leaves it at the optimizer's default"
    )
    params: dict[str, Any] = Field({}, description="other arguments of the optimizer, by name")

    @field_validator("params")
    @classmethod
    def _check_params(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            check_optimizer(info.data["name"], value, info.data.get("weight_decay"))
        return value


class _Schedule(Section):
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear increase to the peak; may be a fraction")
    warmup_steps: int | None = Field(
        None, ge=0, description="the same in optimizer steps; null takes warmup_epochs", json_schema_extra=ADDED
    )


class Constant(_Schedule):
    """The peak learning rate throughout the training."""

    name: Literal["constant"] = Field("constant", description="learning-rate schedule")


class Cosine(_Schedule):
    """Half a cosine from the peak down to the last step."""

    name: Literal["cosine"] = Field("cosine", description="learning-rate schedule")
    final_fraction: float = Field(0.0, ge=0, le=1, description="final learning rate as a fraction of the peak")


class Linear(_Schedule):
    """A straight line from the peak down to the last step."""

    name: Literal["linear"] = Field("linear", description="learning-rate schedule")
    final_fraction: float = Field(0.0, ge=0, le=1, description="final learning rate as a fraction of the peak")


class Step(_Schedule):
    """A lower learning rate every `every_epochs` epochs, or every `every_steps` steps."""

    name: Literal["step"] = Field("step", description="learning-rate schedule")
    every_epochs: int | None = Field(
        10,
        ge=1,
        description="epochs between two reductions, counted from the start of the training; null, and the default where"
        " every_steps is given: takes every_steps",
    )
    every_steps: int | None = Field(
        None, ge=1, description="the same in optimizer steps; null takes every_epochs", json_schema_extra=ADDED
    )
    factor: float = Field(0.1, gt=0, lt=1, description="factor that each reduction multiplies the learning rate by")

    @model_validator(mode="before")
    @classmethod
    def _count_in_steps_alone(cls, value: Any) -> Any:
        return without_epochs("schedule", value)


class OneCycle(_Schedule):
    """Half a cosine up to the peak and half a cosine down; a warm-up before it ends at the initial rate."""

    name: Literal["one_cycle"] = Field("one_cycle", description="learning-rate schedule")
    rise_fraction: float = Field(0.3, gt=0, lt=1, description="fraction of the cycle that rises")
    start_fraction: float = Field(0.04, gt=0, le=1, description="initial learning rate as a fraction of the peak")
    final_fraction: float = Field(1e-4, ge=0, le=1, description="final learning rate as a fraction of the peak")


class Plateau(_Schedule):
    """A lower learning rate each time training.select_metric stops improving."""

    name: Literal["plateau"] = Field("plateau", description="learning-rate schedule")
    factor: float = Field(0.5, gt=0, lt=1, description="factor that each reduction multiplies the learning rate by")
    patience: int = Field(5, ge=0, description="validations without improvement before a reduction")


class OwnSchedule(_Schedule):
    """A function of your own: `(step, total_steps, **params)` returns the factor of the peak learning rate."""

    name: str = Field(description="import path of a function of the step", pattern=PATTERN)
    params: dict[str, Any] = Field({}, description="other arguments of the function, by name")

    @field_validator("params")
    @classmethod
    def _check_params(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            check_schedule(info.data["name"], value)
        return value


def variant(key: str, default: str) -> Discriminator:
    """Return a discriminator that chooses a section's class by its setting `key`, or `default` if that is not given.

    An import path chooses the class whose tag is BY_PATH.
    """

    def name_of(value: Any) -> str:
        name = str(value.get(key, default) if isinstance(value, dict) else getattr(value, key, default))
        return BY_PATH if plugins.is_object_path(name) else name

    return Discriminator(name_of)


Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[SGD, Tag("sgd")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[OwnOptimizer, Tag(BY_PATH)],
    variant("name", "adamw"),
]


Schedule = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Step, Tag("step")]
    | Annotated[OneCycle, Tag("one_cycle")]
    | Annotated[Plateau, Tag("plateau")]
    | Annotated[OwnSchedule, Tag(BY_PATH)],
    variant("name", "constant"),
]

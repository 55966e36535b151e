"""A model of Hugging Face Transformers, from a folder of `save_pretrained` or the local cache of the hub.

The data decides the head: a class for each text or image, or the next token. Weights are read from safetensors files
only, code that comes with a model is never run, and nothing is downloaded unless `allow_download` says so. The content
of the files is part of the run's identity.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Answers, Inputs, Section, task_facts
from workflow_lib.plugins.section import NOT_IDENTITY

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec

TAKES: tuple[Inputs, ...] = ("images", "texts")
GIVES: tuple[Answers, ...] = ("sample", "token")


class Lora(Section):
    """Low-rank adapters: small matrices beside frozen ones, which alone are trained, and the head of a classifier."""

    r: int = Field(8, ge=1, le=1_000_000, description="rank of the matrices")
    alpha: float = Field(16.0, gt=0, description="their product is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="part of their inputs dropped in training")
    target_modules: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="ends of the names of adapted layers; null: every linear layer but the head"
    )


class Params(Section):
    """The model, where its weights come from, and how they are trained."""

    path: Path | None = Field(None, description="folder of save_pretrained: config.json, weights, tokenizer")
    hub: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$",
        description="id of a model in the local cache of Hugging Face, instead of a path",
        json_schema_extra={"allowed": "an id such as distilbert/distilbert-base-uncased"},
    )
    revision: str = Field("main", min_length=1, description="branch, tag or commit of the hub's model")
    allow_download: bool = Field(
        False, description="download a model of the hub that is not in the cache", json_schema_extra=NOT_IDENTITY
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="weights of the folder, or random ones in a model of its config.json"
    )
    lora: Lora | None = Field(None, description="null trains all weights")

    @field_validator("hub")
    @classmethod
    def _is_given_and_installed(cls, hub: str | None, info: ValidationInfo) -> str | None:
        if (hub is None) == (info.data.get("path") is None) and "path" in info.data:
            raise ValueError("needs either model.params.path or model.params.hub")
        _check_installed("transformers")
        return hub

    @field_validator("lora")
    @classmethod
    def _has_a_base(cls, lora: Lora | None, info: ValidationInfo) -> Lora | None:
        if lora is not None:
            _check_installed("peft")
            if info.data.get("weights") == "random":
                raise ValueError("would freeze random weights; use `weights: pretrained`, or train all weights")
        return lora


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"needs the package {package}: pip install 'everstep[transformers]'")


def files(params: Params) -> dict[str, Path]:
    """Return the folder of the hub's model in the local cache, named by its commit."""
    if params.hub is None:
        return {}
    from workflow_lib.models._pretrained import cached_folder

    folder = cached_folder(params.hub, params.revision, allow_download=params.allow_download)
    return {f"hub at {folder.name}": folder}


def build(params: Params, spec: ModelSpec) -> nn.Module:
    """Return the model: tokens or images to logits. New weights, as of a head, are drawn from torch's generator."""
    from workflow_lib.models import _adapters, _pretrained

    if len(spec.input_shape) != 3 and "vocabulary" not in spec.facts():
        raise ConfigError(
            f"model.name: transformers reads texts or images; the data has inputs {spec.input_shape} for {spec.task}"
        )
    folder = params.path or next(iter(files(params).values()))
    network = _pretrained.load(folder, spec, is_random=params.weights == "random")
    if params.lora is not None:
        _adapters.add_adapters(network, params.lora, trains_head=task_facts(spec.task).answers != "token")
    return network

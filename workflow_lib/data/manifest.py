"""All that is known of prepared data; the digest in it covers what a training can see."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from workflow_lib import config
from workflow_lib.data.source import Feature
from workflow_lib.errors import DataError, StateError
from workflow_lib.files import read_json, write_signed
from workflow_lib.plugins import Section, Task

SPLITS = ("train", "val", "test")
PREPARE_AGAIN = "run preprocess again (snakemake --forcerun preprocess): it makes what is missing or damaged, no more"


@dataclass(frozen=True)
class ModelSpec:
    """What a model must fit.

    input_shape   of one input; language: (context,), the most tokens that it sees at once
    outputs       number of classes, of numbers to predict, or of tokens in the vocabulary
    categories    of a table: the number of categories of each feature, 0 for a number; otherwise empty
    """

    input_shape: tuple[int, ...]
    outputs: int
    task: Task = "classification"
    categories: tuple[int, ...] = ()


class Shard(Section):
    """A file of consecutive samples of one split."""

    split: Literal["train", "val", "test"]  # a part of its file's name, and so is all but the digest
    start: int = Field(ge=0)
    stop: int = Field(ge=0)
    digest: str
    made_from: str = Field(
        "", pattern="^([0-9a-f]{32})?$"
    )  # digest of what it is made from, where the data set tells that of each row

    @property
    def name(self) -> str:
        """Its file name."""
        made_from = f"-{self.made_from}" if self.made_from else ""
        return f"{self.split}-{self.start:012d}-{self.stop:012d}{made_from}.safetensors"


class SplitSummary(Section):
    """How many samples a split holds, in all and of each class, and the digest of its content."""

    samples: int
    per_class: tuple[int, ...]
    digest: str


class Manifest(Section):
    """All that is known of prepared data.

    A model's input is `(stored / scale - mean) / std` by channel, and 0 where a table has no number; tokens stay as
    they are. The targets of a regression are `(stored - target_mean) / target_std`, by output.
    """

    digest: str  # of what a training can see
    store: str = Field(pattern="^[0-9a-f]{32}$")  # folder in work/data
    data: dict[str, Any]  # the settings
    task: Task = "classification"
    input_shape: tuple[int, ...]  # as stored: one token more than the context of a language
    dtype: str  # uint8 or float32; tokens are uint8 or int32
    classes: tuple[str, ...]
    features: tuple[Feature, ...] = ()
    vocabulary: tuple[str, ...] = ()
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]  # 1 for a channel that never varies, and for categories
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    splits: dict[str, SplitSummary]
    shards: tuple[Shard, ...]
    sources: dict[str, str]  # digest of each source file

    @property
    def spec(self) -> ModelSpec:
        """What a model for this data must fit."""
        if self.task == "language":
            return ModelSpec((self.input_shape[0] - 1,), len(self.vocabulary), self.task)
        outputs = len(self.target_mean) if self.task == "regression" else len(self.classes)
        categories = tuple(len(feature.categories) for feature in self.features)
        return ModelSpec(self.input_shape, outputs, self.task, categories)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """The manifest in a file; its digest is checked."""
        try:
            manifest = cls.model_validate_json(json.dumps(read_json(path)))
        except FileNotFoundError as error:
            raise DataError(f"{path}: no manifest; {PREPARE_AGAIN}") from error
        except StateError as error:
            raise DataError(f"{error}; or {PREPARE_AGAIN}") from error
        except ValidationError as error:
            raise DataError(f"{path}: not a manifest of this version; {PREPARE_AGAIN}") from error
        if manifest.digest != manifest.content_digest():
            raise DataError(f"{path}: its digest is not that of what it says; {PREPARE_AGAIN}")
        return manifest

    def save(self, path: Path) -> None:
        """The file holds the manifest, whole."""
        write_signed(path, self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """The digest of what a training can see: no path, no shard, no name."""
        names = {"task", "input_shape", "dtype", "scale", "mean", "std", "target_mean", "target_std"}
        seen = self.model_dump(mode="json", include=names)
        splits = {name: [split.samples, split.digest] for name, split in self.splits.items()}
        spec = self.spec
        numbers = {"outputs": spec.outputs, "categories": spec.categories}
        return config.digest(seen | numbers | {"splits": splits}, "everstep-data")

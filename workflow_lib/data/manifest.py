"""The description of prepared data; its digest covers everything that training can see."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from workflow_lib import config
from workflow_lib.data.source import Feature
from workflow_lib.errors import DataError, StateError
from workflow_lib.files import read_json, write_signed
from workflow_lib.plugins import Section, Targets, Task, task_facts

SPLITS = ("train", "val", "test")
PREPARE_AGAIN = (
    "run preprocess again (snakemake --forcerun preprocess); it writes only the shards that are missing or damaged"
)


@dataclass(frozen=True)
class ModelSpec:
    """Shapes that a model must accept and return.

    Attributes:
        input_shape: of one input; language: (context,), the largest number of tokens in an input
        outputs: number of classes, of numbers to predict, or of tokens in the vocabulary; segmentation: of classes, for
            each pixel
        categories: table: the number of categories of each feature, 0 for a numeric one; otherwise empty
        vocabulary: number of tokens of the inputs, if they are texts; token 0 fills short texts that have classes
        scale, mean, std: how the inputs were normalised, as in the manifest; empty if that is not known yet
        tokenizer: content of the tokenizer.json that made the tokens, if there is one
    """

    input_shape: tuple[int, ...]
    outputs: int
    task: Task = "classification"
    categories: tuple[int, ...] = ()
    vocabulary: int = 0
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    tokenizer: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the values of `data.<name>` among the settings of a model, for those that this data has."""
        facts: dict[str, Any] = {"outputs": self.outputs, "input_shape": self.input_shape}
        if tokens := self.vocabulary or (self.outputs if task_facts(self.task).targets == "tokens" else 0):
            return facts | {"context": self.input_shape[0], "vocabulary": tokens}
        facts["features"] = math.prod(self.input_shape)
        if len(self.input_shape) == 3:
            facts |= zip(("channels", "height", "width"), self.input_shape, strict=True)
        return facts | ({"categories": self.categories} if self.categories else {})


class Shard(Section):
    """A file of consecutive samples of one split."""

    split: Literal["train", "val", "test"]
    start: int = Field(ge=0)
    stop: int = Field(ge=0)
    digest: str
    # Digest of the settings, the code and the source files of its rows, if the data set gives `Source.row_digests`.
    made_from: str = Field("", pattern="^([0-9a-f]{32})?$")

    @property
    def name(self) -> str:
        """File name: it contains all fields but the digest."""
        made_from = f"-{self.made_from}" if self.made_from else ""
        return f"{self.split}-{self.start:012d}-{self.stop:012d}{made_from}.safetensors"


class SplitSummary(Section):
    """Number of samples of a split, in total and of each class, and the digest of its content."""

    samples: int
    per_class: tuple[int, ...]
    digest: str


class InPlace(Section):
    """Data that is read in place: its files, by number, and what a training compares before it reads them."""

    code: str  # digest of the data set's code
    index: str  # digest of the arrays in index.safetensors
    files: tuple[str, ...]
    probes: dict[str, str]  # digest of a few samples of each split


class Manifest(Section):
    """The description of prepared data.

    The input of a model is `(stored / scale - mean) / std` by channel, and 0 for a missing number of a table; tokens
    are not changed. The targets of a regression are `(stored - target_mean) / target_std` by output.
    """

    digest: str  # of everything that training can see
    store: str = Field(pattern="^[0-9a-f]{32}$")  # folder in work/data
    data: dict[str, Any]  # the settings
    task: Task = "classification"
    input_shape: tuple[int, ...]  # as stored; language: context + 1 tokens
    dtype: str  # uint8 or float32; tokens are uint8 or int32
    classes: tuple[str, ...]
    outputs: tuple[str, ...] = ()  # names of the numbers to predict
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
    tokenizer: str = ""  # content of the tokenizer.json that made the tokens; empty: there is none
    names: str = ""  # digest of the table of samples beside the manifest; empty if there is none
    in_place: InPlace | None = None  # None: all samples are in the shards

    @property
    def kind(self) -> Targets:
        """Storage of the targets, determined by the task."""
        return task_facts(self.task).targets

    @property
    def has_tokens(self) -> bool:
        """True if the inputs are tokens of texts, which are not normalised."""
        return bool(self.vocabulary)

    @property
    def spec(self) -> ModelSpec:
        """The shapes for a model of this data."""
        if self.kind == "tokens":
            tokens, known = len(self.vocabulary), self.tokenizer
            return ModelSpec((self.input_shape[0] - 1,), tokens, self.task, vocabulary=tokens, tokenizer=known)
        outputs = len(self.target_mean) if self.kind == "numbers" else len(self.classes)
        categories = tuple(len(feature.categories) for feature in self.features)
        vocabulary: dict[str, Any] = {"vocabulary": len(self.vocabulary), "tokenizer": self.tokenizer}
        normalisation: dict[str, Any] = {"scale": self.scale, "mean": self.mean, "std": self.std}
        return ModelSpec(self.input_shape, outputs, self.task, categories, **vocabulary, **normalisation)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Return the manifest in a file. Raises DataError if it is missing or damaged, or its digest is wrong."""
        try:
            manifest = cls.model_validate_json(json.dumps(read_json(path)))
        except FileNotFoundError as error:
            raise DataError(f"{path}: no manifest; {PREPARE_AGAIN}") from error
        except StateError as error:
            raise DataError(f"{error}; or {PREPARE_AGAIN}") from error
        except ValidationError as error:
            raise DataError(f"{path}: not a manifest of this version; {PREPARE_AGAIN}") from error
        if manifest.digest != manifest.content_digest():
            raise DataError(f"{path}: its digest does not match its content; {PREPARE_AGAIN}")
        return manifest

    def save(self, path: Path) -> None:
        """Write the manifest to a file, atomically."""
        write_signed(path, self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """Return the digest of everything that training can see, without paths, shards and names."""
        names = {"task", "input_shape", "dtype", "scale", "mean", "std", "target_mean", "target_std"}
        seen = self.model_dump(mode="json", include=names)
        splits = {name: [split.samples, split.digest] for name, split in self.splits.items()}
        spec = self.spec
        numbers = {"outputs": spec.outputs, "categories": spec.categories}
        if self.has_tokens and self.kind != "tokens":
            numbers["vocabulary"] = spec.vocabulary
        return config.digest(seen | numbers | {"splits": splits}, "everstep-data")

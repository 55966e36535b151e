"""Statements: JSON files in results/, in which a rule describes its result. Each has a type, a writer and a reader.

    train.json         Training, or DivergedTraining for a point of a sweep that diverged
    evaluation.json    Evaluation, or Diverged
    export.json        Export, or Diverged

A reader raises StateError, with the path, if a key is missing that identifies the subject of the statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, final

from workflow_lib.files import read_json, write_json

if TYPE_CHECKING:
    from workflow_lib.store.code_record import Acceptance

DIVERGED: Literal["diverged"] = "diverged"


class Code(TypedDict):
    """The code of Everstep that wrote a statement; None outside of a git repository."""

    version: str
    commit: str | None
    modified: bool | None


class Provenance(TypedDict):
    """Command, code, inputs and environment that produced a result."""

    command: str
    experiment: str | None  # frozen experiment file
    code: Code
    inputs: dict[str, str]  # digest of each input file
    environment: NotRequired[dict[str, Any]]


class Best(TypedDict):
    """The epoch whose weights are the result of the run."""

    metric: str
    value: float
    epoch: int
    step: int


Initialised = TypedDict(
    "Initialised",
    {
        "from": str,  # a file, or the id of a run
        "digest": str,  # of its content
        "taken": int,  # number of weights
        "not_taken": list[str],  # weights of the model that were drawn at random
        "unused": list[str],  # names in the source
    },
)


class Source(TypedDict):
    """A run whose weights another run used, and their digest."""

    run: str
    digest: str


class Identity(TypedDict):
    """The run that a statement is about: its digest, and the digests of its data and of the user's code."""

    run: str
    digest: str
    data: str
    code: str


class ModelIdentity(Identity):
    """The run and the digest of its weights."""

    model: str


class Cost(TypedDict):
    """Wall seconds and number of all attempts."""

    seconds: float
    attempts: int


class Diverged(Identity):
    """A run without a result, since its training diverged; only these statements have a key `state`."""

    provenance: Provenance
    state: Literal["diverged"]
    reason: str


@final
class DivergedTraining(Diverged, Cost):
    """A training that diverged."""

    steps: int
    epochs: float  # whole, as an int, unless the run ended within an epoch


@final
class Training(ModelIdentity, Cost):
    """A finished training."""

    provenance: Provenance
    steps: int
    epochs: float  # whole, as an int, unless the run ended within an epoch
    sealed: str  # path of the final checkpoint
    exact: bool
    best: Best
    final: dict[str, float | None]  # metrics of the last epoch
    parameters: int
    environment: dict[str, Any]
    accepted: NotRequired[Acceptance]
    initialised: NotRequired[Initialised]
    sources: NotRequired[dict[str, Source]]  # of the training step, by setting


class Evaluation(ModelIdentity):
    """Metrics on the test split; the file has more keys, which depend on the task and on the device."""

    provenance: Provenance
    task: str
    split: str
    samples: int
    device: str
    trained_in: str  # precision
    metrics: dict[str, dict[str, Any]]


class Export(ModelIdentity):
    """An exported model, and its comparison with the trained model."""

    provenance: Provenance
    onnx: dict[str, Any]
    check: dict[str, Any]


def write_training(path: Path, statement: Training | DivergedTraining) -> None:
    write_json(path, statement)


def read_training(path: Path) -> Training | DivergedTraining:
    """Return the statement of a training; it has a key `state` only if the training diverged."""
    statement: Training | DivergedTraining = read_json(path, "run", "digest", "data", "code")
    if "state" in statement:
        return statement
    finished: Training = read_json(path, "model", "sealed")
    return finished


def write_diverged_step(path: Path, statement: Diverged) -> None:
    """Write the statement of an evaluation or an export of a run that diverged."""
    write_json(path, statement)


def write_evaluation(path: Path, statement: Evaluation, more: Mapping[str, Any]) -> None:
    """Write the statement of an evaluation, with the keys that depend on the task."""
    write_json(path, {**statement, **more})


def read_evaluation(path: Path) -> Evaluation:
    """Return the statement of an evaluation of a run that did not diverge."""
    statement: Evaluation = read_json(path, "run", "model", "metrics")
    return statement


def write_export(path: Path, statement: Export) -> None:
    write_json(path, statement)


def read_export(path: Path) -> Export:
    """Return the statement of an export of a run that did not diverge."""
    statement: Export = read_json(path, "model", "onnx", "check")
    return statement

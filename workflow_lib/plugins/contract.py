"""Optional functions and constants of a plugin module, with their defaults, and the files that its settings name.

A data set may define `task(params)`, `known(params)`, `look(params, root)` and `describe(params, root)`; a model may
define `TAKES` and `GIVES`. `Params`, `open_source` and `build` are required: see `loader`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from workflow_lib.plugins import source_digest
from workflow_lib.plugins.loader import Inputs, PluginError, load, user_code_errors
from workflow_lib.plugins.objects import is_object_path, object_code
from workflow_lib.plugins.section import Section, in_identity
from workflow_lib.plugins.tasks import task_facts, task_names
from workflow_lib.tasks.facts import Answers, Task


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about a data set that its settings or file headers give; None is known only once the data is read.

    Attributes:
        size: height and width of the images
        channels: channels of the images
        classes: number of classes
        outputs: number of numbers to predict; None counts as one
        samples: total number of samples, if Everstep draws every split from them
        training_samples: number of samples of the training split
    """

    inputs: Inputs | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    channels: PositiveInt | None = None
    classes: PositiveInt | None = None
    outputs: PositiveInt | None = None
    samples: PositiveInt | None = None
    training_samples: PositiveInt | None = None


def task(name: str, params: Mapping[str, Any]) -> Task:
    """Return the task of the data set with these settings: classification unless its `task(params)` says otherwise."""
    module = load("data", name)
    found = _call(module, "task", params, "classification")
    if found not in task_names() and not (isinstance(found, str) and is_object_path(found)):
        allowed = f"{', '.join(task_names())}, or an import path: mypackage.mytasks:TASK"
        raise PluginError(f"{module.__file__}: task() says {found!r}; allowed: {allowed}")
    return str(found)


def facts(name: str, params: Mapping[str, Any]) -> DatasetFacts:
    """Return the facts that the settings alone give, from the data set's `known(params)`.

    Without that function, only the inputs of a language data set are known: texts.
    """
    module = load("data", name)
    has_tokens = task_facts(task(name, params)).targets == "tokens"
    found = _call(module, "known", params, DatasetFacts("texts") if has_tokens else DatasetFacts())
    if not isinstance(found, DatasetFacts):
        raise PluginError(f"{module.__file__}: known() returns {type(found).__name__}; allowed: a plugins.DatasetFacts")
    return found


def facts_in_headers(name: str, params: Mapping[str, Any], root: Path) -> DatasetFacts:
    """Return the facts in the headers of the data's files, from its `look(params, root)`; without it, `facts`."""
    module = load("data", name)
    if (look := getattr(module, "look", None)) is None:
        return facts(name, params)
    with user_code_errors(f"{module.__file__}: look()"):
        found: DatasetFacts = look(module.Params.model_validate(params), root)
        return found


def column_descriptions(name: str, params: Mapping[str, Any], root: Path) -> list[str]:
    """Return a line for each column of a table, from the data set's `describe(params, root)`; without it, none."""
    module = load("data", name)
    describe = getattr(module, "describe", None)
    if describe is None:
        return []
    with user_code_errors(f"{module.__file__}: describe()"):
        lines: list[str] = describe(module.Params.model_validate(params), root)
        return lines


def accepted_inputs(name: str) -> tuple[Inputs, ...]:
    """Return the kinds of input that a model accepts, from its `TAKES`; without it, all."""
    module = load("models", name)
    inputs: tuple[Inputs, ...] = getattr(module, "TAKES", get_args(Inputs))
    if not isinstance(inputs, tuple | list) or not inputs or any(kind not in get_args(Inputs) for kind in inputs):
        allowed = ", ".join(get_args(Inputs))
        raise PluginError(f"{module.__file__}: TAKES is {inputs!r:.60}; allowed: a tuple of some of {allowed}")
    return inputs


def answers(name: str) -> tuple[Answers, ...]:
    """Return what a model gives an answer for, from its `GIVES`.

    Without it, a model that TAKES texts answers for each token, and one of images or tables for each sample; of a model
    that has neither, only its outputs tell.
    """
    module = load("models", name)
    usual: dict[Inputs, Answers] = {"images": "sample", "tables": "sample", "texts": "token"}
    is_told = hasattr(module, "TAKES")
    default = tuple(usual[kind] for kind in accepted_inputs(name)) if is_told else get_args(Answers)
    given: tuple[Answers, ...] = getattr(module, "GIVES", default)
    if not isinstance(given, tuple | list) or not given or any(kind not in get_args(Answers) for kind in given):
        allowed = ", ".join(get_args(Answers))
        raise PluginError(f"{module.__file__}: GIVES is {given!r:.60}; allowed: a tuple of some of {allowed}")
    return given


def _call(module: ModuleType, function: str, params: Mapping[str, Any], default: Any) -> Any:
    """Return the result of the data set's function for these settings, or the default if it has no such function."""
    found = getattr(module, function, None)
    with user_code_errors(f"{module.__file__}: {function}()"):
        return default if found is None else found(module.Params.model_validate(params))


def named_files(kind: str, name: str, params: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files and folders that a plugin's settings name, by setting, without NOT_IDENTITY settings.

    A model may name others by its `files(params)`.
    """
    module = load(kind, name)
    settings = module.Params.model_validate(params)
    return dict(_paths(settings)) | getattr(module, "files", lambda settings: {})(settings)


def _paths(value: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    """Yield every path in a value, at any depth, with its dotted name."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, Section):
        section = type(value)
        inner = ((field, getattr(value, field)) for field in section.model_fields if in_identity(section, field))
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, item in inner:
        yield from _paths(item, f"{name}.{key}" if name else str(key))


def code(module: ModuleType) -> source_digest.Code:
    """Return the code of a plugin and of the modules of the user's project that it imports."""
    if is_object_path(module.__name__):
        return object_code("model", module.__name__)
    return source_digest.read(module.__name__, Path(str(module.__file__)))

"""What a plugin tells of itself, and which files its settings name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from workflow_lib.plugins import source_digest
from workflow_lib.plugins.loader import Inputs, PluginError, Task, blaming, load
from workflow_lib.plugins.section import Section, counts


@dataclass(frozen=True)
class Known:
    """What the settings of a data set tell before anything is read; None is what only the data tells.

    size      height and width of images
    channels  of images
    classes   how many
    samples   how many in all, where every split is drawn from them
    """

    inputs: Inputs | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    channels: PositiveInt | None = None
    classes: PositiveInt | None = None
    samples: PositiveInt | None = None


def task(name: str, params: Mapping[str, Any]) -> Task:
    """What is learned from the data set with these settings; a data set that does not say so has classes."""
    module = load("data", name)
    found = _asked(module, "task", params, "classification")
    if found not in get_args(Task):
        raise PluginError(f"{module.__file__}: task() says {found!r}; allowed: {', '.join(get_args(Task))}")
    of_data: Task = found
    return of_data


def known(name: str, params: Mapping[str, Any]) -> Known:
    """What is known of the data set with these settings; of one that does not say so, only a text is told apart."""
    module = load("data", name)
    found = _asked(module, "known", params, Known("texts") if task(name, params) == "language" else Known())
    if not isinstance(found, Known):
        raise PluginError(f"{module.__file__}: known() gives {type(found).__name__}; it is to give a plugins.Known")
    return found


def looked_at(name: str, params: Mapping[str, Any], root: Path) -> Known:
    """Return the facts that the headers of the data's files tell; without `look(params, root)`, those of `known`."""
    module = load("data", name)
    if (look := getattr(module, "look", None)) is None:
        return known(name, params)
    with blaming(f"{module.__file__}: look()"):
        found: Known = look(module.Params.model_validate(params), root)
        return found


def described(name: str, params: Mapping[str, Any], root: Path) -> list[str]:
    """Lines that say what the data set takes its columns for; none, where it has no `describe(params, root)`."""
    module = load("data", name)
    describe = getattr(module, "describe", None)
    if describe is None:
        return []
    with blaming(f"{module.__file__}: describe()"):
        lines: list[str] = describe(module.Params.model_validate(params), root)
        return lines


def takes(name: str) -> tuple[Inputs, ...]:
    """The inputs that a model is for; all, where it does not say so in `TAKES`."""
    module = load("models", name)
    inputs: tuple[Inputs, ...] = getattr(module, "TAKES", get_args(Inputs))
    if not isinstance(inputs, tuple | list) or not inputs or any(one not in get_args(Inputs) for one in inputs):
        allowed = ", ".join(get_args(Inputs))
        raise PluginError(f"{module.__file__}: TAKES is {inputs!r:.60}; allowed: a tuple of some of {allowed}")
    return inputs


def _asked(module: ModuleType, function: str, params: Mapping[str, Any], default: Any) -> Any:
    """What a function of the data set answers for these settings, or the default where it has none."""
    of = getattr(module, function, None)
    with blaming(f"{module.__file__}: {function}()"):
        return default if of is None else of(module.Params.model_validate(params))


def named_files(kind: str, name: str, params: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders that the settings of a plugin name, by setting; without those that cannot matter."""
    return dict(_paths(load(kind, name).Params.model_validate(params)))


def _paths(value: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, Section):
        inner = ((field, getattr(value, field)) for field in type(value).model_fields if counts(type(value), field))
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, item in inner:
        yield from _paths(item, f"{name}.{key}" if name else str(key))


def code(module: ModuleType) -> source_digest.Code:
    """The code of a plugin, with the modules of the person's project that it imports."""
    return source_digest.read(module.__name__, Path(str(module.__file__)))


def text_digest(module: ModuleType) -> str:
    """Digest of what the code of a plugin does: its comments, its formatting and its place do not change it."""
    return code(module).digest

"""A data set or a model is one file: its name is the one in the experiment, its `Params` are its settings."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from workflow_lib import forking, source_digest
from workflow_lib.errors import ConfigError, EverstepError, shortened

log = logging.getLogger(__name__)

ENTRY = {"data": "open_source", "models": "build"}
HOOKS = ("on_train_start", "on_step_end", "on_epoch_end", "on_train_end")
Task = Literal["classification", "regression", "language"]
Inputs = Literal["images", "tables", "texts"]


class PluginError(ConfigError):
    """A data set or model that does not exist, cannot be imported, lacks a part, or raises."""


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


class Section(BaseModel):
    """Typed settings: frozen, unknown names refused, numbers finite, paths relative to the project's root."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yaml_surprises(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not _takes_bool(annotation):
            raise ValueError(f"{str(value).lower()} is not a value for this setting")
        return _empty(annotation) if value is None else value

    @field_validator("*", mode="after")
    @classmethod
    def _inside_the_project(cls, value: Any, info: ValidationInfo) -> Any:
        return project_path(value, (info.context or {}).get("root")) if isinstance(value, Path) else value


def _takes_bool(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_takes_bool(member) for member in get_args(annotation))
    return annotation not in (int, float, str)


def _empty(annotation: Any) -> Any:
    """What a name with nothing after it means: no settings, where settings are expected."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _empty(members[0])
    if origin in (dict, list, tuple):
        return {} if origin is dict else []
    if origin in (Union, UnionType):
        return None if type(None) in members else _empty(members[0])
    return {} if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def project_path(path: Path, root: Path | None) -> Path:
    """The path without `.` and `..`; relative to the root when it lies inside."""
    lexical = Path(os.path.normpath(os.path.expanduser(path)))
    if root is not None and lexical.is_absolute() and lexical.is_relative_to(root):
        return lexical.relative_to(root)
    return lexical


@cache
def available(kind: str) -> list[str]:
    """Names of the data sets or models in the package, sorted."""
    folder = Path(__file__).parent / kind
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """The module of a data set (`data`) or a model (`models`); a dotted name is an import path."""
    target = name if _is_import_path(name) else f"workflow_lib.{kind}.{name}"
    if not _is_import_path(name) and name not in available(kind):
        raise PluginError(_unknown(kind, name))
    return _checked(kind, name, _imported(kind, name, target))


def _imported(kind: str, name: str, target: str) -> ModuleType:
    if target in sys.modules:
        return sys.modules[target]
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        with forking.importing(target):
            return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and (target == error.name or target.startswith(error.name + ".")):
            raise PluginError(_unknown(kind, name)) from error
        raise PluginError(f"{kind} plugin `{name}` needs the module `{error.name}`, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind} plugin `{name}` cannot be imported: {type(error).__name__}: {error}") from error


def load_hooks(name: str) -> ModuleType:
    """The module of a person's functions that a training calls; one with a name that is never called is refused."""
    module = _imported("hooks", name, name)
    names = [one for one in vars(module) if one.startswith("on_")]
    for wrong in (one for one in names if one not in HOOKS):
        near = difflib.get_close_matches(wrong, HOOKS, 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise PluginError(f"{module.__file__}: `{wrong}` is never called{hint} (there are: {', '.join(HOOKS)})")
    if not names:
        raise PluginError(f"{module.__file__}: no function to call; allowed: {', '.join(HOOKS)}")
    if hasattr(module, "state_dict") != hasattr(module, "load_state_dict"):
        raise PluginError(
            f"{module.__file__}: `state_dict()` and `load_state_dict(state)` come together, or not at all"
        )
    return module


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


@contextmanager
def blaming(who: str) -> Iterator[None]:
    """What a person's code raises in here is told in a line, with its place; the log has the traceback."""
    try:
        yield
    except (EverstepError, MemoryError):  # too little memory is no mistake of the code
        raise
    except Exception as error:
        log.info("%s failed", who, exc_info=True)
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{who} failed: {what} ({place.filename}:{place.lineno})") from error


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


def counts(section: type[Section], name: str) -> bool:
    """True when the field is part of the identity, as its mark says."""
    extra = section.model_fields[name].json_schema_extra
    return not isinstance(extra, dict) or extra.get("identity", True) is not False


def code(module: ModuleType) -> source_digest.Code:
    """The code of a plugin, with the modules of the person's project that it imports."""
    return source_digest.read(module.__name__, Path(str(module.__file__)))


def text_digest(module: ModuleType) -> str:
    """Digest of what the code of a plugin does: its comments, its formatting and its place do not change it."""
    return code(module).digest


def _is_import_path(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _checked(kind: str, name: str, module: ModuleType) -> ModuleType:
    params = getattr(module, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Section)):
        raise PluginError(f"{module.__file__}: needs `class Params(Section)` with its settings (plugin `{name}`)")
    if not callable(getattr(module, ENTRY[kind], None)):
        raise PluginError(f"{module.__file__}: needs a function `{ENTRY[kind]}` (plugin `{name}`)")
    return module


def _unknown(kind: str, name: str) -> str:
    given = shortened(name)
    if kind == "hooks":
        return f"no module `{given}` to import for hooks; give an import path from the project: mypackage.module"
    names = available(kind)
    what = "data set" if kind == "data" else "model"
    if _is_import_path(name):
        return f"no module `{given}` to import as a {what}; in the package: {', '.join(names)}"
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"no {what} `{given}`{hint} (there are: {', '.join(names)}; or an import path: mypackage.module)"

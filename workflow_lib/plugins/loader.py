"""Find and import a plugin: a data set, a model or hooks, each one Python file.

The experiment gives the name of a file in this package or an import path from the project. The class `Params` holds
the settings of a data set or a model.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from workflow_lib.errors import ConfigError, EverstepError, shortened
from workflow_lib.plugins.section import Section
from workflow_lib.plugins.source_digest import INSTALLED
from workflow_lib.runtime import forking
from workflow_lib.text import joined, nearest

log = logging.getLogger(__name__)

ENTRY_POINTS = {"data": "open_source", "models": "build"}  # the function that a plugin must define, by kind
FOLDERS = {"data": "datasets", "models": "models", "trackers": "trackers"}  # in this package, by kind
HOOKS = ("on_train_start", "on_step_end", "on_validation_end", "on_epoch_end", "on_train_end")
Inputs = Literal["images", "tables", "texts"]


class PluginError(ConfigError):
    """A plugin that does not exist, cannot be imported, lacks a required attribute, or raises."""


@cache
def available(kind: str) -> list[str]:
    """Return the names of the data sets (`data`), `models` or `trackers` in the package, sorted."""
    folder = Path(__file__).parents[1] / FOLDERS[kind]
    return sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Return the module of a data set (`data`) or a model (`models`); a dotted name is an import path.

    A model may also be a class or function, `package.module:Name`: the module is then made for it. Raises PluginError
    if there is no such plugin, or if it lacks `Params` or its entry point.
    """
    if kind == "models" and ":" in name:
        from workflow_lib.plugins import model_path  # here, since it needs this module

        return model_path.plugin(name)
    target = name if is_import_path(name) else f"workflow_lib.{FOLDERS[kind]}.{name}"
    if not is_import_path(name) and name not in available(kind):
        raise PluginError(_unknown(kind, name))
    return _checked(kind, name, import_module(kind, name, target))


def import_module(kind: str, name: str, target: str) -> ModuleType:
    """Return the module at an import path; `name` stands for it in messages. Raises PluginError if it fails."""
    if target in sys.modules:
        return sys.modules[target]
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file of the project must not hide an installed module
    try:
        with forking.importing(target):
            return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and (target == error.name or target.startswith(error.name + ".")):
            raise PluginError(_unknown(kind, name, _near(target, error.name))) from error
        raise PluginError(f"{kind} plugin `{name}` needs the module `{error.name}`, which is not installed") from error
    except (Exception, SystemExit) as error:  # SystemExit(0) would look like success
        raise PluginError(f"{kind} plugin `{name}` cannot be imported: {type(error).__name__}: {error}") from error


def load_hooks(target: str) -> ModuleType:
    """Return the module of the user's hooks; raise PluginError if it has none, or an unknown `on_...`."""
    module = import_module("hooks", target, target)
    names = [name for name in vars(module) if name.startswith("on_")]
    for wrong in (name for name in names if name not in HOOKS):
        raise PluginError(
            f"{module.__file__}: `{wrong}` is never called{nearest(wrong, HOOKS)} (hooks: {', '.join(HOOKS)})"
        )
    if not names:
        raise PluginError(f"{module.__file__}: no hook is defined; allowed: {', '.join(HOOKS)}")
    if hasattr(module, "state_dict") != hasattr(module, "load_state_dict"):
        raise PluginError(f"{module.__file__}: define both `state_dict()` and `load_state_dict(state)`, or neither")
    return module


@contextmanager
def user_code_errors(who: str) -> Iterator[None]:
    """Raise a PluginError of one line, with file and line number, for whatever user code raises in the block.

    The traceback is logged. `who` names the function that is called.
    """
    try:
        yield
    except (EverstepError, MemoryError):  # not a mistake in the user code
        raise
    except Exception as error:
        log.info("%s failed", who, exc_info=True)
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if _is_of_user(frame.filename)), frames[-1])
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{who} failed: {what} ({place.filename}:{place.lineno})") from error


def _is_of_user(file: str) -> bool:
    """Return True if the file is neither installed nor part of this package."""
    path = Path(file)
    return INSTALLED.isdisjoint(path.parts) and not path.is_relative_to(Path(__file__).parents[1])


def is_import_path(name: str) -> bool:
    """Return True if the name is a dotted path of identifiers."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _checked(kind: str, name: str, module: ModuleType) -> ModuleType:
    """Return the module; raise PluginError if it lacks `Params` or its entry point."""
    params = getattr(module, "Params", None)
    if not (isinstance(params, type) and issubclass(params, Section)):
        raise PluginError(f"{module.__file__}: needs `class Params(Section)` with its settings (plugin `{name}`)")
    if not callable(getattr(module, ENTRY_POINTS[kind], None)):
        raise PluginError(f"{module.__file__}: needs a function `{ENTRY_POINTS[kind]}` (plugin `{name}`)")
    return module


def _unknown(kind: str, name: str, near: str | None = None) -> str:
    """Return the message for an unknown name; `near` is an import path that may be meant."""
    given = shortened(name)
    hint = f"; did you mean `{near}`?" if near else ""
    if kind == "hooks":
        path = "give an import path from the project: mypackage.module"
        return joined(f"no module `{given}` to import for hooks{hint}", path)
    if kind not in FOLDERS:
        article = "an" if kind[0] in "aeiou" else "a"
        path = "give an import path from the project: mypackage.module:Name"
        return joined(f"no module `{given}` to import for {article} {kind}{hint}", path)
    names = available(kind)
    what = "data set" if kind == "data" else "model"
    hint = _file_hint(name) or hint
    if is_import_path(name):
        return joined(f"no module `{given}` to import as a {what}{hint}", f"in the package: {', '.join(names)}")
    near_names = difflib.get_close_matches(name, names, 1)
    hint = hint or (f"; did you mean `{near_names[0]}`?" if near_names else "")
    path = "mypackage.module" if kind == "data" else "mypackage.module, or mypackage.module:Name"
    return f"no {what} `{given}`{hint} (there are: {', '.join(names)}; or an import path: {path})"


def _file_hint(name: str) -> str:
    """Return what to write for a Python file of the project, as part of a message; empty if the name means none."""
    path = Path(f"{name}.py" if name.isidentifier() else name)
    try:
        if path.suffix != ".py" or not path.is_file():
            return ""
    except OSError:  # a name that is too long
        return ""
    parts = path.with_suffix("").parts
    if len(parts) == 1:  # a name without a dot is one of the package
        return f"; move {path} into a folder, and give `folder.{parts[0]}`"
    return f"; did you mean `{'.'.join(parts)}`?" if all(map(str.isidentifier, parts)) else ""


def _near(target: str, missing: str) -> str | None:
    """Return the import path nearest to a target, of which there is no module `missing`."""
    parent, _, name = missing.rpartition(".")
    module, rest = sys.modules.get(parent), target.removeprefix(missing)
    if hasattr(module, name):
        return f"{parent}:{name}{rest}"
    places = getattr(module, "__path__", []) if parent else [str(Path.cwd()), *sys.path]
    folders = [] if parent else [path.name for path in Path.cwd().iterdir() if path.is_dir()]
    known = {*folders, *(found.name for found in pkgutil.iter_modules(places))}
    near = difflib.get_close_matches(name, sorted(filter(str.isidentifier, known)), 1)
    return ".".join(filter(None, (parent, *near))) + rest if near else None

"""Classes and functions of the user or of an installed package, named by an import path: `package.module:Name`."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workflow_lib.errors import shortened
from workflow_lib.files import blake2b
from workflow_lib.plugins import source_digest
from workflow_lib.plugins.loader import PluginError, import_module

NO_DEFAULT = inspect.Parameter.empty
DEVICE_BUILD = re.compile(r"\+(cpu|xpu|cu\d+|rocm[\d.]+)$")
BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def is_object_path(name: str) -> bool:
    """Return True if the name has the form `package.module:Name`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load_object(kind: str, target: str) -> Any:
    """Return the class or function at `package.module:Name`. `kind` names it in messages, such as `loss`.

    Raises PluginError if the module cannot be imported, or has no callable of this name.
    """
    if not is_object_path(target):
        meant = ":".join(target.rsplit(".", 1))
        hint = f"; did you mean `{meant}`?" if is_object_path(meant) else ""
        raise PluginError(f"`{shortened(target)}` is not an import path of a {kind}: mypackage.module:Name{hint}")
    name, _, attribute = target.partition(":")
    if name == "__main__":  # of a notebook or of this program: a job of the pipeline could not import it
        raise PluginError(
            f"{kind} `{target}` is defined in a notebook or a script, which the jobs of the pipeline cannot import: "
            f"write it to a file of the project, such as nets.py, and name it `nets:{attribute}`"
        )
    module = import_module(kind, name, name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known, value in vars(found).items() if not known.startswith("_") and callable(value)]
            near = difflib.get_close_matches(part, public, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise PluginError(
                f"{getattr(module, '__file__', name)}: there is no `{attribute}`{hint} ({kind} `{target}`)"
            )
        found = getattr(found, part)
    if not callable(found):
        raise PluginError(f"{kind} `{target}` is a {type(found).__name__}; allowed: a class or a function")
    return found


def argument_problem(found: Any, given: Mapping[str, Any], provided: Collection[str] = ()) -> str | None:
    """Return the reason why a class or function cannot be called with these keyword arguments, or None.

    `provided` are the names of arguments that Everstep passes beside them. A signature that cannot be read is accepted.
    """
    known = parameters(found)
    if known is None:
        return None
    has_rest = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    settable = [name for name, parameter in known.items() if parameter.kind in BY_KEYWORD and name not in provided]
    for name in given:
        if name in provided:
            return f"`{name}` is passed by Everstep; leave it out"
        if name not in settable and not has_rest:
            near = difflib.get_close_matches(name, settable, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            return f"`{shortened(name)}` is no argument of it{hint} (arguments: {', '.join(settable) or 'none'})"
    missing = [name for name in settable if known[name].default is NO_DEFAULT and name not in given]
    return f"needs {', '.join(f'`{name}`' for name in missing)}" if missing else None


def parameters(found: Any) -> dict[str, inspect.Parameter] | None:
    """Return the parameters of a class or function without `self`, or None if its signature cannot be read."""
    try:
        return dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return None


def object_code(kind: str, target: str) -> source_digest.Code:
    """Return the code behind `package.module:Name`: that of its module and of the project's modules it imports.

    An installed package is represented by its name and version, since its files change only with the version.
    """
    name = target.partition(":")[0]
    module = import_module(kind, name, name)
    file = getattr(module, "__file__", None)
    if file is not None and source_digest.INSTALLED.isdisjoint(Path(file).parts):
        return source_digest.read(name, Path(file))
    text = _installed(name.partition(".")[0])
    return source_digest.Code(blake2b(text.encode()).hexdigest(), {name: text})


@cache
def _installed(package: str) -> str:
    """Return `name==version` of the distribution that has this package, or the package's name alone.

    The build of torch's packages for a kind of device is left out: a login node may have another one than a GPU node.
    """
    found = importlib.metadata.packages_distributions().get(package, [])
    versions = {name: DEVICE_BUILD.sub("", importlib.metadata.version(name)) for name in sorted(set(found))}
    return ", ".join(f"{name}=={version}" for name, version in versions.items()) or package

"""A model that is named by the import path of its class or function: `model.name: mypackage.nets:Net`.

Its settings under `model.params` are the arguments of the class or function, checked against its signature and its
annotations; one annotated as a Path is a file of the project. The text `data.outputs` among them stands for a number
that the data decides; `FACTS` has the others.
"""

from __future__ import annotations

import collections.abc
import inspect
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType, NoneType
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    WrapValidator,
    create_model,
    model_serializer,
)
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python

from workflow_lib.errors import ConfigError
from workflow_lib.plugins.loader import PluginError
from workflow_lib.plugins.objects import BY_KEYWORD, NO_DEFAULT, load_object, parameters
from workflow_lib.plugins.section import Section
from workflow_lib.text import nearest

# Meaning of each `data.<name>` that may stand among the settings of a model.
FACTS = {
    "outputs": "number of classes, of numbers to predict, or of tokens",
    "features": "numbers in an input",
    "input_shape": "shape of an input",
    "channels": "channels of an image",
    "height": "height of an image",
    "width": "width of an image",
    "context": "tokens in an input",
    "vocabulary": "number of different tokens",
    "categories": "categories of each column of a table, 0 for numbers",
}
REFERENCE = re.compile(r"data\.([a-z_]+)")


def plugin(target: str) -> ModuleType:
    """Return a module with `Params` and `build`, like that of a plugin, for the class or function at the path."""
    found = load_object("model", target)
    module = ModuleType(target, found.__doc__)
    module.__file__ = getattr(sys.modules[target.partition(":")[0]], "__file__", target)
    vars(module).update(Params=_params(found, target), build=_builder(found, target))
    return module


def _builder(found: Any, target: str) -> Callable[[Section, Any], Any]:
    def build(params: Section, spec: Any) -> Any:
        """Return the model; `spec` is the ModelSpec of the data."""
        given = {name: getattr(params, name) for name in _given(params)} | (params.model_extra or {})
        facts = spec.facts()
        arguments = {name: _resolved(value, facts, name) for name, value in given.items()}
        return found(**arguments)

    return build


def _fact_or(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Return a reference to the data as it is, any other value validated."""
    if not isinstance(value, str) or (match := REFERENCE.fullmatch(value)) is None:
        return validate(value)
    if match[1] not in FACTS:
        names = [f"data.{name}" for name in FACTS]
        raise ValueError(f"`{value}` is no fact of the data{nearest(value, names)} (there are: {', '.join(names)})")
    return value


def _no_hidden_weights(value: Any) -> Any:
    """Return a value that is false: weights that a package finds or downloads are not part of a run's identity."""
    if value:
        raise ValueError("weights that a package loads by itself are not part of the run; start from a file of weights")
    return value


HIDDEN = AfterValidator(_no_hidden_weights)


class _Arguments(Section):
    """The arguments that are given; others keep the defaults of the signature, which are part of its code."""

    @model_serializer(mode="plain")
    def _only_given(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _given(self)} | (self.model_extra or {})
        return {name: to_jsonable_python(value) for name, value in given.items()}


class _AnyArguments(_Arguments):
    """The arguments of a signature with `**`, which takes any."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, WrapValidator(_fact_or)]]


def _given(params: BaseModel) -> list[str]:
    """Return the names of arguments that have a value: those in the file, and defaults that are paths."""
    fields = type(params).model_fields
    return [n for n in fields if n in params.model_fields_set or isinstance(getattr(params, n), pathlib.Path)]


@cache
def _params(found: Any, target: str) -> type[Section]:
    """Return the section of settings with a field for each argument of the class or function."""
    known = parameters(found)
    if known is None:  # written in C, say
        return _AnyArguments
    names = _names(found)
    fields: dict[str, Any] = {}
    for name, parameter in known.items():
        is_required = parameter.default is NO_DEFAULT
        if parameter.kind in BY_KEYWORD and not name.startswith("_") and not hasattr(BaseModel, name):
            is_hidden = name == "pretrained" or (name == "weights" and target.startswith("torchvision."))
            annotation = Annotated[Any, HIDDEN] if is_hidden else _usable(parameter.annotation, names)
            is_file = isinstance(parameter.default, pathlib.Path)
            left_out = Field(parameter.default) if is_file else Field(None, validate_default=False)
            fields[name] = (annotation, Field() if is_required else left_out)
        elif is_required and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise PluginError(
                f"model `{target}`: its argument `{name}` cannot be a setting; write a function that calls it"
            )
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    return create_model("Params", __base__=_AnyArguments if takes_any else _Arguments, __module__=__name__, **fields)


def _names(found: Any) -> dict[str, Any]:
    """Return the names that annotations of a class or function may use, also those imported for type checkers alone."""
    function = inspect.unwrap(getattr(found, "__init__", found) if isinstance(found, type) else found)
    usual = {name: getattr(module, name) for module in (typing, collections.abc) for name in module.__all__}
    return usual | {"pathlib": pathlib, "Path": pathlib.Path} | getattr(function, "__globals__", {})


def _usable(annotation: Any, names: dict[str, Any]) -> Any:
    """Return the annotation with references to the data allowed; Any if values of YAML cannot be checked against it."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)
        except Exception:  # a name that only type checkers import
            annotation = Any
    if annotation is NO_DEFAULT:
        annotation = Any
    try:
        TypeAdapter(annotation)
    except PydanticUserError:  # a class of torch, say
        annotation = Any
    members = get_args(annotation) or (annotation,)
    is_text = all(member in (str, pathlib.Path, NoneType) for member in members)
    return annotation if is_text else Annotated[annotation, WrapValidator(_fact_or)]


def _resolved(value: Any, facts: Mapping[str, Any], where: str) -> Any:
    """Return the value with each reference to the data replaced, at any depth."""
    if isinstance(value, dict):
        return {key: _resolved(item, facts, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, facts, f"{where}.{place}") for place, item in enumerate(value))
    if not isinstance(value, str) or (match := REFERENCE.fullmatch(value)) is None or match[1] not in FACTS:
        return value
    if match[1] not in facts:
        there = ", ".join(f"data.{name}" for name in facts)
        raise ConfigError(f"model.params.{where}: this data has no {value} ({FACTS[match[1]]}); it has: {there}")
    return facts[match[1]]

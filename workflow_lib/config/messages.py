"""Error messages, one line for each problem: its place, the setting, the problem, and what is allowed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from workflow_lib.config.annotations import plain, variants
from workflow_lib.config.hints import meant
from workflow_lib.config.run import VARIANTS
from workflow_lib.config.yaml import KeyPath, Origins, dotted
from workflow_lib.errors import shortened
from workflow_lib.plugins import Section
from workflow_lib.text import joined, nearest

SECRET = ("notify",)  # sections whose values are not quoted: one may be a secret that belongs into the environment
LIKE_A_SETTING = 0.75  # similarity of a typo to the name of a setting
NAMED_BY = {"params": "name", "loss_params": "loss"}  # settings of a plugin, and the setting that names it


def messages(
    errors: Sequence[Any], section: type[Section], values: Any, origins: Origins, at: KeyPath = ()
) -> list[str]:
    """Return a message for each validation error of `section`, whose settings are at the key path `at`."""
    lines: dict[str, None] = {}
    for error in errors:
        path, field, owner = _walk(section, error["loc"])
        whole = (*at, *path)
        if error["type"] == "params":
            context = error["ctx"]
            lines.update(dict.fromkeys(messages(context["errors"], context["section"], values, origins, whole)))
            continue
        if error["type"] == "plugin" and path[-1] in NAMED_BY:
            whole = (*whole[:-1], NAMED_BY[path[-1]])
        what = _what(error, field, owner, whole, values)
        lines[f"{_place(origins, whole, error['type'])}{dotted(whole)}: {what}"] = None
    return list(lines)


def _place(origins: Origins, path: KeyPath, kind: str) -> str:
    origin = origins.of(path[:-1] if kind == "missing" else path)
    if path[:1] and path[0] in SECRET and str(origin).startswith("set "):
        origin = str(origin).partition("=")[0]  # without the value that was typed
    return f"{origin}: " if origin else ""


def _walk(section: type[Section], loc: Iterable[Any]) -> tuple[KeyPath, Any, Any]:
    """Return the key path of an error, the annotation or field there, and the section that it belongs to."""
    path: list[Any] = []
    here: Any = section
    owner: Any = section
    for part in loc:
        here = plain(here)
        if isinstance(here, type) and issubclass(here, Section):
            owner = here
            path.append(part)
            here = here.model_fields.get(part)
            if here is None:
                break
        elif (chosen := _variant(here, part)) is not None:
            here = owner = chosen
        elif get_origin(here) in (dict, list, tuple) and part != "[key]":  # pydantic's mark of an error in a key
            path.append(part)
            here = _item(here, part)
        else:
            break
    return tuple(path), here, owner


def _item(annotation: Any, part: Any) -> Any:
    """Return the annotation of one item of a dict, list or tuple."""
    members = get_args(annotation)
    if get_origin(annotation) is dict:
        return members[1]
    return members[part] if get_origin(annotation) is tuple and members[-1] is not ... else members[0]


def _variant(annotation: Any, tag: Any) -> type[Section] | None:
    return variants(annotation).get(tag) if isinstance(tag, str) else None


def _what(error: Any, field: Any, owner: Any, path: KeyPath, values: Any) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return unknown(str(path[-1]), owner.model_fields, _elsewhere(path, owner) or meant(path, value, owner, values))
    if kind == "missing":
        meaning = field.description if isinstance(field, FieldInfo) else ""
        return f"is missing: {meaning}; allowed: {allowed(field)}"
    if kind in ("plugin", "arguments", "value_error"):
        said = str(error["msg"]).removeprefix("Value error, ")
        return joined(said, f"allowed: {allowed(field)}") if kind == "value_error" else said
    if path[:1] and path[0] in SECRET:
        return f"the value is not allowed; allowed: {allowed(field)}"
    if kind.startswith("union_tag"):
        key = "name" if len(path) == 1 else "type"
        names = list(variants(plain(field)))
        given = value.get(key) if isinstance(value, dict) else value
        if not isinstance(value, dict):
            return f"{shown(value)} is not allowed; a mapping with `{key}`: {', '.join(names)}"
        if given is None:
            return f"`{key}` is missing; allowed: {', '.join(names)}"
        kind = path[-1] if key == "name" else key
        return joined(f"no {kind} {shown(given)}{nearest(str(given), names)}", f"allowed: {', '.join(names)}")
    near = nearest(value, get_args(plain(field))) if kind == "literal_error" else ""
    quote = "; in quotes it is text" if kind == "string_type" else ""
    return joined(f"{shown(value)} is not allowed{near}", f"allowed: {allowed(field)}{quote}")


def unknown(name: str, names: Iterable[str], elsewhere: str = "") -> str:
    """Return the message for an unknown setting, with the closest name and all names."""
    names = list(names)
    valid = f"the settings here are: {', '.join(names)}" if names else "there are no settings here"
    return joined(f"no such setting{elsewhere or nearest(name, names, LIKE_A_SETTING)}", valid)


def _elsewhere(path: KeyPath, owner: type[Section]) -> str:
    """Return the names of the section that have this setting, if the chosen name lacks it, as part of a message."""
    if len(path) != 2 or path[0] not in VARIANTS or "name" not in owner.model_fields:
        return ""
    having = [name for name, fields in VARIANTS[str(path[0])][1].items() if path[1] in fields]
    owners = " and ".join(f"`{name}`" for name in having)
    return f" for {owner.model_fields['name'].default}: it belongs to {path[0]} {owners}" if having else ""


def shown(value: Any) -> str:
    """Return the value as YAML users write it, shortened."""
    if isinstance(value, bool | type(None)):
        return {True: "true", False: "false", None: "null"}[value]
    return shortened(repr(value))


def allowed(field: Any) -> str:
    """Return the allowed values of a setting in words: `a whole number, at least 1`."""
    if not isinstance(field, FieldInfo):
        return _allowed(field, [])
    extra = field.json_schema_extra
    own = extra.get("allowed") if isinstance(extra, dict) else None
    return str(own) if own else _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: Iterable[Any]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for item in args[1:] for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _allowed(args[0], inner)
    if found := variants(annotation):
        words = [f"settings of one of {', '.join(found)}"]
    elif origin in (Union, types.UnionType):
        words = [_allowed(m, metadata if m in (int, float, str) else []) for m in args if m is not type(None)]
    else:
        return ", ".join([_kind(annotation), *_bounds(metadata)])
    return ", or ".join([*words, *(["null"] if type(None) in args else [])])


def _kind(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str(args[0]) if len(args) == 1 else f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list):
        length = f" of {len(args)}" if origin is tuple and args[-1] is not ... else ""
        return f"a list{length}" + (f", each {_allowed(args[0], [])}" if args[0] is not Any else "")
    if origin is dict:
        return "a mapping" + (f", each value {_allowed(args[1], [])}" if args[1] is not Any else "")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a mapping of settings ({', '.join(annotation.model_fields)})"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    plain = annotation.__name__ if isinstance(annotation, type) else re.sub(r"\b[a-z_.]+\.", "", str(annotation))
    return names.get(annotation, "a value" if annotation is Any else plain)


def _bounds(metadata: Iterable[Any]) -> list[str]:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found: list[str] = []
    for item in metadata:
        for key, word in words.items():
            if (bound := getattr(item, key, None)) is not None:
                found.append(f"{word} {bound}")
        if isinstance(item, annotated_types.MinLen):
            found.append("not empty" if item.min_length == 1 else f"{item.min_length} or more")
        if getattr(item, "pattern", None):
            found.append(f"of the form {item.pattern}")
    return found

"""Digests of settings: equal for equal settings, on any machine. Computed from canonical JSON of the identity."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic_core import to_jsonable_python

from workflow_lib import plugins
from workflow_lib.config import sources
from workflow_lib.config.init import Init
from workflow_lib.config.run import Data, Model, Training
from workflow_lib.config.step import run_arguments
from workflow_lib.files import blake2b
from workflow_lib.plugins import Section, in_identity
from workflow_lib.plugins.section import is_added, stored_name


def identity(section: Section) -> dict[str, Any]:
    """Return the settings that can change a result, as JSON values, without those marked NOT_IDENTITY.

    A renamed setting keeps its old name here, and a setting marked ADDED is left out while it has its default, so that
    neither a rename nor a new setting changes a digest.
    """
    excluded = _excluded(type(section))
    values = section.model_dump(mode="json", exclude=set(excluded))
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if name not in excluded and isinstance(inner, Section):
            values[name] = identity(inner)
    if isinstance(section, Init):
        values["from"] = sources.without_name(values["from"])
    if isinstance(section, Training):
        runs = run_arguments(section.step, section.step_params)
        values["step_params"] |= {name: sources.without_name(run) for name, run in runs.items()}
    for name, default in _added(type(section)).items():
        if name in values and getattr(section, name) == default:
            del values[name]
    for name, old in _renamed(type(section)).items():
        values[old] = values.pop(name)
    if isinstance(section, Data | Model):
        params = plugins.load("data" if isinstance(section, Data) else "models", section.name).Params
        excluded, added = _excluded(params), _added_dumped(params)
        values["params"] = {
            k: v for k, v in values["params"].items() if k not in excluded and not (k in added and v == added[k])
        }
    return values


def stored(section: Section) -> dict[str, Any]:
    """Return all settings as JSON values for a file, without those marked ADDED that have their default.

    So a new setting does not change the files of experiments and runs that do not use it.
    """
    values = section.model_dump(mode="json")
    for name in type(section).model_fields:
        if isinstance(inner := getattr(section, name), Section):
            values[name] = stored(inner)
    for name, default in _added(type(section)).items():
        if getattr(section, name) == default:
            del values[name]
    return values


@cache
def _excluded(section: type[Section]) -> frozenset[str]:
    return frozenset(name for name in section.model_fields if not in_identity(section, name))


@cache
def _added(section: type[Section]) -> dict[str, Any]:
    """Return the defaults of the settings marked ADDED."""
    fields = section.model_fields
    return {name: fields[name].get_default(call_default_factory=True) for name in fields if is_added(section, name)}


@cache
def _added_dumped(section: type[Section]) -> dict[str, Any]:
    """Return the defaults of the settings marked ADDED as JSON values."""
    return {name: to_jsonable_python(default) for name, default in _added(section).items()}


@cache
def _renamed(section: type[Section]) -> dict[str, str]:
    stored = {name: stored_name(section, name) for name in section.model_fields}
    return {name: old for name, old in stored.items() if old != name}


def canonical(value: Any) -> str:
    """Return the same text for equal JSON values: sorted keys, shortest numbers, no -0.0. Raises ValueError for NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # The search in the text is fast, but also finds strings and numbers such as -0.01.
    return canonical(_without_negative_zero(value)) if "-0.0" in text and _has_negative_zero(value) else text


def _has_negative_zero(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_negative_zero(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_negative_zero(item) for item in value)
    return isinstance(value, float) and repr(value) == "-0.0"


def _without_negative_zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_negative_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def digest(value: Any, person: str) -> str:
    """Return 32 hex digits of BLAKE2b over canonical JSON.

    `person`, the personalization of BLAKE2 (up to 16 bytes), separates kinds of digests.
    """
    return digest_text(canonical(value), person)


def digest_text(text: str, person: str) -> str:
    """Return `digest` of a value that is given as its canonical text."""
    return blake2b(text.encode(), kind=person).hexdigest()

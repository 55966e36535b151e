"""Equal settings have equal names on any machine: a digest of canonical JSON of what can change a result."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from workflow_lib import plugins
from workflow_lib.config.run import Data, Model
from workflow_lib.plugins import Section
from workflow_lib.plugins import in_identity as in_identity


def identity(section: Section) -> dict[str, Any]:
    """The settings that can change the result, as JSON values; fields marked otherwise are left out."""
    aside = _aside(type(section))
    values = section.model_dump(mode="json", exclude=set(aside))
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if name not in aside and isinstance(inner, Section):
            values[name] = identity(inner)
    if isinstance(section, Data | Model):
        params = plugins.load("data" if isinstance(section, Data) else "models", section.name).Params
        values["params"] = {k: v for k, v in values["params"].items() if k not in _aside(params)}
    return values


@cache
def _aside(section: type[Section]) -> frozenset[str]:
    return frozenset(name for name in section.model_fields if not in_identity(section, name))


def canonical(value: Any) -> str:
    """One text for equal JSON values: sorted keys, shortest numbers, no negative zero; NaN is refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
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
    """32 hex digits of BLAKE2b over canonical JSON; `person` (up to 16 bytes) keeps kinds of digest apart."""
    return digest_text(canonical(value), person)


def digest_text(text: str, person: str) -> str:
    """The same, of a text that is canonical already."""
    return hashlib.blake2b(text.encode(), digest_size=16, person=person.encode()).hexdigest()

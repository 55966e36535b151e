"""Sections behind the annotation of a setting, which may be one of several variants."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from workflow_lib.config.by_path import BY_PATH
from workflow_lib.plugins import Section


def plain(annotation: Any) -> Any:
    """Return the annotation without Annotated, FieldInfo and `| None`."""
    if isinstance(annotation, FieldInfo):
        return plain(annotation.annotation)
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [m for m in get_args(annotation) if m is not type(None)]
        return plain(members[0]) if len(members) == 1 else annotation
    return annotation


def variants(annotation: Any) -> dict[str, type[Section]]:
    """Return the sections that a field with variants may hold, by the name of each; empty for any other field."""
    annotation = plain(annotation)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    found: dict[str, type[Section]] = {}
    for member in map(plain, members):
        if isinstance(member, type) and issubclass(member, Section):
            key = "name" if "name" in member.model_fields else "type"
            names = get_args(member.model_fields[key].annotation)
            found[str(names[0]) if names else BY_PATH] = member
    return found


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field may hold: none for a plain setting, several for one with variants."""
    whole = plain(annotation)
    if isinstance(whole, type) and issubclass(whole, Section):
        return [whole]
    return list(variants(whole).values())

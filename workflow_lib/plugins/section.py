"""The base class of every section of the experiment file and of every plugin's `Params`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Typed settings: immutable, without unknown names, with finite numbers; paths are relative to the project root."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _bool_and_null(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        # Pydantic would turn `true` into 1 for a number.
        if isinstance(value, bool) and not _takes_bool(annotation):
            raise ValueError(f"{str(value).lower()} is not a value for this setting")
        return _empty(annotation) if value is None else value

    @field_validator("*", mode="after")
    @classmethod
    def _relative_to_root(cls, value: Any, info: ValidationInfo) -> Any:
        return project_path(value, (info.context or {}).get("root")) if isinstance(value, Path) else value


def reject_unused(section: Section, names: Iterable[str], without: str) -> None:
    """Raise an error of validation for a setting that was changed but has no effect `without` another one."""
    for name in names:
        if getattr(section, name) != type(section).model_fields[name].get_default(call_default_factory=True):
            message = f"`{name}` has no effect without {without}; remove it"
            raise PydanticCustomError("arguments", "{message}", {"message": message})


def _takes_bool(annotation: Any) -> bool:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes_bool(members[0])
    if origin in (Union, UnionType):
        return any(
            _takes_bool(member) for member in members if get_origin(member) is not Literal or _names_bool(member)
        )
    return annotation not in (int, float, str, type(None))


def _names_bool(literal: Any) -> bool:
    return any(isinstance(value, bool) for value in get_args(literal))


def _empty(annotation: Any) -> Any:
    """Return the value of a setting left empty in YAML: an empty section, mapping or list if one is expected."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _empty(members[0])
    if origin in (dict, list, tuple):
        return {} if origin is dict else []
    if origin in (Union, UnionType):
        return None if type(None) in members else _empty(members[0])
    return {} if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def project_path(path: Path, root: Path | None) -> Path:
    """Return the path without `.` and `..`, relative to the root if it is inside of it.

    Equal files have equal paths in every clone, so the digest of a run does not depend on the clone's folder.
    """
    lexical = Path(os.path.normpath(path.expanduser()))
    if root is not None and lexical.is_absolute() and lexical.is_relative_to(root):
        return lexical.relative_to(root)
    return lexical


# json_schema_extra for a setting that cannot change the result of a run: it is not part of the run's digest.
NOT_IDENTITY: dict[str, Any] = {"identity": False}


# json_schema_extra for a setting that is newer than version 0.2: at its default it is not part of the run's digest, so
# that runs planned before it was added keep their names. Its default may therefore never change.
ADDED: dict[str, Any] = {"added": True}


def renamed_from(old: str) -> dict[str, Any]:
    """Return json_schema_extra for a renamed setting: digests and stored files keep its old name."""
    return {"identity": old}


def stored_name(section: type[Section], name: str) -> str:
    """Return the name of a setting in digests and stored files: its current name, or its old name if it was renamed."""
    extra = section.model_fields[name].json_schema_extra
    old = extra.get("identity") if isinstance(extra, dict) else None
    return old if isinstance(old, str) else name


def in_identity(section: type[Section], name: str) -> bool:
    """Return True if the setting can change the result of a run; False if it is marked NOT_IDENTITY."""
    extra = section.model_fields[name].json_schema_extra
    return not isinstance(extra, dict) or extra.get("identity", True) is not False


def is_added(section: type[Section], name: str) -> bool:
    """Return True if the setting is marked ADDED."""
    extra = section.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("added") is True

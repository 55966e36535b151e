"""Arguments of the public functions: one of a wrong type is a ConfigError that says what is allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from workflow_lib.errors import ConfigError

PATH = (str, os.PathLike)


def check_type(name: str, value: object, types: type | tuple[type, ...], allowed: str) -> None:
    """Raise ConfigError if the value of an argument has none of the types; True and False are no numbers."""
    if isinstance(value, types) and not (isinstance(value, bool) and types is not bool):
        return
    given = "None" if value is None else f"a {type(value).__name__}"
    raise ConfigError(f"{name}: is {given}; allowed: {allowed}")


def path_of(name: str, value: Any, allowed: str) -> Path:
    """Return the path that an argument gives. Raises ConfigError for another type, and for a text that is no path."""
    check_type(name, value, PATH, allowed)
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name}: {text!r} is not a path; allowed: {allowed}")
    return Path(text)


def check_device(name: str, value: object) -> None:
    """Raise ConfigError if the value of an argument is not the name of a device, on whatever machine."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ConfigError(f"{name}: {value!r} is not allowed; allowed: auto, cpu, cuda and cuda:N")

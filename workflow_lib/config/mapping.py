"""An experiment that a program gives as a mapping: its values in the types of YAML, and its text as a file."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from workflow_lib.config.compose import MAPPING
from workflow_lib.config.template import inline
from workflow_lib.config.yaml import KeyPath, dotted, parse_yaml
from workflow_lib.errors import ConfigError, EverstepError

ALLOWED = "text, numbers, true or false, None, paths, and lists, arrays and mappings of these"


def plain(value: Any, path: KeyPath = ()) -> Any:
    """Return the value in the types of YAML: arrays and tuples as lists, paths as text.

    Raises ConfigError, with the key path, for anything that an experiment file cannot contain.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{dotted(path) or 'the mapping'}: the key {key!r} is not a text")
        return {str(key): plain(item, (*path, key)) for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy, pandas and torch
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return [plain(item, (*path, number)) for number, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{dotted(path)}: {value} is not allowed; numbers are finite")
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise ConfigError(f"{dotted(path)}: a {type(value).__name__} cannot be a setting; allowed: {ALLOWED}")


def text_of(values: Mapping[str, Any], heading: str) -> str:
    """Return the text of an experiment file that begins with a comment.

    Raises ConfigError for a character that YAML has not, and EverstepError if the text would be read with other values.
    """
    text = "\n".join([f"# {heading}", *_lines(values)]) + "\n"
    if parse_yaml(text, MAPPING, numbered=False)[0] != values:
        raise EverstepError("the experiment cannot be written as YAML: it would be read with other values")
    return text


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{inline(key)}:"
            yield from (f"  {line}" for line in _lines(value))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"{inline(key)}:"
            yield from (f"  - {inline(item)}" for item in value)
        else:
            yield f"{inline(key)}: {inline(value)}"


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Return each setting as the text that overrides it on the command line: `optimizer.lr=0.01`."""
    texts = [f"{name}={inline(value)}" for name, value in plain(settings).items()]
    # only a text with spaces is split into words, and loses its quotes
    return [shlex.quote(text) if re.search(r"\s", text) else text for text in texts]

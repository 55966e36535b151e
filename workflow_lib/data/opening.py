"""Open the source of a data set; every error begins with the name of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from workflow_lib import config, plugins
from workflow_lib.data.source import Source, check_source
from workflow_lib.errors import DataError


@contextmanager
def opened(data: config.Data, plugin: ModuleType, root: Path) -> Iterator[Source]:
    """Yield the checked source, and close it at the end."""
    with errors_of(data.name), closing(open_source(data, plugin, root)) as source:
        yield source


def open_source(
    data: config.Data, plugin: ModuleType, root: Path, index: Mapping[str, np.ndarray] | None = None
) -> Source:
    """Return the checked source; `index` is what an earlier one had as `Source.index`."""
    name, params = f"data set `{data.name}`", plugin.Params.model_validate(data.params)
    with plugins.user_code_errors(f"{name}: open_source()"):
        given = plugin.open_source(params, root, index) if index else plugin.open_source(params, root)
    return checked(given, name)


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Put the name of the data set before the message of a DataError that is raised in the block."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data set `{name}`: {error}") from error


def checked(given: Source, name: str) -> Source:
    """Return the source after checking it; errors raised by its functions name the data set."""
    check_source(given)
    optional = [function for function in ("learn_from", "read_targets") if getattr(given, function) is not None]
    names = ("read", "close", *optional)
    return replace(given, **{f: plugins.user_code_errors(f"{name}: {f}()")(getattr(given, f)) for f in names})

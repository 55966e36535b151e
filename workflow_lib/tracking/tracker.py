"""Interface of a tracker, and lookup by its name.

A tracker is a module of `workflow_lib/trackers` with two names: `REQUIRES`, the packages that must be installed, and
`open_tracker(folder)`, which imports them and returns a `Tracker`. The settings of a section `tracking.<name>`, if
there is one, are further arguments.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

if TYPE_CHECKING:
    from types import TracebackType

    from workflow_lib.tracking.curves import Curve


class Tracker(ABC):
    """A tool that curves are copied to; closed at the end of a `with` block."""

    @abstractmethod
    def write(self, curve: Curve) -> int:
        """Make the tool's copy hold exactly the rows of the curve, and return how many are new in it.

        The process may be killed at any time; the next call must complete the copy without duplicates.
        """

    def close(self) -> None:  # noqa: B027
        """Release the tool's resources; does nothing by default."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TrackerModule(Protocol):
    """The two names of a tracker's module."""

    REQUIRES: tuple[str, ...]

    def open_tracker(self, folder: Path, **settings: Any) -> Tracker:
        """Return the tracker that keeps its copies in the folder; settings are those of `tracking.<name>`, if any."""


def load(name: str) -> TrackerModule:
    """Return the module of a tracker, which imports no package of the tool."""
    return cast("TrackerModule", importlib.import_module(f"workflow_lib.trackers.{name}"))


def open_tracker(name: str, folder: Path, settings: Mapping[str, Any] | None = None) -> Tracker:
    """Return the tracker of that name, with its copies in the folder, and with the settings of its own section."""
    return load(name).open_tracker(folder, **(settings or {}))

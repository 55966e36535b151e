"""Where the view of a pipeline is shown: on a terminal, or in the cell of a notebook; elsewhere there is none."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from rich import live
from rich.console import Console, ConsoleDimensions, RenderableType

CELL = ConsoleDimensions(width=110, height=40)  # columns and lines of the view in a notebook
CELL_S = 1.0  # between two views in a notebook, which sends each to the browser
PREFORMATTED = '<pre style="line-height: 1.3; overflow-x: auto">{code}</pre>'
KERNEL = "ZMQInteractiveShell"  # the shell of a notebook's kernel


def open_display() -> Live | None:
    """Return the display of standard output; None if it can show lines only."""
    if is_notebook():
        return Cell()
    console = Console()
    return Terminal(console) if sys.stdout.isatty() and not console.is_dumb_terminal else None


def is_notebook() -> bool:
    """Return True in the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == KERNEL


class Terminal:
    """The view below the lines of a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = live.Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    @property
    def size(self) -> ConsoleDimensions:
        """The columns and lines that a view may have."""
        return self._live.console.size

    def show(self, view: RenderableType) -> None:
        """Replace the view."""
        self._live.update(view, refresh=True)

    def say(self, line: str) -> None:
        """Print a line, or the lines that it is wrapped to, above the view."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the view."""
        self._live.stop()


class Cell:
    """The view as the first output of a notebook's cell, which changes in place; lines follow below it."""

    size = CELL

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(_html(""), display_id=True)
        self._next = 0.0

    def show(self, view: RenderableType) -> None:
        """Replace the view, but not more often than a browser needs."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + CELL_S
        console = Console(file=io.StringIO(), record=True, width=CELL.width, force_jupyter=False, force_terminal=True)
        console.print(view)
        self._handle.update(_html(console.export_html(inline_styles=True, code_format=PREFORMATTED)))

    def say(self, line: str) -> None:
        """Print a line below the view."""
        print(line, flush=True)

    def close(self) -> None:
        """Remove the view."""
        self._handle.update(_html(""))


Live = Terminal | Cell  # where a view is shown


def _html(text: str) -> Any:
    from IPython.display import HTML

    return HTML(text)

"""A text that is shown again and again on a terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from workflow_lib.errors import ConfigError

INTERVAL_S = 2.0
START, END = "\x1b[?1049h", "\x1b[?1049l"  # the second screen of a terminal, so that the first stays as it was
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(text: Callable[[], str], environment: Mapping[str, str] = os.environ) -> None:
    """Show the text every two seconds and when the terminal changes its size, as much as fits, until Ctrl-C.

    Then print it once more. Raises ConfigError if the output is not a terminal, or one that cannot move its cursor.
    """
    if not sys.stdout.isatty() or environment.get("TERM", "dumb") == "dumb":
        needed = "a terminal that can move its cursor, unlike TERM=dumb" if sys.stdout.isatty() else "a terminal"
        raise ConfigError(f"--watch needs {needed}; leave it out to print the table once, or use --json")
    is_due = threading.Event()
    before = signal.signal(signal.SIGWINCH, lambda *_: is_due.set())
    sys.stdout.write(START)
    try:
        with suppress(KeyboardInterrupt):
            while True:
                is_due.clear()
                lines, height = text().splitlines(), os.get_terminal_size().lines - 1
                if len(lines) > height:
                    lines[height - 1 :] = [f"... and {len(lines) - height + 1} more lines; a larger window shows them"]
                sys.stdout.write(HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + REST_OF_SCREEN)
                sys.stdout.flush()
                is_due.wait(INTERVAL_S)
    finally:
        signal.signal(signal.SIGWINCH, before)
        sys.stdout.write(END)
    print(text())

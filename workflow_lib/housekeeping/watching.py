"""A text that is shown again and again on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from workflow_lib.errors import ConfigError

INTERVAL_S = 2.0
START, END = "\x1b[?1049h", "\x1b[?1049l"  # the second screen of a terminal, so that the first stays as it was
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(text: Callable[[], str]) -> None:
    """Show the text every two seconds until Ctrl-C, as much as fits; then print it once more.

    Raises ConfigError if the output is not a terminal.
    """
    if not sys.stdout.isatty():
        raise ConfigError("--watch needs a terminal; leave it out to print the table once, or use --json")
    sys.stdout.write(START)
    try:
        with suppress(KeyboardInterrupt):
            while True:
                lines = text().splitlines()[: os.get_terminal_size().lines - 1]
                sys.stdout.write(HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + REST_OF_SCREEN)
                sys.stdout.flush()
                time.sleep(INTERVAL_S)
    finally:
        sys.stdout.write(END)
    print(text())

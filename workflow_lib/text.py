"""Text for counts, numbers, durations, sizes, tables and nested settings, used by every message, table and report."""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def count(number: int, noun: str) -> str:
    """Return the number with its noun: `1 run`, `2 runs`, `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(given: object, names: Iterable[object], similarity: float = 0.6) -> str:
    """Return `; did you mean ...?` with the name that begins with the given text, has a word that does, or is closest.

    An empty string if none does, and none has the similarity (0 to 1).
    """
    text, known = str(given), [str(name) for name in names]
    begun = [name for name in known if name.startswith(text)] if len(text) > 1 else []
    word = re.compile(rf"(?<![A-Za-z]){re.escape(text)}")
    containing = [name for name in known if word.search(name)] if len(text) > 2 else []
    close = (
        sorted(begun, key=len) or sorted(containing, key=len) or difflib.get_close_matches(text, known, 1, similarity)
    )
    return f"; did you mean `{close[0]}`?" if close else ""


def joined(said: str, more: str) -> str:
    """Return two parts of a message in one line: `said; more`, or `Said? More` after a question."""
    return f"{said} {more[:1].upper()}{more[1:]}" if said.endswith("?") else f"{said}; {more}"


def decimal(value: float | None, digits: int = 4) -> str:
    """Return the number with thousands separators, and fewer digits if it is large; `–` for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{max(0, digits - 3)}f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def training_place(epoch: float, step: int) -> str:
    """Return the place of a validation: `epoch 3` at the end of an epoch, `step 750` within one."""
    return f"epoch {epoch:.0f}" if epoch == int(epoch) else f"step {step:,}"


def duration(seconds: float) -> str:
    """Return the seconds in the largest unit that makes at least 2: `1.5 s`, `119 s`, `2.0 min`, `36 h`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s"


def byte_size(number: float) -> str:
    """Return the number of bytes in decimal units: `0.3 MB`, `12.5 GB`."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return a line for each row, with aligned columns; columns whose index is in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    return [
        cell.rjust(width) if place in right else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def terminal_width() -> int | None:
    """Return the columns of the terminal on standard output; None if it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int, first: str = "", indent: str = "", *, breaks_words: bool = False) -> list[str]:
    """Return the text in lines of `width` characters that begin with `first` and then with `indent`.

    A word that is too long, such as a path, makes a longer line, so that it can be copied, or else is broken.
    """
    if len(first + text) <= width and text.isprintable() and text == text.strip():
        return [first + text]  # the usual case; `textwrap.wrap` is slow
    return textwrap.wrap(
        text,
        max(width, len(indent) + 1),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=breaks_words,
        break_on_hyphens=False,
    )


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted names; an empty mapping is a value."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{name}.{key}" if name else key)
    return flat


def slug(text: str) -> str:
    """Return the text in characters that are safe in a path, at most 64 of them."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text.lower())[:64].strip("-.")

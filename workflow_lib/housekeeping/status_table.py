"""The status of runs as text for the terminal."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from workflow_lib.housekeeping.status import Row
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account
from workflow_lib.text import aligned, count, duration

SHORTEST_NAME = 24
WIDTH = 100
HEADINGS = ("run", "state", "step", "epoch", "samples/s", "val_loss", "metric", "saved")
RIGHT = (2, 3, 4, 5, 7)  # columns of numbers
FAILED = ("failed", "diverged", "stalled", "damaged")
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
RED, GREEN, YELLOW, BLUE = (f"\x1b[{number}m" for number in (31, 32, 33, 34))
COLOURS = {
    **dict.fromkeys(FAILED, RED),
    **dict.fromkeys(("stopped", "killed", "waiting"), YELLOW),
    "finished": GREEN,
    "running": BLUE,
}


def table(rows: Sequence[Row], *, is_coloured: bool = False, width: int = WIDTH) -> str:
    """Return the rows, the number of runs in each state and their total cost, in lines of at most `width` characters.

    A line is longer only if the columns behind a name of SHORTEST_NAME characters are.
    """
    if not rows:
        return "no run has been started here"
    heading, *cells = aligned([HEADINGS, *_shortened([_cells(row) for row in rows], width)], right=RIGHT)
    place = heading.index(HEADINGS[1])
    if is_coloured:
        heading = f"{BOLD}{heading}{PLAIN}"
        cells = [_coloured(cell, place, row["state"]) for cell, row in zip(cells, rows, strict=True)]
    lines = [line for row, cell in zip(rows, cells, strict=True) for line in (cell, *_details(row))]
    cost = spent(accounting.total(Account(**row["account"]) for row in rows))
    return "\n".join([heading, *lines, "", *_wrapped(_counted_states(rows), ""), *_wrapped(cost, "")])


def may_colour(environment: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Return True if text may be coloured: on a terminal that can, unless NO_COLOR is set (https://no-color.org)."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def _coloured(line: str, place: int, state: str) -> str:
    colour = COLOURS.get(state)
    if colour is None:
        return line
    return f"{line[:place]}{colour}{state}{PLAIN}{line[place + len(state) :]}"


def _counted_states(rows: Sequence[Row]) -> str:
    """Return the number of runs in each state; those that failed come first."""
    found = Counter(row["state"] for row in rows)
    order = sorted(found, key=lambda state: (state not in FAILED, state))
    return f"{count(len(rows), 'run')}: {', '.join(f'{found[state]:,} {state}' for state in order)}"


def _shortened(rows: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Return the rows with names that leave room for the other columns."""
    others = [max(len(heading), *(len(row[place]) for row in rows)) for place, heading in enumerate(HEADINGS) if place]
    longest = max(SHORTEST_NAME, width - sum(others) - 2 * len(others))
    return [(_short(row[0], longest), *row[1:]) for row in rows]


def spent(account: Account) -> str:
    """Return the account as text."""
    gpu = f", {account.used_gpu_s / 3600:.2f} GPU-hours" if account.used_gpu_s else ""
    text = f"used {duration(account.used_s)} in {count(account.attempts, 'attempt')}{gpu}"
    if account.lost_s:
        share = 100 * account.lost_s / account.used_s
        again = f", {account.redone:,} of {account.steps:,} steps computed again" if account.redone else ""
        text += f"; lost to interruptions {duration(account.lost_s)} ({share:.1f} %{again})"
    if account.failed:
        text += f"; {count(account.failed, 'attempt')} failed without an interruption"
        text += f" ({duration(account.failed_s)} lost to that)" if account.failed_s else ""
    if account.reused:
        times = "once" if account.reused == 1 else f"{account.reused} times"
        text += f"; saved by reuse {duration(account.saved_s)} (needed again {times} and not trained)"
    return text


def _cells(row: Row) -> tuple[str, ...]:
    age = row["checkpoint_age_s"]
    return (
        row["run"],
        row["state"],
        f"{row['step']}/{row['steps']}" if row["steps"] else str(row["step"]),
        f"{row['epoch']}/{row['epochs']}" if row["epochs"] else str(row["epoch"]) if row["steps"] else "-",
        f"{row['samples_per_s']:,.0f}" if row["samples_per_s"] else "-",
        *_metrics(row["metrics"]),
        "-" if age is None else f"{duration(age)} ago",
    )


def _metrics(values: Mapping[str, float | None]) -> tuple[str, str]:
    """Return the loss and the next metric of the last validation, which is named."""
    loss = values.get("val_loss")
    other = next(((name, value) for name, value in values.items() if name != "val_loss" and value is not None), None)
    text = f"{other[0].removeprefix('val_')} {other[1]:.3g}" if other else "-"
    return "-" if loss is None else f"{loss:.4g}", text


def _short(name: str, width: int) -> str:
    """Return the name, shortened in front of its digest if it is too long."""
    return name if len(name) <= width else f"{name[: width - 14]}…{name[-13:]}"


def _details(row: Row) -> Iterator[str]:
    if row["why"]:
        yield from _wrapped(row["why"])
    if row["attempts"]:
        parts = [
            _counted_ends(attempt["ended"] for attempt in row["attempts"]),
            _owner_text(row["owner"]),
            spent(Account(**row["account"])),
        ]
        yield from _wrapped("; ".join(filter(None, parts)))


def _counted_ends(ends: Iterable[str]) -> str:
    """Return how the attempts ended, with equal consecutive ends counted."""
    words = (re.sub("^stopped (by|before the) ", "", end.split(":")[0]) for end in ends)
    counted = [(word, len(list(group))) for word, group in groupby(words)]
    return "attempts: " + ", ".join(word if count == 1 else f"{count} x {word}" for word, count in counted)


def _owner_text(owner: Row | None) -> str:
    if owner is None:
        return ""
    job = f", job {owner['job']}" if owner["job"] else ""
    beat = "" if owner["is_running_here"] else f", last heartbeat {duration(owner['silent_s'])} ago"
    return f"{'owner' if owner['is_alive'] else 'last owner'}: pid {owner['pid']} on {owner['host']}{job}{beat}"


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    if len(indent + text) <= WIDTH and text.isprintable() and text == text.strip():
        return [indent + text]  # the usual case; `textwrap.wrap` is slow
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)

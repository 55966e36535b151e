"""The status of runs as text for the terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from workflow_lib.housekeeping.status import Row
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account
from workflow_lib.text import aligned, count, duration, wrapped

SHORTEST_NAME = 24
WIDTH = 100
HEADINGS = ("run", "state", "step", "epoch", "samples/s", "ETA", "val_loss", "metric", "saved", "attempts")
LEFT = ("run", "state", "metric")  # columns that are aligned to the left
# columns that a narrow terminal lacks, in this order
LESS = ("attempts", "saved", "samples/s", "epoch", "val_loss", "ETA", "step", "metric")
DONE = ("finished", "pruned", "trained", "evaluating", "exporting")  # trainings that have nothing left to do
FAILED = ("failed", "diverged", "stalled", "damaged")
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
RED, GREEN, YELLOW, BLUE = (f"\x1b[{number}m" for number in (31, 32, 33, 34))
COLOURS = {
    **dict.fromkeys(FAILED, RED),
    **dict.fromkeys(("stopped", "killed", "waiting"), YELLOW),
    "finished": GREEN,
    **dict.fromkeys(("running", "evaluating", "exporting"), BLUE),
}


def table(rows: Sequence[Row], *, is_coloured: bool = False, width: int = WIDTH, is_terminal: bool = False) -> str:
    """Return the rows, the number of runs in each state and their total cost, in lines of at most `width` characters.

    On a terminal, columns that do not fit are left out. Elsewhere a line is longer if the columns behind a name of
    SHORTEST_NAME characters are.
    """
    if not rows:
        return f"no run has been started in {Path.cwd()}"
    cells = [_cells(row) for row in rows]
    headings = _headings(cells, width, is_terminal=is_terminal)
    shown = _shortened([[cell[name] for name in headings] for cell in cells], headings, width)
    right = [place for place, name in enumerate(headings) if name not in LEFT]
    heading, *lines = aligned([headings, *shown], right=right)
    place = heading.index(HEADINGS[1])
    if is_coloured:
        heading = f"{BOLD}{heading}{PLAIN}"
        lines = [_coloured(line, place, row["state"]) for line, row in zip(lines, rows, strict=True)]
    most = min(width, WIDTH) if is_terminal else WIDTH  # of the text below the table
    all_lines = [part for row, line in zip(rows, lines, strict=True) for part in (line, *_details(row, most))]
    cost = spent(accounting.total(Account(**row["account"]) for row in rows))
    return "\n".join([heading, *all_lines, "", *_wrapped(_counted_states(rows), most, ""), *_wrapped(cost, most, "")])


def _headings(cells: Sequence[Mapping[str, str]], width: int, *, is_terminal: bool) -> list[str]:
    """Return the columns that are shown, without those that say nothing; elsewhere than on a terminal, most of them."""
    usual = {"ETA": "-", "attempts": "1"}
    headings = [
        name for name in HEADINGS if name not in usual or any(cell[name] not in ("0", usual[name]) for cell in cells)
    ]
    least = min(SHORTEST_NAME, max(len(cell["run"]) for cell in cells))
    for name in LESS if is_terminal else LESS[:1]:
        others = [max(len(shown), *(len(cell[shown]) for cell in cells)) for shown in headings[1:]]
        if least + sum(others) + 2 * len(others) <= width:
            break
        headings = [shown for shown in headings if shown != name]
    return headings


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


def _shortened(rows: Sequence[Sequence[str]], headings: Sequence[str], width: int) -> list[list[str]]:
    """Return the rows with names that leave room for the other columns."""
    others = [max(len(heading), *(len(row[place]) for row in rows)) for place, heading in enumerate(headings) if place]
    longest = max(SHORTEST_NAME, width - sum(others) - 2 * len(others))
    return [[_short(row[0], longest), *row[1:]] for row in rows]


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


def _cells(row: Row) -> dict[str, str]:
    age, (loss, metric) = row["checkpoint_age_s"], _metrics(row["metrics"])
    return {
        "run": row["run"],
        "state": row["state"],
        "step": f"{row['step']}/{row['steps']}" if row["steps"] else str(row["step"]),
        "epoch": f"{row['epoch']}/{row['epochs']}" if row["epochs"] else str(row["epoch"]) if row["steps"] else "-",
        "samples/s": f"{row['samples_per_s']:,.0f}" if row["samples_per_s"] else "-",
        "ETA": duration(row["left_s"]) if row["left_s"] is not None else "-",
        "val_loss": loss,
        "metric": metric,
        "saved": "-" if age is None else f"{duration(age)} ago",
        "attempts": str(len(row["attempts"])),
    }


def _metrics(values: Mapping[str, float | None]) -> tuple[str, str]:
    """Return the loss and the next metric of the last validation, which is named."""
    loss = values.get("val_loss")
    other = next(((name, value) for name, value in values.items() if name != "val_loss" and value is not None), None)
    text = f"{other[0].removeprefix('val_')} {other[1]:.3g}" if other else "-"
    return "-" if loss is None else f"{loss:.4g}", text


def _short(name: str, width: int) -> str:
    """Return the name, shortened in front of its digest if it is too long."""
    return name if len(name) <= width else f"{name[: width - 14]}…{name[-13:]}"


def _details(row: Row, width: int) -> Iterator[str]:
    if row["why"]:
        yield from _wrapped(row["why"], width)
    owner = row["owner"]
    is_plain = len(row["attempts"]) == 1 and owner is not None and owner["is_running_here"] and owner["job"] is None
    if row["attempts"] and row["state"] not in DONE and not is_plain:
        parts = [
            _counted_ends(attempt["ended"] for attempt in row["attempts"]),
            _owner_text(row["owner"]),
            spent(Account(**row["account"])),
        ]
        yield from _wrapped("; ".join(filter(None, parts)), width)


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


def _wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    return wrapped(text, width, indent, indent, breaks_words=True)

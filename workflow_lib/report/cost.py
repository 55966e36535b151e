"""The chapter on cost: attempts, and time that was used, lost and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workflow_lib.files import read_json
from workflow_lib.report.runs_table import PAGE
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import Row, RunResults, Unfinished
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account
from workflow_lib.text import count, decimal, duration

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Price

Line = tuple[str, Account]


class Column(NamedTuple):
    """A column of the table: its value for a line, and the text of a value."""

    label: str
    value: Callable[[Account], float]
    text: Callable[[float], str]


def cost_chapter(
    experiment: Experiment, results: Path, runs: Sequence[RunResults], diverged: Sequence[Unfinished], work: Path
) -> Row:
    """Return the lines of the table, the columns that say something about them, and the sums as cards.

    Hours are those of GPUs if a training used one, else those of CPUs.
    """
    lines = cost(experiment, results, runs, diverged, work)
    everything, price = lines[-1][1], experiment.report.price
    has_gpu = everything.used_gpu_s > 0
    columns = [
        Column("Attempts", lambda spent: spent.attempts, decimal),
        Column("Time", lambda spent: spent.used_s, duration),
        *([Column("GPU-hours", lambda spent: spent.used_gpu_s / 3600, hours)] if has_gpu else []),
        Column("CPU-hours", lambda spent: spent.used_cpu_s / 3600, hours),
        *([Column("Price", lambda spent: price_of(spent, price), _money)] if price else []),
        Column("Lost to interruptions", lambda spent: spent.lost_s, duration),
        Column("Steps computed again", lambda spent: spent.redone, decimal),
        Column("Failed attempts", lambda spent: spent.failed, decimal),
        Column("Lost to failures", lambda spent: spent.failed_s, duration),
        Column("Times reused", lambda spent: spent.reused, decimal),
        Column("Saved by reuse", lambda spent: spent.saved_s, duration),
    ]
    always = ("Attempts", "Time", "GPU-hours", "CPU-hours", "Price", "Lost to interruptions")
    return {
        "columns": [column for column in columns if column.label in always or column.value(everything)],
        "lines": lines,
        "total": everything,
        "cards": _cards(everything, price),
        "price": price,
    }


def price_of(spent: Account, price: Price) -> float:
    """Return what the hours of GPUs and CPUs cost."""
    return (spent.used_gpu_s * price.gpu_hour + spent.used_cpu_s * price.cpu_hour) / 3600


def hours(value: float) -> str:
    """Return hours with enough digits that a short training is not 0."""
    return decimal(value, 4 if 0 < value < 0.1 else 2)


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _cards(spent: Account, price: Price | None) -> list[tuple[str, str, str]]:
    """Return label, value and a note of each sum."""
    lost = spent.lost_s / spent.used_s if spent.used_s else 0.0
    unit, used = ("GPU-hours", spent.used_gpu_s) if spent.used_gpu_s else ("CPU-hours", spent.used_cpu_s)
    money = [] if price is None else [("Price", f"{_money(price_of(spent, price))} {price.currency}".strip(), "")]
    again = f"{spent.redone:,} of {count(spent.steps, 'step')} computed again"
    return [
        *money,
        (unit, hours(used / 3600), f"{duration(spent.used_s)} in {count(spent.attempts, 'attempt')}"),
        ("Lost to interruptions", f"{100 * lost:.1f} %", f"{duration(spent.lost_s)}, {again}"),
        *([("Lost to failures", duration(spent.failed_s), count(spent.failed, "attempt"))] if spent.failed else []),
        ("Saved by reuse", duration(spent.saved_s), count(spent.reused, "time")),
    ]


def cost(
    experiment: Experiment, results: Path, runs: Sequence[RunResults], diverged: Sequence[Unfinished], work: Path
) -> list[Line]:
    """Return the cost of each run, of the study's other trials together, and the sum.

    Runs with the same digest are counted once. If there are more than PAGE runs, the most expensive are listed, then
    the others together.
    """
    # `runs` are sorted best first: reversed, a digest gets the name of its best run
    by_digest = {run.train["digest"]: (run.name, run.account) for run in reversed(runs)}
    lines = [*list(by_digest.values())[::-1], *((run.name, run.account) for run in diverged)]
    trials = _trials(experiment, results, by_digest, work)
    everything = ("all", accounting.total(account for _, account in [*lines, *trials]))
    return [*_shortened(lines), *trials, everything]


def _trials(experiment: Experiment, results: Path, known: dict[str, Line], work: Path) -> list[Line]:
    """Return one line for the trials of the study that are not among the known runs; empty without a study."""
    from workflow_lib import plan
    from workflow_lib.store import layout

    data = results_layout.data_manifest(
        results, plan.data_id(plan.tuned_base(experiment) if experiment.tune else experiment)
    )
    if experiment.tune is None or not data.exists():
        return []
    folder = results_layout.study_dir(results, plan.study_id(experiment))
    digests = {read_json(path)["run"]["digest"] for path in results_layout.suggestion_files(folder)} - known.keys()
    manifest = read_json(data)["digest"]
    workspaces = [path for digest in digests for path in layout.workspaces(work, digest, manifest)]
    return [(count(len(digests), "trial"), accounting.total(map(accounting.account, workspaces)))]


def _shortened(lines: Sequence[Line]) -> list[Line]:
    if len(lines) <= PAGE:
        return list(lines)
    most = sorted(lines, key=lambda line: line[1].used_s, reverse=True)
    others = accounting.total(account for _, account in most[PAGE:])
    return [*most[:PAGE], (count(len(lines) - PAGE, "other run"), others)]

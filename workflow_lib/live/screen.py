"""The live view on a terminal: the phases, and a table of the runs that fits the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.live.jobs import FAILED, FINISHED, STOPPED, Job, Pipeline
from workflow_lib.live.training import Training
from workflow_lib.results import layout
from workflow_lib.results.statements import DIVERGED
from workflow_lib.text import decimal, duration

STYLES = {
    FAILED: "bold red",
    DIVERGED: "bold red",
    STOPPED: "yellow",
    FINISHED: "green",
    "waiting": "dim",
    "training": "cyan",
}
WIDE = 110  # columns of a terminal that shows steps too
AROUND = 4  # lines of the terminal, beside those of the phases, that are not rows of the table
GAP = 2  # columns between two columns of the table
NAME_WIDTH = 20  # at least, of the name of a run


def view(
    pipeline: Pipeline, trainings: Mapping[str, Training], *, elapsed_s: float, width: int, height: int
) -> RenderableType:
    """Return what the terminal shows; `trainings` are those that run, by the names of their jobs."""
    total = pipeline.counts.get("total", 0)
    name = pipeline.results.name if pipeline.results else "reading the experiment"
    jobs = f"{pipeline.done_jobs} of {total} jobs" if total else ""
    title = Text("   ".join(filter(None, (name, jobs, duration(elapsed_s)))), style="bold", no_wrap=True)
    title.overflow = "ellipsis"
    phases = _phases(pipeline, width)
    return Group("", title, *phases, *_runs(pipeline, trainings, width, max(height - AROUND - len(phases), 3)))


def _phases(pipeline: Pipeline, width: int) -> list[Text]:
    """Return the phases in as many lines as they need."""
    lines: list[Text] = []
    for name, (done, total) in pipeline.phases().items():
        shown = name.removesuffix("s") if total == 1 else f"{name} {done}/{total}"
        phase = Text(f"  {'✓ ' if done == total else ''}{shown}", "green" if done == total else "")
        if not lines or lines[-1].cell_len + phase.cell_len > width:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        lines[-1].append_text(phase)
    return lines


def _runs(pipeline: Pipeline, trainings: Mapping[str, Training], width: int, height: int) -> list[RenderableType]:
    rows = [
        _row(job, job.name, _state(pipeline, job, "training", trainings), trainings)
        for job in pipeline.trainings()
        if "number" in job.wildcards
    ]
    running = {job.subject: job for job in pipeline.trainings()}
    for run in pipeline.runs:
        state = _state(pipeline, running.get(run), pipeline.state_of(run), trainings)
        rows.append(_row(running.get(run), run, state, trainings) | _result(pipeline, run, state))
    order = {
        "training": 0,
        "evaluating": 1,
        "exporting": 1,
        FAILED: 2,
        DIVERGED: 2,
        STOPPED: 2,
        "trained": 3,
        "queued": 3,
        "waiting": 4,
        FINISHED: 5,
    }
    shown = set(sorted(range(len(rows)), key=lambda i: order.get(rows[i]["state"], 6))[:height])
    left = Counter(row["state"] for i, row in enumerate(rows) if i not in shown)
    more = [Text(f"and {left.total():,} more: " + ", ".join(f"{n:,} {state}" for state, n in left.items()), "dim")]
    table = _table([row for i, row in enumerate(rows) if i in shown], width)
    return [table, *(more if left else [])] if shown and pipeline.has_started else []


def _state(pipeline: Pipeline, job: Job | None, state: str, trainings: Mapping[str, Training]) -> str:
    """Return the state of a run as its training knows it: in a pack, and in the queue of a cluster."""
    training = trainings.get(job.name) if job else None
    if training is None or state not in ("waiting", "training"):
        return state
    if pipeline.is_stopping and training.steps is not None and training.state == "waiting":
        return STOPPED
    if state == "waiting":
        return training.state
    return "queued" if training.state == "waiting" and not pipeline.is_local else state


def _row(job: Job | None, name: str, state: str, trainings: Mapping[str, Training]) -> dict[str, str]:
    training = trainings.get(job.name) if job else None
    if training is None or training.steps is None:
        return {"run": name, "state": state}
    is_going_on = state == "training"
    return {
        "run": name,
        "state": state,
        "epoch": f"{training.epoch}/{training.epochs}" if training.epochs else "",
        "step": f"{training.step:,}/{training.steps:,}",
        "loss": decimal(training.loss) if training.loss is not None else "",
        "metric": f"{training.metric} {decimal(training.value)}" if training.value is not None else "",
        "samples/s": f"{training.samples_per_s:,.0f}" if is_going_on and training.samples_per_s else "",
        "ETA": duration(training.left_s) if is_going_on and training.left_s is not None else "",
    }


def _result(pipeline: Pipeline, run: str, state: str) -> dict[str, str]:
    """Return the result of a run that has been trained."""
    if state not in ("trained", "evaluating", "exporting", FINISHED) or pipeline.results is None:
        return {}
    try:
        training: Any = read_json(layout.run_dir(pipeline.results, run) / layout.TRAIN)
        if training.get("state") == DIVERGED:
            return {"state": DIVERGED}
        best = training["best"]
    except (*UNREADABLE, KeyError):  # another process is replacing the file
        return {}
    unit = "epoch" if best["epoch"] == int(best["epoch"]) and training["epochs"] == int(training["epochs"]) else "step"
    place = f"{best[unit]:,}/{training[unit + 's']:,}"
    return {unit: place, "metric": f"{best['metric']} {decimal(best['value'])}"}


def _table(rows: Sequence[dict[str, str]], width: int) -> Table:
    """Return the table; columns that do not fit beside the names are left out."""
    metrics = _shorten_metrics(rows)
    columns = ("state", "epoch", "step", "loss", *metrics, "samples/s", "ETA")
    names = [name for name in columns if any(row.get(name) for row in rows)]
    if width < WIDE and "epoch" in names and "step" in names:
        names.remove("step")
    widths = {name: GAP + max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names}
    too_long = max(len(row["run"]) for row in rows) + sum(widths.values()) - width if rows else 0
    if 0 < too_long <= widths.get("samples/s", 0):  # without the speed, no name is shortened
        widths.pop("samples/s")
    for name in ("samples/s", "loss", "step", *metrics, "epoch"):
        if width - sum(widths.values()) < NAME_WIDTH:
            widths.pop(name, None)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    for name in ("run", *widths):
        table.add_column(name, no_wrap=True, justify="left" if name in ("run", "state") else "right")
    for row in rows:
        cells = [Text(row.get(name, ""), STYLES.get(row["state"], "") if name == "state" else "") for name in widths]
        table.add_row(short_name(row["run"], max(width - sum(widths.values()), NAME_WIDTH)), *cells)
    return table


def _shorten_metrics(rows: Sequence[dict[str, str]]) -> list[str]:
    """Move the name of the metric into the heading if all rows have the same, and return the headings."""
    names = {row["metric"].rpartition(" ")[0] for row in rows if row.get("metric")}
    if len(names) != 1:
        return ["metric"]
    for row in rows:
        row[min(names)] = row.pop("metric", "").rpartition(" ")[2]
    return [*names]


def short_name(name: str, width: int) -> str:
    """Return the name of a run, shortened in front of its digest if it is longer."""
    return name if len(name) <= width else f"{name[: width - 14]}…{name[-13:]}"

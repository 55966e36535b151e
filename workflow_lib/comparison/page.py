"""A comparison as one HTML page, which loads nothing."""

from __future__ import annotations

import json
from pathlib import Path

from workflow_lib import tasks
from workflow_lib.comparison.table import Comparison
from workflow_lib.comparison.text import HOW, VIEWS, difference_of, value_of
from workflow_lib.files import write_atomic
from workflow_lib.report import curves, page
from workflow_lib.report.runs_table import packed, shown_setting

SCRIPTS = ("tables.js", "figures.js", "report.js", "traces.js", "curves.js")


def write_page(comparison: Comparison, output: Path) -> None:
    """Write the page, equal for equal results."""
    from plotly.offline import get_plotlyjs

    task = tasks.load(comparison.subjects[0].evaluation["task"])
    metrics = curves.metrics_of([subject.history for subject in comparison.subjects], task.curve)
    drawn = [
        curves.columns_of(subject.title, subject.history, metrics, subject.train["best"]["epoch"], subject.folder)
        for subject in comparison.subjects
    ]
    are_whole = all(row["epoch"] == int(row["epoch"]) for subject in comparison.subjects for row in subject.history)
    unit: curves.Unit = "epoch" if are_whole else "step"
    data = {
        "curves": drawn,
        "groups": [],
        "metrics": list(metrics.items()),
        "unit": unit,
        "first": "first",
        "figures": [],
    }
    text = page.templates().get_template("comparison.html").render(
        comparison=comparison,
        second=next(iter(metrics.values())),
        how=HOW,
        views=VIEWS,
        value_of=value_of,
        difference_of=difference_of,
        shown=shown_setting,
        data=packed(json.dumps(data, allow_nan=False)),
        plotly=packed(get_plotlyjs()),
        style=page.asset("report.css"),
        script="".join(map(page.asset, SCRIPTS)),
    )  # fmt: skip
    write_atomic(output, text)

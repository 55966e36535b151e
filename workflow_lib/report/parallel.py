"""Parallel coordinates: one line a run or a trial, through its settings to its metrics.

The figure is made of lines, since Plotly's own kind of figure needs WebGL and code that the page does not allow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_lib.report.compared import measured_on
from workflow_lib.results.read_runs import Row, RunResults
from workflow_lib.text import decimal

MAX_LINES = 300
MAX_TICKS = 6
MIN_GAP = 0.07  # between two marks, as a part of the axis
LOG_RATIO = 20.0  # of the largest to the smallest number of an axis that becomes logarithmic
COLOURS = ("#8a93a0", "#6f8fb5", "#2a9d8f", "#dd9a2e", "#e4572e")  # from the worst fifth to the best
FIFTHS = ("worst fifth", "fourth fifth", "middle fifth", "second fifth", "best fifth")


def of_runs(runs: Sequence[RunResults], headings: Mapping[str, str], metrics: Mapping[str, str]) -> Row | None:
    """Return the figure of a sweep, with the best of its runs; None without settings or runs to compare."""
    runs = sorted(runs, key=lambda run: run.rank())[:MAX_LINES]
    first = next(iter(metrics))
    columns: dict[str, list[Any]] = {headings[name]: [run.settings[name] for run in runs] for name in runs[0].settings}
    columns = {name: values for name, values in columns.items() if len(set(map(_key, values))) > 1}
    if len(runs) < 3 or not columns:
        return None
    columns[runs[0].select_metric] = [run.best()[0] for run in runs]
    measured = [run.evaluation["metrics"].get(first, {}).get("value") for run in runs]
    columns[f"{measured_on(runs[0]).lower()} {metrics[first]}"] = measured
    return figure("parallel-runs", "Settings and metrics of the runs", [run.name for run in runs], columns)


def of_trials(trials: Sequence[Row], names: Sequence[str], metric: str, *, is_maximised: bool) -> Row | None:
    """Return the figure of a study; None without three complete trials."""
    complete = [trial for trial in trials if trial["value"] is not None]
    if len(complete) < 3:
        return None
    complete.sort(key=lambda trial: -trial["value"] if is_maximised else trial["value"])
    complete = complete[:MAX_LINES]
    columns = {name: [trial["params"].get(name) for trial in complete] for name in names}
    columns[metric] = [trial["value"] for trial in complete]
    lines = [f"trial {trial['number']}" for trial in complete]
    return figure("parallel-trials", "Settings and result of the trials", lines, columns)


def figure(name: str, label: str, lines: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Row:
    """Return the figure; the lines are sorted best first, and each column has a value for each line."""
    axes = [_axis(values) for values in columns.values()]
    traces = []
    for fifth, colour in enumerate(COLOURS):
        chosen = [place for place in range(len(lines)) if _fifth(place, len(lines)) == fifth]
        x: list[int | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        for place in chosen:
            x += [*range(len(axes)), None]
            y += [*(positions[place] for positions, _ in axes), None]
            told = "\n".join(f"{column} {_text(values[place])}" for column, values in columns.items())
            texts += [f"{lines[place]}\n{told}"] * (len(axes) + 1)
        if chosen:
            line = {"color": colour, "width": 1 + fifth / 2}
            points = {
                "type": "scatter",
                "mode": "lines+markers",
                "x": x,
                "y": y,
                "hovertext": texts,
                "hoverinfo": "text",
            }
            name_of_line = FIFTHS[fifth] if len(lines) > len(FIFTHS) else lines[chosen[0]]
            traces.append({**points, "name": name_of_line, "line": line, "marker": {"color": colour, "size": 4}})
    ticks = [
        {"x": place, "y": at, "text": text, "xanchor": "left", "xshift": 5, "showarrow": False, "font": {"size": 11}}
        for place, (_, marks) in enumerate(axes)
        for at, text in marks
    ]
    poles = [
        {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": {"width": 1, "color": "#8a93a0"}}
        for place in range(len(axes))
    ]
    headings = {"tickvals": [*range(len(axes))], "ticktext": [*columns], "range": [-0.15, len(axes) - 0.45]}
    return {
        "name": name,
        "label": label,
        "data": traces,
        "layout": {
            "annotations": ticks,
            "shapes": poles,
            "xaxis": {**headings, "showgrid": False, "zeroline": False, "fixedrange": True},
            "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
            "legend": {"orientation": "h", "y": -0.14, "yanchor": "top"},
            "hovermode": "closest",
        },
    }


def _fifth(place: int, count: int) -> int:
    return 4 - 5 * place // count


def _axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the position of each value from 0 to 1, and the marks of the axis: their positions and texts."""
    numbers = [value for value in values if _is_number(value)]
    if numbers and all(value is None or _is_number(value) for value in values):
        low, high = min(numbers), max(numbers)
        is_log = low > 0 and high / low >= LOG_RATIO
        ends = (math.log(low), math.log(high)) if is_log else (low, high)

        def place(value: float | None) -> float:
            if value is None:
                return -0.05
            scaled = math.log(value) if is_log else value
            return round((scaled - ends[0]) / (ends[1] - ends[0]), 4) if ends[1] > ends[0] else 0.5

        distinct = sorted(set(numbers))
        middle = math.exp(sum(ends) / 2) if is_log else sum(ends) / 2
        shown = distinct if len(distinct) <= MAX_TICKS else [low, middle, high]
        marks = _apart([(place(value), _text(value)) for value in shown])
        return [place(value) for value in values], marks + [(-0.05, "–")] * (len(numbers) < len(values))
    texts = sorted({_key(value) for value in values}, key=_in_order)
    places = {
        text: round(number / max(1, len(texts) - 1), 4) if len(texts) > 1 else 0.5 for number, text in enumerate(texts)
    }
    every = math.ceil(len(texts) / (2 * MAX_TICKS))
    return [places[_key(value)] for value in values], [(places[text], text) for text in texts[::every]]


def _apart(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the marks, which rise, without those that would cover the one below or the last one."""
    kept = list(marks[:1])
    for mark in marks[1:-1]:
        if mark[0] - kept[-1][0] >= MIN_GAP and marks[-1][0] - mark[0] >= MIN_GAP:
            kept.append(mark)
    return kept + list(marks[1:][-1:])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _in_order(text: str) -> list[tuple[float, str]]:
    """Return a key that sorts numbers inside of texts by their value: [8] before [16]."""
    return [(float(part or 0), "") if place % 2 else (0.0, part) for place, part in enumerate(re.split(r"(\d+)", text))]


def _text(value: Any) -> str:
    if not _is_number(value) or isinstance(value, int):
        return _key(value)
    return (
        f"{value:.3g}" if value and (abs(value) < 1e-3 or abs(value) >= 1e5) else decimal(value).rstrip("0").rstrip(".")
    )

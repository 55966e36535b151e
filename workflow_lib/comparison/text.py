"""A comparison for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from workflow_lib import tasks
from workflow_lib.comparison.subjects import Subject
from workflow_lib.comparison.table import CONFIDENCE, RESAMPLES, SEED, Comparison
from workflow_lib.config.identity import canonical
from workflow_lib.metrics.paired import Difference
from workflow_lib.text import aligned, decimal

CELL = 40  # characters of a setting that are shown
WIDTH = 100  # of sentences
BARS = "▁▂▃▄▅▆▇█"
CURVE = 40  # characters of a curve
HOW = (
    f"Differences from A, with their {CONFIDENCE:.0%} interval from {RESAMPLES:,} resamples of the test samples, drawn "
    f"together for both runs (seed {SEED}). Noise: the interval contains 0. Other seeds are not covered."
)


SAME = "The settings are the same."
VIEWS = "The evaluations differ (evaluate.tta), so a difference of metrics may be theirs. Evaluated with:"


def shown(comparison: Comparison, width: int | None = None) -> str:
    """Return the comparison as text: a letter stands for each run; `width` is the most columns, if any."""
    lines = legend(comparison)
    if comparison.views:
        lines += ["", VIEWS]
        letters = _letters(comparison.subjects)
        lines += [f"{letter}: {text}" for letter, text in zip(letters, comparison.views, strict=True)]
    lines += ["", *_settings(comparison), "", *_metrics(comparison, width), "", *_curves(comparison)]
    return "\n".join(lines)


def legend(comparison: Comparison) -> list[str]:
    """Return a line for each run with its letter, and how its experiment chose it if it repeats settings."""
    named = list(zip(_letters(comparison.subjects), comparison.subjects, strict=True))
    lines = [f"{letter}  {subject.title}" for letter, subject in named]
    return lines + [f"{letter} {subject.over}" for letter, subject in named if subject.over]


def _letters(subjects: Sequence[Subject]) -> list[str]:
    return [chr(ord("A") + number) if number < 26 else f"R{number + 1}" for number in range(len(subjects))]


def _settings(comparison: Comparison) -> list[str]:
    return aligned(settings_rows(comparison)) if comparison.settings else [SAME]


def settings_rows(comparison: Comparison) -> list[list[str]]:
    """Return the headings and the rows of the settings that differ, with a column for each run."""
    rows = [["setting", *_letters(comparison.subjects)]]
    for name, values in comparison.settings.items():
        texts = ["-" if value is None else canonical(value) for value in values]
        rows.append([name, *(text if len(text) <= CELL else f"{text[: CELL - 1]}…" for text in texts)])
    return rows


def metric_rows(comparison: Comparison) -> list[list[str]]:
    """Return the headings and the rows of the metrics: a column for each run, then one for each difference."""
    letters = _letters(comparison.subjects)
    rows = [["test metric", *letters, *(f"{letter} - A" for letter in letters[1:])]]
    return rows + [
        [metric.label, *map(value_of, metric.values), *map(difference_of, metric.differences[1:])]
        for metric in comparison.metrics
    ]


def reasons(comparison: Comparison) -> list[str]:
    """Return a line for each run that has no interval of its differences."""
    letters = _letters(comparison.subjects)[1:]
    return [f"{letter}: {reason}" for letter, reason in zip(letters, comparison.reasons, strict=True) if reason]


def _metrics(comparison: Comparison, width: int | None) -> list[str]:
    lines = aligned(metric_rows(comparison))
    if width is not None and max(map(len, lines)) > width:
        lines = ["test metrics, and differences from A", *_metric_by_metric(comparison)]
    if any(not reason for reason in comparison.reasons):
        lines += ["", *textwrap.wrap(HOW, min(WIDTH, width or WIDTH))]
    return lines + reasons(comparison)


def _metric_by_metric(comparison: Comparison) -> Iterator[str]:
    """Yield the metrics with a line for each run, for a narrow terminal."""
    for metric in comparison.metrics:
        yield metric.label
        differences = ["", *map(difference_of, metric.differences[1:])]
        each = zip(_letters(comparison.subjects), metric.values, differences, strict=True)
        yield from aligned([[f"  {letter}", value_of(value), difference] for letter, value, difference in each])


def value_of(measured: dict[str, float | None]) -> str:
    """Return the value of a metric with its interval."""
    value = measured.get("value")
    if value is None:
        return "–"
    low, high = measured.get("low"), measured.get("high")
    return decimal(value) + (f" [{decimal(low, 3)}, {decimal(high, 3)}]" if low is not None else "")


def difference_of(found: Difference | None) -> str:
    """Return a difference with its interval and its verdict."""
    if found is None or found.value is None:
        return "–"
    sign = "+" if found.value >= 0 else "-"
    text = f"{sign}{decimal(abs(found.value))}"
    if found.low is None or found.high is None:
        return text
    verdict = "more than noise" if found.is_more_than_noise else "noise"
    return f"{text} [{decimal(found.low, 3)}, {decimal(found.high, 3)}] {verdict}"


def _curves(comparison: Comparison) -> Iterator[str]:
    """Yield a line of bars for each run and curve, from the first validation to the last, on a common scale."""
    task = tasks.load(comparison.subjects[0].evaluation["task"])
    for name in dict.fromkeys(("val_loss", f"val_{task.curve[0]}")):
        series = [[row.get(name) for row in subject.history] for subject in comparison.subjects]
        values = [value for each in series for value in each if value is not None]
        if not values:
            continue
        rows = [
            [f"  {letter}", _bars(each, min(values), max(values)), decimal(each[-1]) if each else "–"]
            for letter, each in zip(_letters(comparison.subjects), series, strict=True)
        ]
        yield f"{name} from the first validation to the last"
        yield from aligned(rows)


def _bars(values: Sequence[float | None], low: float, high: float) -> str:
    count = min(CURVE, len(values))
    places = [round(number * (len(values) - 1) / max(1, count - 1)) for number in range(count)]
    scale = (len(BARS) - 1) / ((high - low) or 1.0)
    return "".join(" " if (value := values[place]) is None else BARS[round((value - low) * scale)] for place in places)

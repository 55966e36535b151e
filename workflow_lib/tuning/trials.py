"""Training of a suggested run, whose history becomes the result of the trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.config.metrics import best_row
from workflow_lib.errors import DivergedError
from workflow_lib.tuning.pruning import finite, metric_values, pruned_after, pruner
from workflow_lib.tuning.study_files import Point, Result, Row, State, Suggestion, load_suggestion, write

if TYPE_CHECKING:
    from workflow_lib.config import Experiment


def trial(
    experiment: Experiment,
    suggestion: Path,
    *,
    data: Path,
    work: Path,
    output: Path,
    deadline_minutes: float | None = None,
    note: Callable[[Path], None] | None = None,
) -> Result:
    """Train the suggested run until it ends or is pruned, and write the trial's result to the output.

    A run that diverges gives a result, too, and the study continues. Raises Stopped if the training was stopped.
    ``note`` is called with the file that records requests for a finished run, in place of a record.
    """
    from workflow_lib.launch import commands

    suggested = load_suggestion(suggestion)
    try:
        history: Sequence[Row] = commands.trial(
            experiment,
            run=str(suggestion),
            data=data,
            work=work,
            stop_early=pruner(suggested),
            deadline_minutes=deadline_minutes,
            note=note,
        )
    except DivergedError as error:
        return write_result(suggested, [], output, failure=str(error))
    return write_result(suggested, history, output)


def write_result(suggestion: Suggestion, history: Sequence[Row], output: Path, failure: str | None = None) -> Result:
    """Write the trial's result to the output and return it."""
    trial_result = result(suggestion, history, failure)
    write(output, trial_result)
    return trial_result


def result(suggestion: Suggestion, history: Sequence[Row], failure: str | None = None) -> Result:
    """Return the trial's result from the metrics of each validation and, if the training failed, the reason.

    Validations after the pruning do not count: a run of a sweep with the same settings may have trained them.
    """
    values = metric_values(suggestion["metric"], history)
    length = pruned_after(suggestion, values)
    state: State = "complete" if length is None else "pruned"
    rows = history[:length]
    best = best_row(rows, suggestion["select_metric"], suggestion.get("maximized", []))
    value = finite(best[suggestion["metric"]]) if best else None
    if state == "complete" and failure is None and value is None:
        failure = f"{suggestion['metric']} is not a number where {suggestion['select_metric']} is best"
    if state == "complete" and failure is not None:  # after the pruning, a failure no longer matters
        state, best, value = "failed", None, None
    found = Result(
        number=suggestion["number"],
        study=suggestion["study"],
        state=state,
        value=value,
        epoch=best["epoch"] if best else None,
        reason=failure if state == "failed" else None,
        params=suggestion["params"],
        run=suggestion["run"],
        curve=[Point(epoch=row["epoch"], value=x) for row, x in zip(rows, values, strict=False)],
    )
    if best and not isinstance(best["epoch"], int):
        found["step"] = best["step"]
    return found

"""The choice of the best run in words: the best of many is partly luck, so the value that chose it is too good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan
from workflow_lib.report.terminal import read_configurations, read_runs
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import TUNED
from workflow_lib.text import count, decimal

if TYPE_CHECKING:
    from workflow_lib.config import Experiment


def selection(experiment: Experiment, results: Path, best: Mapping[str, str]) -> str:
    """Return among how many runs and trials the best one was chosen and by which metric, and what that means.

    `best` is its row in the table of runs.
    """
    rows = read_runs(results)
    complete = [row for row in rows if not row.get("state")]
    configurations = read_configurations(results)
    metric, value = best["select_metric"], decimal(float(best["select_value"]))
    on = f"by {metric} on the validation split"
    is_repeated = any(int(row["runs"]) > 1 for row in configurations)
    if len(complete) == 1:
        text = f"The epoch of this run was chosen {on}"
    elif is_repeated and len(configurations) > 1:
        text = (
            f"This run has the best of {len(configurations)} configurations, chosen by the mean of {metric} on the "
            f"validation split over {count(int(configurations[0]['runs']), 'run')}"
        )
    elif is_repeated:
        text = f"This run is the most typical of {len(complete)}, which differ in seed or fold, {on}"
    else:
        text = f"This run is the best of {len(complete)}, chosen {on}"
    if left_out := len(rows) - len(complete):
        text += f" ({count(left_out, 'more run')} diverged or failed)"
    text += "."
    if experiment.tune is not None and any(row["name"] == TUNED for row in complete):
        folder = results_layout.study_dir(results, plan.study_id(experiment))
        trials = sum(results_layout.trial_file(folder, number).exists() for number in range(experiment.tune.trials))
        whose = "its settings are" if best["name"] == TUNED else "one of these runs has the settings that were"
        text += (
            f" Of a study, {whose} the best of {count(trials, 'trial')} by {plan.study_metric(experiment)} on the "
            "validation split."
        )
    text += f" Therefore its {metric} of {value} is better than can be expected of new data (selection bias)."
    if best.get("validation_samples"):
        return f"{text} The metrics here are of the same samples, so this is true of them too."
    return f"{text} The metrics here are of test samples, which took no part in this choice."

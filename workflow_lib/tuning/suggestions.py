"""The suggestion of a trial: its parameters, its frozen run, and the thresholds of pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, plan
from workflow_lib.config.measures import maximized
from workflow_lib.tuning.pruning import thresholds
from workflow_lib.tuning.study import distributions, rebuild
from workflow_lib.tuning.study_files import (
    Result,
    Suggestion,
    check_study,
    load_result,
    load_suggestion,
    reference,
    result_path,
    suggestion_path,
    tune_of,
    write,
)

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Tune

ASKS = 20  # attempts to find parameters that no earlier trial has
SIGNIFICANT_DIGITS = 6  # of a suggested float: readable, and equal on processors that differ in the last bit


def suggest(experiment: Experiment, number: int, tune_dir: Path, work: Path, output: Path) -> Suggestion:
    """Write the suggestion of one trial to the output, freeze its run in the store, and return the suggestion.

    Reads the earlier suggestions and the results 0 .. number - window, and no others.
    """
    tune, study = tune_of(experiment), plan.study_digest(experiment)
    earlier = [load_suggestion(suggestion_path(tune_dir, i)) for i in range(number)]
    results = [load_result(result_path(tune_dir, i)) for i in range(number - tune.window + 1)]
    check_study(study, [*earlier, *results], tune_dir)
    own = maximized(experiment.training)
    params = _ask(tune, study, number, results, earlier, own)
    run = plan.apply(plan.tuned_base(experiment), params, f"trial {number}")
    plan.freeze(run, work)
    suggestion = Suggestion(
        number=number,
        study=study,
        metric=plan.study_metric(experiment),
        select_metric=run.training.select_metric,
        params=params,
        run=reference(experiment, params, run),
        thresholds=thresholds(tune, results, run.training),
    )
    if own:
        suggestion["maximized"] = own
    write(output, suggestion)
    return suggestion


def _ask(
    tune: Tune,
    study: str,
    number: int,
    results: Sequence[Result],
    earlier: Sequence[Suggestion],
    maximized: Sequence[str],
) -> dict[str, Any]:
    """Return parameters that no earlier trial has, or repeated ones if none are found in a few attempts."""
    import optuna

    seed = int(config.digest([study, tune.seed, number], "suggest")[:8], 16)
    rebuilt = rebuild(tune, study, results, earlier[len(results) :], seed=seed, maximized=maximized)
    known = [suggestion["params"] for suggestion in earlier]
    for _ in range(ASKS):
        trial = rebuilt.ask(distributions(tune))
        params = _shorten(tune, trial.params)
        if params not in known:
            break
        rebuilt.tell(trial, state=optuna.trial.TrialState.FAIL)
    return params


def _shorten(tune: Tune, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with floats rounded to a few digits, within their bounds; those with a step stay exact."""
    values = dict(sorted(params.items()))
    for name, space in tune.space.items():
        if space.type == "float" and space.step is None:
            values[name] = min(max(float(f"{values[name]:.{SIGNIFICANT_DIGITS}g}"), space.low), space.high)
    return values

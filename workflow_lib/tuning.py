"""A study is a chain of small files, and each suggestion is a function of the files before it.

Suggestion n is made from the results of trials 0 .. n - window and the parameters of the trials after those,
never from whatever else has finished by then. So a study gives the same suggestions whatever the timing, and
a lost file is written again with the same bytes. Optuna is the library of samplers, not a shared database.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from workflow_lib import config, files, plan
from workflow_lib.config.metrics import best_row, gain, is_lower_better
from workflow_lib.config.renamed import with_current_names, with_stored_names
from workflow_lib.errors import ConfigError, DivergedError, EverstepError

if TYPE_CHECKING:
    import optuna

    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Tune

ASKS = 20  # tries to find a point that no earlier trial has
SIGNIFICANT_DIGITS = 6  # of a suggested float: readable, and deaf to a processor's last bit

Row = Mapping[str, Any]
StopEarly = Callable[[Sequence[Row]], bool]


class RunReference(TypedDict):
    """Names a frozen run; the same shape as in every file that points to one."""

    digest: str
    id: str


class Suggestion(TypedDict):
    """A trial before it is trained: everything its result depends on, save the training itself."""

    number: int
    study: str
    metric: str
    select_metric: str
    params: dict[str, Any]
    run: RunReference
    thresholds: list[float | None]


class Point(TypedDict):
    """The metric after the validation of one epoch."""

    epoch: int
    value: float | None


class Result(TypedDict):
    """A trial after training; `value` is the study's metric at `epoch`, whose state the run keeps."""

    number: int
    study: str
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    epoch: int | None
    reason: str | None
    params: dict[str, Any]
    run: RunReference
    curve: list[Point]


def suggest(experiment: Experiment, number: int, tune_dir: Path, work: Path, output: Path) -> Suggestion:
    """The suggestion for one trial is in the output, and its run frozen in the store.

    Reads the earlier suggestions and the results 0 .. number - window, and no others.
    """
    tune, study = _tune(experiment), plan.study_digest(experiment)
    earlier = [load_suggestion(suggestion_path(tune_dir, i)) for i in range(number)]
    results = [load_result(result_path(tune_dir, i)) for i in range(number - tune.window + 1)]
    _check_study(study, [*earlier, *results], tune_dir)
    params = _ask(tune, study, number, results, earlier)
    run = plan.apply(plan.tuned_base(experiment), params, f"trial {number}")
    plan.freeze(run, work)
    suggestion = Suggestion(
        number=number,
        study=study,
        metric=plan.study_metric(experiment),
        select_metric=run.training.select_metric,
        params=params,
        run=_reference(experiment, params, run),
        thresholds=thresholds(tune, results, run.training.epochs),
    )
    _write(output, suggestion)
    return suggestion


def trial(
    experiment: Experiment,
    suggestion: Path,
    *,
    data: Path,
    work: Path,
    output: Path,
    deadline_minutes: float | None = None,
) -> Result:
    """The suggested run is trained, as far as it is worth it, and the trial's result is in the output.

    A training that diverged is a result too, and the study goes on; one that was stopped raises Stopped.
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
        )
    except DivergedError as error:
        return write_result(suggested, [], output, failure=str(error))
    return write_result(suggested, history, output)


def best(experiment: Experiment, tune_dir: Path, work: Path, output: Path) -> dict[str, Any]:
    """The best complete trial of the study, of equals the first, is in the output, and its full run frozen.

    The full run has the best parameters without `tune.set`, which is for trials only. Where that is empty, it
    is the trial's own run, and nothing is trained again.
    """
    tune, study = _tune(experiment), plan.study_digest(experiment)
    results = [load_result(result_path(tune_dir, i)) for i in range(tune.trials)]
    _check_study(study, results, tune_dir)
    chosen = _best(results, plan.study_metric(experiment), study)
    run = plan.apply(experiment, chosen["params"], f"trial {chosen['number']}")
    plan.freeze(run, work)
    answer = {
        "study": study,
        "number": chosen["number"],
        "metric": plan.study_metric(experiment),
        "value": chosen["value"],
        "epoch": chosen["epoch"],
        "params": chosen["params"],
        "trials": len(results),
        "run": _reference(experiment, chosen["params"], run),
    }
    _write(output, answer)
    return answer


def pruner(suggestion: Suggestion) -> StopEarly:
    """True from the validation on after which the trial is not worth training; only the history decides."""
    return functools.partial(_is_pruned, suggestion)


def result(suggestion: Suggestion, history: Sequence[Row], failure: str | None = None) -> Result:
    """The trial's result, from the metrics of each epoch and, when the training failed, the reason.

    What was trained beyond the epoch of pruning, by a run that shares the store, does not count.
    """
    values = _values(suggestion["metric"], history)
    length = _pruned_after(suggestion, values)
    state: Literal["complete", "pruned", "failed"] = "complete" if length is None else "pruned"
    rows = history[:length]
    kept = best_row(rows, suggestion["select_metric"])
    value = _finite(kept[suggestion["metric"]]) if kept else None
    if state == "complete" and failure is None and value is None:
        failure = f"{suggestion['metric']} is not a number where {suggestion['select_metric']} is best"
    if state == "complete" and failure is not None:
        state, kept, value = "failed", None, None
    return Result(
        number=suggestion["number"],
        study=suggestion["study"],
        state=state,
        value=value,
        epoch=int(kept["epoch"]) if kept else None,
        reason=failure if state == "failed" else None,
        params=suggestion["params"],
        run=suggestion["run"],
        curve=[Point(epoch=int(row["epoch"]), value=x) for row, x in zip(rows, values, strict=False)],
    )


def write_result(suggestion: Suggestion, history: Sequence[Row], output: Path, failure: str | None = None) -> Result:
    """The trial's result, written to the output."""
    answer = result(suggestion, history, failure)
    _write(output, answer)
    return answer


def load_study(experiment: Experiment, tune_dir: Path) -> optuna.Study:
    """The study in memory with the trials that have a result, in order: for plots and importances."""
    tune = _tune(experiment)
    paths = (result_path(tune_dir, i) for i in range(tune.trials))
    results = [load_result(path) for path in paths if path.exists()]
    return _rebuild(tune, plan.study_id(experiment), results, [], seed=0)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each parameter mattered (PED-ANOVA, sums to 1), largest first; empty for fewer than 2."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return dict(optuna.importance.get_param_importances(study)) if len(complete) > 1 else {}


def thresholds(tune: Tune, results: Sequence[Result], epochs: int) -> list[float | None]:
    """Per validation the median of the complete trials' metric, or None where a trial may not be pruned.

    None in the warm-up, where too few trials have got so far, and at the last epoch: nothing is left to save.
    """
    if tune.pruner == "none":
        return []
    curves = [[point["value"] for point in r["curve"]] for r in results if r["state"] == "complete"]
    medians: list[float | None] = []
    for i in range(epochs - 1):
        values = [x for curve in curves if len(curve) > i and (x := curve[i]) is not None]
        enough = i >= tune.warmup_epochs and len(values) >= tune.min_trials
        medians.append(statistics.median(values) if enough else None)
    return medians


def suggestion_path(tune_dir: Path, number: int) -> Path:
    return tune_dir / f"suggest-{number:04d}.json"


def result_path(tune_dir: Path, number: int) -> Path:
    return tune_dir / f"trial-{number:04d}.json"


def load_suggestion(path: Path) -> Suggestion:
    content = files.read_json(path, *Suggestion.__annotations__)
    return cast("Suggestion", content | {"params": with_current_names(content["params"])})


def load_result(path: Path) -> Result:
    content = files.read_json(path, *Result.__annotations__)
    return cast("Result", content | {"params": with_current_names(content["params"])})


def _write(output: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the study. Renamed settings keep their old names in it, so that a study can go on."""
    files.write_signed(output, {**content, "params": with_stored_names(content["params"])})


def _ask(
    tune: Tune, study: str, number: int, results: Sequence[Result], earlier: Sequence[Suggestion]
) -> dict[str, Any]:
    """Parameters that no earlier trial has, unless the space has no more of them within reach."""
    import optuna

    seed = int(config.digest([study, tune.seed, number], "suggest")[:8], 16)
    rebuilt = _rebuild(tune, study, results, earlier[len(results) :], seed=seed)
    known = [suggestion["params"] for suggestion in earlier]
    for _ in range(ASKS):
        trial = rebuilt.ask(_distributions(tune))
        params = _shorten(tune, trial.params)
        if params not in known:
            break
        rebuilt.tell(trial, state=optuna.trial.TrialState.FAIL)
    return params


def _rebuild(
    tune: Tune, name: str, results: Sequence[Result], running: Sequence[Suggestion], seed: int
) -> optuna.Study:
    """An Optuna study in memory, as if it had seen these results and waited for these trials."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=tune.min_trials
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(
        study_name=name,
        sampler=samplers[tune.sampler](),
        pruner=optuna.pruners.NopPruner(),
        direction="minimize" if is_lower_better(str(tune.metric)) else "maximize",
    )
    distributions = _distributions(tune)
    for trial in results:
        complete = trial["state"] == "complete"
        study.add_trial(
            create_trial(
                state=states[trial["state"]],
                value=trial["value"] if complete else None,
                params=trial["params"],
                distributions=distributions,
                intermediate_values=_finite_points(trial["curve"]),
                user_attrs={"run": trial["run"]["id"]},
            )
        )
    for waiting in running:
        study.add_trial(create_trial(state=TrialState.RUNNING, params=waiting["params"], distributions=distributions))
    return study


def _distributions(tune: Tune) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, space in sorted(tune.space.items()):
        if space.type == "float":
            made[name] = FloatDistribution(space.low, space.high, log=space.log, step=space.step)
        elif space.type == "int":
            made[name] = IntDistribution(space.low, space.high, log=space.log, step=space.step or 1)
        else:
            made[name] = CategoricalDistribution(space.choices)
    return made


def _shorten(tune: Tune, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with floats cut to a few digits, within their bounds; steps stay exact."""
    values = dict(sorted(params.items()))
    for name, space in tune.space.items():
        if space.type == "float" and space.step is None:
            values[name] = min(max(float(f"{values[name]:.{SIGNIFICANT_DIGITS}g}"), space.low), space.high)
    return values


def _finite_points(curve: Sequence[Point]) -> dict[int, float]:
    return {point["epoch"]: point["value"] for point in curve if point["value"] is not None}


def _reference(experiment: Experiment, params: Mapping[str, Any], run: plan.RunConfig) -> RunReference:
    digest = plan.run_digest(run)
    return RunReference(digest=digest, id=plan.run_id(experiment.name, params, digest))


def _tune(experiment: Experiment) -> Tune:
    if experiment.tune is None:
        raise ConfigError("the experiment has no study: write a `tune:` section")
    return experiment.tune.model_copy(update={"metric": plan.study_metric(experiment)})


def _best(results: Sequence[Result], metric: str, study: str) -> Result:
    complete = [trial for trial in results if trial["state"] == "complete"]
    if not complete:
        raise EverstepError(
            f"study {study}: none of its {len(results)} trials can be trained in full; "
            f"trial {results[0]['number']} {results[0]['state']}: {results[0]['reason']}"
        )
    return max(complete, key=lambda trial: gain(metric, trial["value"] or 0.0))


def _check_study(study: str, trials: Sequence[Suggestion | Result], tune_dir: Path) -> None:
    for trial in trials:
        if trial["study"] != study:
            raise EverstepError(
                f"{tune_dir}: trial {trial['number']} belongs to study {trial['study']}, not to {study}: "
                "delete the folder, or give the study a folder of its own"
            )


def _is_pruned(suggestion: Suggestion, history: Sequence[Row]) -> bool:
    return _pruned_after(suggestion, _values(suggestion["metric"], history)) is not None


def _pruned_after(suggestion: Suggestion, values: Sequence[float | None]) -> int | None:
    """How many validations the trial gets, if it is pruned: its best so far is then worse than the median."""
    metric, best_so_far = suggestion["metric"], -math.inf
    for i, (value, threshold) in enumerate(zip(values, suggestion["thresholds"], strict=False)):
        best_so_far = max(best_so_far, -math.inf if value is None else gain(metric, value))
        if threshold is not None and best_so_far < gain(metric, threshold):
            return i + 1
    return None


def _values(metric: str, history: Sequence[Row]) -> list[float | None]:
    return [_finite(row[metric]) for row in history]


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

"""The Optuna study, rebuilt in memory from the files of the study whenever it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import plan
from workflow_lib.config.measures import maximized
from workflow_lib.config.metrics import is_lower_better
from workflow_lib.tuning.storage import NUMBER
from workflow_lib.tuning.study_files import Point, Result, Suggestion, load_result, result_path, tune_of

if TYPE_CHECKING:
    import optuna

    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Tune


def load_study(experiment: Experiment, tune_dir: Path) -> optuna.Study:
    """Return the study with the trials that have a result, in order, for plots and importances."""
    tune = tune_of(experiment)
    paths = (result_path(tune_dir, i) for i in range(tune.trials))
    results = [load_result(path) for path in paths if path.exists()]
    own = maximized(experiment.training)
    return rebuild(tune, plan.study_id(experiment), results, [], seed=0, maximized=own)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each parameter (PED-ANOVA, sums to 1), largest first; empty for fewer than 2 trials."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 2:
        return {}
    with _without_forests():
        return dict(optuna.importance.get_param_importances(study))


@contextmanager
def _without_forests() -> Iterator[None]:
    """Keep Optuna inside the block from importing scikit-learn, which takes a second.

    Its other measures of importance need random forests. Optuna does without them where they are not installed. Before
    version 5, its default measure needs them.
    """
    import optuna

    name = "sklearn.ensemble"
    if name in sys.modules or "optuna.importance" in sys.modules or int(optuna.__version__.partition(".")[0]) < 5:
        yield
        return
    missing: Any = None
    sys.modules[name] = missing
    try:
        yield
    finally:
        del sys.modules[name]


def rebuild(
    tune: Tune,
    name: str,
    results: Sequence[Result],
    running: Sequence[Suggestion],
    *,
    seed: int,
    maximized: Sequence[str] = (),
) -> optuna.Study:
    """Return a study in memory with these results, and these suggestions as running trials."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    study = optuna.create_study(
        study_name=name,
        sampler=_sampler(tune, seed),
        pruner=optuna.pruners.NopPruner(),  # a suggestion carries its own thresholds
        direction="minimize" if is_lower_better(str(tune.metric), maximized) else "maximize",
    )
    space = distributions(tune)
    for result in results:
        study.add_trial(
            create_trial(
                state=states[result["state"]],
                value=result["value"] if result["state"] == "complete" else None,
                params=result["params"],
                distributions=space,
                intermediate_values=_finite_points(result["curve"]),
                user_attrs={"run": result["run"]["id"], NUMBER: result["number"]},
            )
        )
    for suggestion in running:
        study.add_trial(create_trial(state=TrialState.RUNNING, params=suggestion["params"], distributions=space))
    return study


def _sampler(tune: Tune, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=tune.min_trials
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    return samplers[tune.sampler]()


def distributions(tune: Tune) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the search space for Optuna, sorted by name: its order decides which random number a parameter gets."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, values in sorted(tune.space.items()):
        if values.type == "float":
            space[name] = FloatDistribution(values.low, values.high, log=values.log, step=values.step)
        elif values.type == "int":
            space[name] = IntDistribution(values.low, values.high, log=values.log, step=values.step or 1)
        else:
            space[name] = CategoricalDistribution(values.choices)
    return space


def _finite_points(curve: Sequence[Point]) -> dict[int, float]:
    return {number: point["value"] for number, point in enumerate(curve, 1) if point["value"] is not None}

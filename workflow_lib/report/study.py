"""The chapter on tuning: trials, figures and best trial of the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.files import read_json
from workflow_lib.report import parallel
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import Row
from workflow_lib.text import training_place

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

    from workflow_lib.config import Experiment


def study_chapter(experiment: Experiment, results: Path) -> Row | None:
    """Return trials, figures and best trial of the study; None without a study or before it has a best trial."""
    from workflow_lib import plan

    if experiment.tune is None:
        return None
    folder = results_layout.study_dir(results, plan.study_id(experiment))
    if not results_layout.best_file(folder).exists():
        return None
    from workflow_lib import tuning

    study, metric = tuning.load_study(experiment, folder), plan.study_metric(experiment)
    trials = [_trial(trial) for trial in study.trials]
    names = sorted({name for trial in study.trials for name in trial.params})
    lines = parallel.of_trials(trials, names, metric, is_maximised=study.direction.name == "MAXIMIZE")
    best = read_json(results_layout.best_file(folder))
    return {
        "name": experiment.tune.name,
        "metric": metric,
        "best": best,
        "place": training_place(best["epoch"], best.get("step", 0)),
        "trials": trials,
        "names": names,
        "figures": [*([lines] if lines else []), *_figures(study, tuning.importances(study), metric)],
    }


def _trial(trial: optuna.trial.FrozenTrial) -> Row:
    import optuna

    is_complete = trial.state == optuna.trial.TrialState.COMPLETE
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if is_complete else None,
        "params": trial.params,
        "run": trial.user_attrs.get("run", ""),
    }


def _figures(study: optuna.Study, importances: dict[str, float], metric: str) -> list[Row]:
    from optuna import visualization

    history = visualization.plot_optimization_history(study, target_name=metric)
    if len(study.trials) <= 10:
        history.update_xaxes(dtick=1)  # no fractions of a trial
    slices = visualization.plot_slice(study, target_name=metric)
    slices.update_traces(marker={"color": None, "colorscale": None, "showscale": False, "size": 7, "line": None})
    return [
        _figure("history", "Tuning history", history),
        *([_importance_figure(importances, metric)] if importances else []),
        _figure("slice", "Trials by parameter", slices),
    ]


def _figure(name: str, label: str, figure: go.Figure) -> Row:
    """Return the figure without Plotly's theme and title: the page has its own colours and headings."""
    figure.update_layout(template=None, title=None)
    return {"name": name, "label": label, **json.loads(figure.to_json())}


def _importance_figure(importances: dict[str, float], metric: str) -> Row:
    names = list(importances)[::-1]
    shares = [importances[name] for name in names]
    text = [f"{share:.2f}" for share in shares]
    bars = {"type": "bar", "orientation": "h", "x": shares, "y": names, "text": text}
    axes = {"xaxis": {"title": {"text": f"importance for {metric}"}}, "yaxis": {"automargin": True}}
    return {"name": "importance", "label": "Importance of the parameters", "data": [bars], "layout": axes}

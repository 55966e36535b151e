"""What an experiment found, on one page that needs no network, and in a few lines for the terminal.

The best run is the one with the best validation metric; the test split only says how good it is.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import DataError, DivergedError, UserError
from workflow_lib.files import read_json, write_atomic
from workflow_lib.report.runs_table import PAGE, columns, packed, shown_interval, shown_number, shown_setting
from workflow_lib.results import provenance
from workflow_lib.results.read_runs import METRICS, TUNED, Row, RunResults, Unfinished, load_results, unfinished
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account

if TYPE_CHECKING:
    import jinja2
    import numpy as np
    import plotly.graph_objects as go

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
SECOND_CURVE = {"classification": "accuracy", "regression": "mae", "language": "accuracy"}  # beside the loss
CHAPTER = {
    "classification": ("classes", "Classes"),
    "regression": ("predictions", "Predictions"),
    "language": ("text", "Text"),
}
MOST_CLASSES_OF_A_MATRIX = 40
MOST_CONFUSED_PAIRS = 15
MOST_POINTS = 2000  # of a scatter plot
MOST_CURVES = 30  # of runs, that are drawn
MOST_TARGETS = 4  # that are drawn
BINS = 30
PICTURES = 8  # of training images, and as many of augmented ones
MOST_PIXELS = 96  # a side of each
BLUE, GREY = "#3b82f6", "#8a7f76"  # as in report.js


def report(
    experiment: Experiment,
    results: Path,
    runs: Sequence[str],
    work: Path,
    output: Path,
    missing: Sequence[Unfinished] = (),
) -> None:
    """The page is in `output` and the table of runs beside it in runs.csv, best run first, those `missing` last.

    Points of the sweep that diverged are rows with their reason. Raises DivergedError where none did anything else.
    """
    diverged = [run for run in unfinished(results, runs, work) if run.has_diverged]
    names = {run.name for run in diverged}
    found = load_results(experiment, results, [name for name in runs if name not in names], work)
    if not found:
        raise DivergedError(
            f"there is nothing to report: every run diverged. The first, {diverged[0].name}: {diverged[0].reason}"
        )
    table = [*(run.row() for run in found), *(run.row() for run in (*diverged, *missing))]
    page = _render(
        title=experiment.report.title or experiment.name,
        experiment=experiment,
        runs=found,
        diverged=diverged,
        missing=missing,
        predictions=_predictions(found[0], results),
        augmentation=_augmentation(found[0], results, work),
        headings=_headings(found[0].settings),
        study=_study(experiment, results),
        spent=_spent(experiment, results, found, diverged, work),
        reproduce=_reproduction(experiment, work, output),
    )
    write_atomic(output.with_name("runs.csv"), _csv(table))
    write_atomic(output, page)
    logger.info("%d runs are reported in %s", len(found), output)


def report_unfinished(experiment: Experiment, results: Path, runs: Sequence[str], work: Path, output: Path) -> None:
    """The same page and table of whatever there is, marked incomplete, with a reason for each run that has no result.

    Where no run lacks anything, a page that was written before stays as it is.
    """
    found = unfinished(results, runs, work)
    missing = [run for run in found if not run.has_diverged]
    has_results = len(found) < len(runs)
    if has_results and not missing:
        return
    if has_results:
        names = {run.name for run in missing}
        report(experiment, results, [name for name in runs if name not in names], work, output, missing)
        return
    title = experiment.report.title or experiment.name
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    page = (
        _templates()
        .get_template("unfinished.html")
        .render(title=title, experiment=experiment, missing=found, total=len(runs), style=style, page=PAGE)
    )
    write_atomic(output.with_name("runs.csv"), _csv([run.row() for run in found]))
    write_atomic(output, page)


def summary(results: Path) -> str:
    """Best run, its metrics, where the report is and what to type next."""
    table = results / "runs.csv"
    if not table.exists():
        raise UserError(f"{table} is missing: no report yet; run snakemake --profile profiles/local")
    with table.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    rows = [row for row in listed if not row.get("state")]
    diverged = [row["name"] for row in listed if row.get("state") == "diverged"]
    if not rows:
        raise UserError(f"{table}: no run of the experiment has a result; the reasons are in the table")
    best = rows[0]
    labels = next(names for names in reversed(METRICS.values()) if best.get(next(iter(names))))
    low, high = (best[f"{next(iter(labels))}_{end}"] for end in ("low", "high"))
    interval = f" [{_short(low)}, {_short(high)}]" if low else ""
    values = [f"{label} {_short(best[name])}" for name, label in labels.items()]
    few = f"; {words}" if best.get("test_samples") and (words := provenance.caution(int(best["test_samples"]))) else ""
    folder = results / "runs" / best["name"]
    lines = {
        "best run": f"{best['run']} (of {len(rows)})" if len(rows) > 1 else best["run"],
        "chosen by": f"{best['select_metric']} {_short(best['select_value'])} at epoch {best['best_epoch']}",
        "test": ", ".join([values[0] + interval, *values[1:]]) + few,
        "model": f"{folder / 'model.safetensors'}, {folder / 'model.onnx'}",
        **({"diverged": f"{', '.join(diverged)} (the reasons are in the report)"} if diverged else {}),
        "report": results / "report.html",
        "next": f"python -m webbrowser {results / 'report.html'}",
        "your own": "snakemake --profile profiles/local --configfile YOURS.yaml (everstep init prints one)",
    }
    return "\n".join(f"  {name:<10} {value}" for name, value in lines.items())


def _spent(
    experiment: Experiment, results: Path, runs: Sequence[RunResults], diverged: Sequence[Unfinished], work: Path
) -> list[tuple[str, Account]]:
    """What each run cost, then the study's other trials, then all together; runs with one digest are one.

    Of very many runs, those that used most, and the others together.
    """
    from workflow_lib import plan
    from workflow_lib.store import layout

    rows = {run.train["digest"]: (run.name, run.account) for run in reversed(runs)}
    lines = [*list(rows.values())[::-1], *((run.name, run.account) for run in diverged)]
    count = len(lines)
    data = results / "data" / f"{plan.data_id(plan.tuned_base(experiment) if experiment.tune else experiment)}.json"
    if experiment.tune is not None and data.exists():
        folder = results / "tune" / plan.study_id(experiment)
        digests = {read_json(path)["run"]["digest"] for path in folder.glob("suggest-*.json")} - rows.keys()
        manifest = read_json(data)["digest"]
        found = [path for digest in digests for path in layout.workspaces(work, digest, manifest)]
        trials = [accounting.account(path) for path in found]
        lines.append((f"{len(digests)} trials", accounting.total(trials)))
    everything = ("all", accounting.total(account for _, account in lines))
    if count > PAGE:
        most = sorted(lines[:count], key=lambda line: line[1].used_s, reverse=True)
        others = accounting.total(account for _, account in most[PAGE:])
        lines = [*most[:PAGE], (f"{count - PAGE:,} other runs", others), *lines[count:]]
    return [*lines, everything]


def _headings(settings: Iterable[str]) -> dict[str, str]:
    """Column headings: the last word of a dotted name that says something, the whole name where two share it."""
    words = {name: name.removesuffix(".name").rpartition(".")[2] for name in settings}
    return {name: name if list(words.values()).count(word) > 1 else word for name, word in words.items()}


def _csv(table: Sequence[Row]) -> str:
    """The table of runs, numbers exact; what a run does not have is empty."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in table for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _short(text: str) -> str:
    return shown_number(float(text)) if text else "undefined"


def _study(experiment: Experiment, results: Path) -> Row | None:
    """Trials, figures and best point of the study; None without one, or before it has a best point."""
    from workflow_lib import plan

    if experiment.tune is None or not (results / "tune" / plan.study_id(experiment) / "best.json").exists():
        return None
    import optuna
    from optuna import visualization

    from workflow_lib import tuning

    folder = results / "tune" / plan.study_id(experiment)
    study, metric = tuning.load_study(experiment, folder), plan.study_metric(experiment)
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    history = visualization.plot_optimization_history(study, target_name=metric)
    if len(study.trials) <= 10:
        history.update_xaxes(dtick=1)
    slices = visualization.plot_slice(study, target_name=metric)
    slices.update_traces(marker={"color": None, "colorscale": None, "showscale": False, "size": 7, "line": None})
    figures = [_figure("history", "Tuning history", history), _figure("slice", "Trials by parameter", slices)]
    importances = tuning.importances(study)
    if importances:
        figures.insert(1, _importance_figure(importances, metric))
    return {
        "name": experiment.tune.name,
        "metric": metric,
        "best": read_json(folder / "best.json"),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value if trial in complete else None,
                "params": trial.params,
                "run": trial.user_attrs.get("run", ""),
            }
            for trial in study.trials
        ],
        "names": sorted({name for trial in study.trials for name in trial.params}),
        "figures": figures,
    }


def _figure(name: str, label: str, figure: go.Figure) -> Row:
    """A figure for the page: drawn in the page's own colours, titled by its heading."""
    figure.update_layout(template=None, title=None)
    return {"name": name, "label": label, **json.loads(figure.to_json())}


def _importance_figure(importances: dict[str, float], metric: str) -> Row:
    names = list(importances)[::-1]
    shares = [importances[name] for name in names]
    text = [f"{share:.2f}" for share in shares]
    bars = {"type": "bar", "orientation": "h", "x": shares, "y": names, "text": text}
    axes = {"xaxis": {"title": {"text": f"importance for {metric}"}}, "yaxis": {"automargin": True}}
    return {"name": "importance", "label": "Importance of the parameters", "data": [bars], "layout": axes}


def _reproduction(experiment: Experiment, work: Path, output: Path) -> Row:
    """The commands and the whole experiment that make the page again."""
    import yaml

    from workflow_lib import config
    from workflow_lib.results import provenance

    frozen = config.snapshot(experiment, work)
    return {
        "command": provenance.rebuild_command(output, str(frozen)),
        "experiment": yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }


def _predictions(run: RunResults, results: Path) -> list[Row]:
    """Figures of a regression: predicted against true numbers, and the errors, of each target."""
    if run.task != "regression":
        return []
    with (results / "runs" / run.name / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    several = (len(header) - 1) // 2 > 1
    figures = []
    for number in range(min(MOST_TARGETS, (len(header) - 1) // 2)):
        true, predicted = ([float(row[1 + 2 * number + side]) for row in rows] for side in (0, 1))
        which = f" of target {number}" if several else ""
        figures.append(_scatter(f"scatter-{number}", f"Predicted against true{which}", true, predicted))
        figures.append(_errors(f"errors-{number}", f"Errors{which}", true, predicted))
    return figures


def _augmentation(run: RunResults, results: Path, work: Path) -> Row | None:
    """A picture of training images, and below them what they were in the run's first epoch; None without augmentation.

    They lie evenly over the split. Black and white are the darkest and the lightest that the upper ones have.
    """
    from workflow_lib import plan
    from workflow_lib.data import Manifest, map_split

    config, _ = plan.load_run(run.train["digest"], work)
    if not any(dict(config.augment).values()):
        return None
    import torch
    from torch.nn.functional import pad

    from workflow_lib.training.augment import augmented, partners

    manifest = Manifest.load(results / "data" / f"{plan.data_id(config)}.json")
    try:
        split = map_split(manifest, "train", work)
    except DataError as error:  # the data may have been deleted since; the results are whole without it
        logger.warning("no picture of augmented images: %s", error)
        return None
    rows = torch.arange(PICTURES) * len(split) // PICTURES
    others = partners(config.augment, rows, seed=config.seed, epoch=0, samples=len(split))
    inputs, targets = split.batch(rows if others is None else torch.cat((rows, others)))
    changed, *_ = augmented(config.augment, inputs, targets, rows, others, seed=config.seed, epoch=0)
    inputs = inputs[:PICTURES]
    shape, every = (-1, 1, 1), math.ceil(max(manifest.input_shape[1:]) / MOST_PIXELS)
    mean, std = (torch.tensor(values).view(shape) for values in (manifest.mean, manifest.std))
    shown = torch.stack((inputs, changed))[..., ::every, ::every] * std + mean
    shown = shown[:, :, :3] if shown.shape[2] >= 3 else shown[:, :, :1]
    low, high = shown[0].aminmax()
    shown = pad(((shown - low) / (high - low).clamp_min(1e-6)).clamp(0, 1), (1, 1, 1, 1), value=1.0)
    # [2, n, channels, height, width] as one image of two lines
    tiles = shown.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return {"image": _png((tiles * 255).round().to(torch.uint8).numpy()), "seed": config.seed}


def _png(pixels: np.ndarray) -> str:
    """The pixels [height, width, 1 or 3] as an address that holds the image itself."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _scatter(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> Row:
    every = math.ceil(len(true) / MOST_POINTS)
    ends = [min(*true, *predicted), max(*true, *predicted)]
    line = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"}
    points = {"type": "scatter", "mode": "markers", "x": true[::every], "y": predicted[::every]}
    data = [
        line | {"line": {"color": GREY, "dash": "dot", "width": 1.5}},
        points | {"marker": {"color": BLUE, "size": 6, "opacity": 0.6}},
    ]
    axes = {"xaxis": {"title": {"text": "true"}}, "yaxis": {"title": {"text": "predicted"}}}
    return {"name": name, "label": label, "data": data, "layout": {**axes, "showlegend": False, "hovermode": "closest"}}


def _errors(name: str, label: str, true: Sequence[float], predicted: Sequence[float]) -> Row:
    errors = [guess - value for guess, value in zip(predicted, true, strict=True)]
    low, width = min(errors), (max(errors) - min(errors)) / BINS or 1.0
    counts = [0] * BINS
    for error in errors:
        counts[min(BINS - 1, int((error - low) / width))] += 1
    bars = {"type": "bar", "x": [low + (place + 0.5) * width for place in range(BINS)], "y": counts, "width": width}
    axes = {"xaxis": {"title": {"text": "predicted - true"}}, "yaxis": {"title": {"text": "test samples"}}}
    return {"name": name, "label": label, "data": [bars], "layout": {**axes, "showlegend": False, "bargap": 0}}


def _templates() -> jinja2.Environment:
    """The templates of the pages."""
    import jinja2

    from workflow_lib.housekeeping.status import duration
    from workflow_lib.results import provenance

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"accepted": provenance.accepted_words}
    environment.filters |= {
        "number": shown_number,
        "interval": shown_interval,
        "setting": shown_setting,
        "duration": duration,
    }
    return environment


def _render(*, runs: Sequence[RunResults], study: Row | None, predictions: Sequence[Row], **values: Any) -> str:
    """The page. What people wrote is escaped: as text by the template, as data by `_script_json`."""
    from plotly.offline import get_plotlyjs

    best = runs[0]
    made = best.evaluation["provenance"]
    figures = [*predictions, *(study["figures"] if study else [])]
    second = SECOND_CURVE[best.task]
    drawn = [run for place, run in enumerate(runs) if place < MOST_CURVES or run.name == TUNED]
    data = {"curves": [_curve(run, second) for run in drawn], "second": second, "figures": figures}
    is_classification = best.task == "classification"
    tasks = dict.fromkeys(run.task for run in runs)
    metrics = {name: label for task in tasks for name, label in METRICS[task].items()}
    rows = columns(runs, best.settings, metrics) if len(runs) > PAGE else []
    return (
        _templates()
        .get_template("report.html")
        .render(
            runs=runs,
            best=best,
            metrics=metrics,
            page=PAGE,
            rows=packed(json.dumps(rows, allow_nan=False)) if rows else None,
            curves=drawn,
            drawn=_drawn(runs, drawn),
            chapter=CHAPTER[best.task],
            second={"accuracy": "Accuracy", "mae": "Mean absolute error"}[second],
            matrix=_matrix(best.evaluation) if is_classification else None,
            confused=_confused(best.evaluation) if is_classification else [],
            predictions=predictions,
            study=study,
            code=made["code"],
            machine=_flat(made["environment"]),
            data=_script_json(data),
            plotly=packed(get_plotlyjs()),
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script="".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("tables.js", "report.js")),
            **values,
        )
    )


def _curve(run: RunResults, second: str) -> Row:
    names = ("epoch", "train_loss", "val_loss", f"val_{second}")
    columns = {name: [row.get(name) for row in run.history] for name in names}
    return {"name": run.name, "best_epoch": run.best()[1], **columns}


def _drawn(runs: Sequence[RunResults], drawn: Sequence[RunResults]) -> str:
    """The runs whose curves are drawn, in words."""
    if len(drawn) == len(runs):
        return "every run"
    return f"the {MOST_CURVES} best runs" + (" and the tuned one" if len(drawn) > MOST_CURVES else "")


def _matrix(evaluation: Row) -> list[list[tuple[int, float]]] | None:
    """Counts with their share of the row; None where there are too many classes to look at."""
    if len(evaluation["classes"]) > MOST_CLASSES_OF_A_MATRIX:
        return None
    return [[(count, count / max(1, sum(row))) for count in row] for row in evaluation["confusion"]]


def _confused(evaluation: Row) -> list[Row]:
    """Pairs of classes that the model takes for each other, the most frequent first."""
    names, counts = evaluation["classes"], evaluation["confusion"]
    pairs = [
        {"target": names[i], "predicted": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:MOST_CONFUSED_PAIRS]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted name, for a table of two columns."""
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for part, inner in value.items():
        flat |= _flat(inner, f"{name}.{part}" if name else part)
    return flat


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment there."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

"""The page of an experiment, which needs no network, and its table of runs.

The best run is the one with the best validation metric; the test split only measures it. If runs repeat a configuration
with other seeds or folds, the best configuration is the one with the best mean, and its most typical run is shown.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import tasks
from workflow_lib.errors import DivergedError
from workflow_lib.files import write_atomic
from workflow_lib.report import parallel
from workflow_lib.report.augmentation import augmentation
from workflow_lib.report.compared import compared_chapter, files_of, measured_on
from workflow_lib.report.cost import cost_chapter
from workflow_lib.report.curves import curve, describe_drawn, drawn_runs, groups, metrics_of, unit_of
from workflow_lib.report.data_preview import data_chapter
from workflow_lib.report.errors import errors_chapter, read_outcomes
from workflow_lib.report.runs_table import PAGE, columns, csv_text, headings, packed, shown_interval, shown_setting
from workflow_lib.report.study import study_chapter
from workflow_lib.results import layout as results_layout
from workflow_lib.results.configurations import Configuration, group
from workflow_lib.results.provenance import inexact_words
from workflow_lib.results.read_runs import Row, RunResults, Unfinished, load_results, unfinished
from workflow_lib.results.workbook import workbook
from workflow_lib.text import count, decimal, duration, flatten

if TYPE_CHECKING:
    import jinja2
    import markupsafe

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("tables.js", "figures.js", "report.js", "traces.js", "curves.js", "compare.js")


def write(
    experiment: Experiment,
    results: Path,
    runs: Sequence[str],
    work: Path,
    output: Path,
    missing: Sequence[Unfinished] = (),
) -> None:
    """Write the page to `output`, and beside it the table of runs, best run first, the `missing` ones last.

    The means over runs that repeat a configuration are in configurations.csv, one row for each configuration.

    A diverged run of a sweep is a row with its reason. Raises DivergedError if every run diverged.
    """
    diverged = [run for run in unfinished(results, runs, work) if run.has_diverged]
    names = {run.name for run in diverged}
    found = load_results(experiment, results, [name for name in runs if name not in names], work)
    if not found:
        raise DivergedError(
            f"there is nothing to report: every run diverged. The first, {diverged[0].name}: {diverged[0].reason}"
        )
    configurations = group(found)
    table = [*(run.row() for run in found), *(run.row() for run in (*diverged, *missing))]
    page = _render(
        experiment=experiment,
        results=results,
        work=work,
        output=output,
        runs=found,
        diverged=diverged,
        missing=missing,
        configurations=configurations,
    )
    write_atomic(output.with_name(results_layout.RUNS_TABLE), csv_text(table))
    means = [configuration.row() for configuration in configurations]
    write_atomic(output.with_name(results_layout.CONFIGURATIONS), csv_text(means))
    if experiment.report.excel:
        content = workbook({"runs": table, "configurations": means})
        write_atomic(output.with_name(results_layout.RUNS_WORKBOOK), content)
    write_atomic(output, page)
    logger.info("%s: reported %s", output, count(len(found), "run"))


def write_incomplete(experiment: Experiment, results: Path, runs: Sequence[str], work: Path, output: Path) -> None:
    """Write the page and the table from the available results, marked incomplete, with a reason for each missing one.

    If no result is missing, an existing page is left as it is.
    """
    found = unfinished(results, runs, work)
    missing = [run for run in found if not run.has_diverged]
    has_results = len(found) < len(runs)
    if has_results and not missing:
        return
    if has_results:
        names = {run.name for run in missing}
        write(experiment, results, [name for name in runs if name not in names], work, output, missing)
        return
    title = experiment.report.title or experiment.name
    template = templates().get_template("unfinished.html")
    page = template.render(
        title=title, experiment=experiment, missing=found, total=len(runs), style=asset("report.css"), page=PAGE
    )
    write_atomic(output.with_name(results_layout.RUNS_TABLE), csv_text([run.row() for run in found]))
    write_atomic(output, page)


def _render(
    *,
    experiment: Experiment,
    results: Path,
    work: Path,
    output: Path,
    runs: Sequence[RunResults],
    diverged: Sequence[Unfinished],
    missing: Sequence[Unfinished],
    configurations: Sequence[Configuration],
) -> str:
    """Return the HTML. Users' text is escaped in the template; data is compressed, so that it cannot end a script."""
    from plotly.offline import get_plotlyjs

    best = runs[0]
    provenance = best.evaluation["provenance"]
    task = tasks.load(best.task)
    metrics = _labels(runs)
    study = study_chapter(experiment, results)
    words = headings(best.settings)
    chapters = _best_run_chapters(best, results, work)
    drawn, sweep = drawn_runs(runs), parallel.of_runs(runs, words, metrics)
    second = metrics_of([run.history for run in drawn], task.curve)
    compared = compared_chapter(runs, metrics, results, work, output) if len(runs) > 1 else []
    figures = [
        *chapters["content"].get("figures", []),
        *(study["figures"] if study else []),
        *([sweep] if sweep else []),
    ]
    data = {
        "curves": [curve(run, second, results) for run in drawn],
        "groups": groups(drawn, configurations),
        "metrics": list(second.items()),
        "unit": unit_of(drawn),
        "first": "best",
        "compared": compared,
        "figures": [*figures, *(chapters["diagrams"]["figures"] if chapters["diagrams"] else [])],
    }
    rows = columns(runs, best.settings, metrics) if len(runs) > PAGE else []
    template = templates(task.chapter.folder if task.chapter else None).get_template("report.html")
    return template.render(
        title=experiment.report.title or experiment.name,
        experiment=experiment,
        runs=runs,
        diverged=diverged,
        missing=missing,
        configurations=configurations,
        is_repeated=any(len(configuration.runs) > 1 for configuration in configurations),
        best=best,
        measured_on=measured_on(best),
        second=next(iter(second.values())),
        metrics=metrics,
        headings=words,
        page=PAGE,
        rows=packed(json.dumps(rows, allow_nan=False)) if rows else None,
        curves=drawn,
        drawn=describe_drawn(runs, drawn),
        task=task,
        sweep=sweep,
        study=study,
        compared=compared,
        files=files_of(best, results, work, output),
        inexact=inexact_words(),
        cost=cost_chapter(experiment, results, runs, diverged, work),
        reproduce=_reproduction(experiment, work, output),
        code=provenance["code"],
        machine=flatten(provenance["environment"]),
        data=packed(json.dumps(data, allow_nan=False)),
        plotly=packed(get_plotlyjs()),
        style=asset("report.css"),
        script="".join(map(asset, SCRIPTS)),
        **chapters,
    )


def _labels(runs: Sequence[RunResults]) -> dict[str, str]:
    """Return the labels of all metrics of the runs: those of their tasks first."""
    names = dict.fromkeys(run.task for run in runs)
    labels = {metric: label for name in names for metric, label in tasks.load(name).metrics.items()}
    own = dict.fromkeys(metric for run in runs for metric in run.metrics if metric not in labels)
    return labels | {metric: metric.removeprefix("val_").replace("_", " ") for metric in own}


def _best_run_chapters(best: RunResults, results: Path, work: Path) -> Row:
    """Return the values of the chapters on the best run: its data, its predictions and its errors."""
    from workflow_lib import plan
    from workflow_lib.data import Manifest
    from workflow_lib.report.diagrams import diagrams_chapter

    config, _ = plan.load_run(best.train["digest"], work)
    manifest = Manifest.load(results_layout.data_manifest(results, plan.data_id(config)))
    outcomes = read_outcomes(best, results)
    content = _chapter_content(best, results)
    if outcomes is not None and "examples" in best.evaluation:
        content["names"] = [outcomes.name_of(number) for number in range(len(outcomes))]
    has_errors = outcomes is not None and manifest.kind != "masks"  # the chapter of masks has its own images
    return {
        "content": content,
        "preview": data_chapter(manifest, work),
        "augmentation": augmentation(config, manifest, work),
        "diagrams": diagrams_chapter(outcomes) if outcomes is not None else None,
        "errors": errors_chapter(outcomes, manifest, work) if has_errors and outcomes is not None else None,
    }


def _chapter_content(run: RunResults, results: Path) -> Row:
    """Return the values for the template of the task's chapter."""
    chapter = tasks.load(run.task).chapter
    predictions = results_layout.run_dir(results, run.name) / results_layout.PREDICTIONS
    return chapter.values(dict(run.evaluation), predictions) if chapter else {}


def _reproduction(experiment: Experiment, work: Path, output: Path) -> Row:
    """Return the command that regenerates the page, and the whole experiment."""
    import yaml

    from workflow_lib import plan
    from workflow_lib.results import provenance

    frozen = plan.freeze_experiment(experiment, work)
    return {
        "command": provenance.rebuild_command(output, str(frozen)),
        "experiment": yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }


def templates(of_chapter: Path | None = None) -> jinja2.Environment:
    """Return the environment of the page; the template of a user's chapter is in a folder of its own."""
    import jinja2

    from workflow_lib.results import provenance

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, of_chapter or TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "accepted": provenance.accepted_words,
        "started_from": provenance.started_from_words,
        "number": decimal,
        "interval": shown_interval,
        "setting": shown_setting,
        "duration": duration,
        "breakable": _breakable,
    }
    return environment


def _breakable(name: str) -> markupsafe.Markup:
    """Return a name that may be broken after `_` and `.`."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"([_.])", r"\1<wbr>", str(markupsafe.escape(name))))


def asset(name: str) -> str:
    """Return the content of a style sheet or a script."""
    return (TEMPLATES / name).read_text(encoding="utf-8")

"""A report needs exports, and the exporter needs five seconds for the first graph of a process."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plotly.offline import get_plotlyjs

from tests.support.report_page import COUNT_DRAWN, in_browser, needs_chromium, own_part
from tests.support.repository import ROOT
from tests.support.trained import Trained, train
from workflow_lib import config, data, evaluation, export, plan, report
from workflow_lib.config.run import Augment
from workflow_lib.errors import UserError
from workflow_lib.files import file_digest, read_json, write_json
from workflow_lib.report.cost import cost, cost_chapter
from workflow_lib.report.curves import unit_of
from workflow_lib.report.page import asset
from workflow_lib.report.parallel import figure
from workflow_lib.report.runs_table import headings
from workflow_lib.results.read_runs import RunResults, account_of, load_results
from workflow_lib.tasks.classification import confused, matrix
from workflow_lib.training.augment import augmented, epoch_key, mixing_partners


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An experiment of two runs and a study, with its report."""
    project = train(tmp_path_factory.mktemp("project"), tune=True)
    for run in [*project.runs, "tuned"]:
        folder = project.results / "runs" / run
        paths = {"data": project.data, "work": project.work, "model": folder / "model.safetensors"}
        subject = {"run": project.reference(run), **paths}
        evaluation.evaluate(project.experiment, **subject, output=folder / "evaluation.json")
        measured = folder / "evaluation.json"
        export.export(project.experiment, **subject, evaluation=measured, output=folder / "export.json")
    write_report(project, project.experiment, project.results / "report.html")
    return project


def write_report(project: Trained, experiment: config.Experiment, output: Path, runs: list[str] | None = None) -> str:
    report.write(experiment, project.results, runs or [*project.runs, "tuned"], project.work, output)
    return output.read_text(encoding="utf-8")


def page_of(project: Trained) -> str:
    return (project.results / "report.html").read_text(encoding="utf-8")


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_loads_nothing_and_holds_the_library_once(project: Trained) -> None:
    page = page_of(project)
    assert get_plotlyjs() not in page
    assert own_part(page) != page
    loaded = re.findall(r"""\b(?:src|href|action|data)=["']([^"']*)""", own_part(page))
    links = set(re.findall(r'<a href="([^"#]+)"', page))
    assert {path for path in loaded if not path.startswith(("#", "data:image/"))} == links
    assert "runs.csv" in links
    assert all((project.results / path).exists() for path in links)  # relative, and there
    assert not re.findall(r"@import|url\(", own_part(page))
    assert "default-src 'none'" in page


def test_the_page_shows_every_run_and_the_numbers_of_the_best(project: Trained) -> None:
    page = own_part(page_of(project))
    for run in [*project.runs, "tuned"]:
        assert f"<code>{run}</code>" in page
    best = table_of(project.results)[0]
    for name in ("accuracy", "macro_f1", "roc_auc", "log_loss"):
        assert f"{float(best[name]):.4f}" in page
    for chapter in (
        "runs",
        "curves",
        "compare",
        "preview",
        "classes",
        "diagrams",
        "errors",
        "tuning",
        "onnx",
        "spent",
        "again",
    ):
        assert f'<section id="{chapter}"' in page


def test_text_of_users_is_shown_and_never_executed(project: Trained) -> None:
    page = own_part(page_of(project))
    assert "<script>alert(1)" not in page
    assert "<b>bold" not in page
    assert "Zoë &lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert "größer" in page
    assert len(re.findall("</script>", page)) == 3  # the data, the library, the script


def test_the_table_has_the_best_run_first_and_every_digit(project: Trained) -> None:
    rows = table_of(project.results)
    values = [float(row["select_value"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert len(rows) == 3
    for row in rows:
        measured = read_json(project.results / "runs" / row["name"] / "evaluation.json")
        assert row["run"] == measured["run"]
        assert float(row["accuracy"]) == measured["metrics"]["accuracy"]["value"]
        assert float(row["roc_auc_low"]) == measured["metrics"]["roc_auc"]["low"]


def test_each_run_shows_its_own_value_of_every_varied_setting(project: Trained) -> None:
    rows = {row["name"]: row for row in table_of(project.results)}
    assert [rows[run]["optimizer.lr"] for run in project.runs] == ["0.001", "0.01"]
    assert [rows[run]["training.batch_size"] for run in project.runs] == ["64", "64"]
    best = read_json(project.tune_dir / "best.json")["params"]
    assert rows["tuned"]["training.batch_size"] == str(best["training.batch_size"])


def test_the_validation_split_chooses_the_best_run_and_not_the_test_split(project: Trained) -> None:
    runs = load_results(project.experiment, project.results, project.runs, project.work)
    loser = runs[-1]
    perfect = {"metrics": {**loser.evaluation["metrics"], "accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}}}
    changed = [replace(loser, evaluation={**loser.evaluation, **perfect}), *runs[:-1]]
    assert sorted(changed, key=RunResults.rank)[-1].name == loser.name


def test_runs_that_selected_by_another_metric_are_compared_by_the_experiments(project: Trained) -> None:
    run = load_results(project.experiment, project.results, project.runs[:1], project.work)[0]
    by_loss = replace(run, select_metric="val_loss")
    losses = [row["val_loss"] for row in run.history]
    assert by_loss.best() == (min(losses), losses.index(min(losses)) + 1)
    assert by_loss.rank()[0] == min(losses)


def test_without_a_study_the_chapter_is_absent(project: Trained, tmp_path: Path) -> None:
    experiment = project.experiment.model_copy(update={"tune": None})
    page = own_part(write_report(project, experiment, tmp_path / "report.html", project.runs))
    assert 'id="tuning"' not in page
    assert "#tuning" not in page


def augmenting(project: Trained, folder: Path, **augment: float) -> Path:
    """Return a copy of the results in which the runs have this augmentation."""
    results = Path(shutil.copytree(project.results, folder / "results" / project.results.name))
    for path in results.glob("runs/*/train.json"):
        train = read_json(path)
        settings = plan.load_run(train["digest"], project.work)[0].model_dump() | {"augment": augment, "seed": 7}
        frozen = plan.freeze(plan.RunConfig.model_validate(settings), project.work)
        path.write_text(json.dumps(train | {"digest": frozen.parent.name}))
    return results


@pytest.mark.parametrize("augment", [{"rotation": 10, "noise": 0.2}, {"mixup": 0.4}, {"cutmix": 1.0, "shift": 0.2}])
def test_augmented_images_are_shown_below_the_originals(
    project: Trained, tmp_path: Path, augment: dict[str, float]
) -> None:
    results = augmenting(project, tmp_path, **augment)
    pages = []
    for name in ("one.html", "two.html"):
        report.write(project.experiment, results, project.runs, project.work, tmp_path / name)
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1].replace("two.html", "one.html")
    assert '<section id="augmentation"' in pages[0]
    assert "epoch 1 (seed 7)" in pages[0]
    (encoded,) = re.findall(r'class="samples" src="data:image/png;base64,([^"]+)"', own_part(pages[0]))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    above, below = picture.reshape(2, 10, 8, 10).transpose(0, 2, 1, 3)[:, :, 1:-1, 1:-1]

    manifest = data.Manifest.load(project.data)
    split = data.load_split(manifest, "train", project.work)
    rows = torch.arange(8) * len(split) // 8
    others = mixing_partners(Augment(**augment), rows, key=epoch_key(7, 0), samples=len(split))
    inputs, targets = split.batch(rows if others is None else torch.cat((rows, others)))
    expected, *_ = augmented(Augment(**augment), inputs, targets, rows, others, key=epoch_key(7, 0))
    grey = [
        ((images * manifest.std[0] + manifest.mean[0]).clamp(0, 1) * 255)[:, 0] for images in (inputs[:8], expected)
    ]
    np.testing.assert_allclose(above, grey[0], atol=0.51)
    np.testing.assert_allclose(below, grey[1], atol=0.51)
    assert all((image != other).any() for image, other in zip(above, below, strict=True))


def test_a_page_whose_data_is_deleted_has_no_picture_but_is_complete(project: Trained, tmp_path: Path) -> None:
    results = augmenting(project, tmp_path, rotation=10)
    work = shutil.copytree(project.work, tmp_path / "work")
    shutil.rmtree(work / "data")
    report.write(project.experiment, results, project.runs, work, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<section id="augmentation"' not in page
    assert '<section id="errors"' in page  # their names and probabilities are in results/
    assert page.rstrip().endswith("</html>")


def test_a_page_without_augmentation_has_no_picture(project: Trained) -> None:
    assert "augmentation" not in own_part(page_of(project))


def test_for_many_classes_the_confused_pairs_replace_the_matrix() -> None:
    names = [f"class {label}" for label in range(60)]
    confusion = [[3 * (i == j) for j in range(60)] for i in range(60)]
    confusion[4][7] = 2
    measured = {"classes": names, "confusion": confusion}
    assert matrix(measured) is None
    assert confused(measured) == [{"target": "class 4", "predicted": "class 7", "count": 2, "share": 0.4}]


def test_headings_stay_short_unless_two_settings_share_a_word() -> None:
    settings = ["optimizer.lr", "model.name", "optimizer.name", "a.size", "b.size", "seed"]
    assert list(headings(settings).values()) == ["lr", "model", "optimizer", "a.size", "b.size", "seed"]


def test_the_cost_of_every_run_and_trial_adds_up(project: Trained) -> None:
    runs = load_results(project.experiment, project.results, [*project.runs, "tuned"], project.work)
    *lines, (name, everything) = cost(project.experiment, project.results, runs, [], project.work)
    assert [line[0] for line in lines[:-1]] == [run.name for run in runs]
    assert name == "all"
    assert lines[-1][0].endswith(" trials")
    workspaces = list(project.work.glob("runs/*/*/attempts"))
    assert everything.attempts == len(workspaces) == 3 + lines[-1][1].attempts
    assert everything.used_s == pytest.approx(sum(account.used_s for _, account in lines))
    rows = {row["name"]: row for row in table_of(project.results)}
    for run in runs:
        assert float(rows[run.name]["seconds"]) == run.account.used_s > 0
        assert (rows[run.name]["steps_redone"], rows[run.name]["reused"]) == ("0", "0")


def test_the_price_is_that_of_the_hours_and_empty_columns_are_left_out(project: Trained) -> None:
    priced = project.experiment.model_dump(mode="json")
    priced["report"]["price"] = {"cpu_hour": 36_000, "currency": "EUR"}
    experiment = config.Experiment.model_validate(priced)
    runs = load_results(experiment, project.results, project.runs, project.work)
    chapter = cost_chapter(experiment, project.results, runs, [], project.work)
    columns = {column.label: column for column in chapter["columns"]}
    assert list(columns) == ["Attempts", "Time", "CPU-hours", "Price", "Lost to interruptions"]
    for _, spent in chapter["lines"]:
        assert spent.used_cpu_s == pytest.approx(spent.used_s)  # of one process with one thread
        assert columns["Price"].value(spent) == pytest.approx(10 * spent.used_s)
    assert [label for label, *_ in chapter["cards"]] == [
        "Price",
        "CPU-hours",
        "Lost to interruptions",
        "Saved by reuse",
    ]
    assert chapter["cards"][0][1] == f"{10 * chapter['total'].used_cpu_s:,.2f} EUR"


def test_marks_of_an_axis_do_not_cover_each_other() -> None:
    drawn = figure("name", "label", ["a", "b", "c"], {"metric": [0.99, 0.988, 0.5], "lr": [1, 10, 100]})
    marks = {(note["x"], note["text"]) for note in drawn["layout"]["annotations"]}
    assert [trace["name"] for trace in drawn["data"]] == ["c", "b", "a"]  # five or fewer lines have their names
    assert marks == {(0, "0.5"), (0, "0.99"), (1, "1"), (1, "10"), (1, "100")}


def test_the_cost_of_a_run_whose_workspace_is_gone_is_that_of_its_statement(project: Trained, tmp_path: Path) -> None:
    train = read_json(project.results / "runs" / project.runs[0] / "train.json")
    assert account_of(train, tmp_path).used_s == train["seconds"]


def test_forty_colours_are_seen_on_the_light_and_on_the_dark_page() -> None:
    def luminance(colour: str) -> float:
        # source: WCAG 2.2, relative luminance
        shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pages = [luminance(card) for card in set(re.findall(r"--card: (#\w{6})", asset("report.css")))]
    colours = re.findall(r'"(#\w{6})"', asset("figures.js"))
    assert (len(set(colours)), len(pages)) == (40, 2)
    for page in pages:
        contrasts = {c: (max(luminance(c), page) + 0.05) / (min(luminance(c), page) + 0.05) for c in colours}
        assert min(contrasts.values()) >= 3, min(contrasts, key=lambda colour: contrasts[colour])


def test_curves_are_drawn_over_steps_if_a_run_is_counted_in_steps(project: Trained) -> None:
    runs = load_results(project.experiment, project.results, project.runs, project.work)
    assert unit_of(runs) == "epoch"
    assert unit_of([*runs, replace(runs[0], is_counted_in_steps=True)]) == "step"


def test_a_run_counted_in_steps_names_the_step_of_its_best_validation(project: Trained) -> None:
    run = load_results(project.experiment, project.results, project.runs[:1], project.work)[0]
    assert (run.best_place, run.length) == (f"epoch {run.best()[1]}", run.train["epochs"])
    best = {**run.train["best"], "metric": run.select_metric, "epoch": 1.5, "step": 1030}
    within = replace(run, is_counted_in_steps=True, train={**run.train, "best": best})
    assert (within.best_place, within.length) == ("step 1,030", run.train["steps"])
    assert (within.row()["best_epoch"], within.row()["best_step"]) == (1.5, 1030)


def test_a_run_that_is_not_exact_says_so(project: Trained, tmp_path: Path) -> None:
    results = Path(shutil.copytree(project.results, tmp_path / project.results.name))
    statement = results / "runs" / project.runs[0] / "train.json"
    statement.write_text(json.dumps(read_json(statement) | {"exact": False}))
    report.write(project.experiment, results, [*project.runs, "tuned"], project.work, tmp_path / "page.html")
    page = own_part((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.count("is not exact: trained again, it may give other weights") == 1


def test_the_summary_says_what_is_best_and_where_everything_is(project: Trained) -> None:
    text = report.summary(project.results)
    best = table_of(project.results)[0]
    assert best["run"] in text
    assert f"{float(best['accuracy']):.4f}" in text
    for path in ("report.html", f"runs/{best['name']}/model.onnx"):
        assert (project.results / path).exists()
        assert str(project.results / path) in text


def test_the_summary_names_the_version_of_this_model_and_the_decision(project: Trained, tmp_path: Path) -> None:
    results = Path(shutil.copytree(project.results, tmp_path / project.results.name))
    decision = {"promoted": False, "reason": "accuracy: worse"}
    made = {"name": "digits", "version": 2, "folder": "registry/digits/2", "alias": "champion", "decision": decision}
    inputs = {"results/digits/runs.csv": file_digest(results / "runs.csv")}
    write_json(results / "registered.json", made | {"provenance": {"inputs": inputs}})
    text = " ".join(report.summary(results).split())
    assert "registered version 2 of digits in registry/digits/2" in text
    assert "gate version 2 is not promoted to champion: accuracy: worse" in text
    with (results / "runs.csv").open("a") as table:
        table.write("\n")  # trained again since then
    assert "registered" not in report.summary(results)


def test_the_summary_is_indented_where_it_is_wrapped_and_keeps_commands_whole(project: Trained) -> None:
    wide, narrow = report.summary(project.results), report.summary(project.results, 40)
    assert narrow.split() == wide.split()
    assert f"\n    everstep predict {project.results.name} DATA --output predictions.csv\n" in narrow
    assert all(line.startswith("  ") for line in narrow.splitlines())
    wrapped = [line for line in narrow.splitlines() if line.startswith(" " * 12)]
    assert wrapped
    assert all(len(line) <= 40 for line in wrapped)


def test_a_large_test_split_has_no_caution(project: Trained) -> None:
    assert int(table_of(project.results)[0]["test_samples"]) >= 50
    assert "only" not in report.summary(project.results)
    assert 'caution">' not in own_part(page_of(project))


def test_the_summary_of_an_unfinished_experiment_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report yet; run `everstep run`"):
        report.summary(tmp_path)


def test_the_summary_imports_nothing_heavy(project: Trained) -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'plotly', 'optuna', 'jinja2'}"
    code = "import sys, pathlib; from workflow_lib import report; report.summary(pathlib.Path(sys.argv[1]))\n"
    code += f"print(sorted({heavy} & sys.modules.keys()))"
    command = [sys.executable, "-c", code, str(project.results)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@needs_chromium
def test_a_browser_draws_every_figure_without_an_error(project: Trained, tmp_path: Path) -> None:
    note = "addEventListener('error', (e) => document.body.append('FAILED: ' + e.message));"
    note += "addEventListener('securitypolicyviolation', (e) => document.body.append('FAILED: ' + e.blockedURI));"
    page = project.results / "report.html"
    noted = tmp_path / "noted.html"
    noted.write_text(page.read_text(encoding="utf-8").replace("<style>", f"<script>{note}</script><style>", 1))
    document = in_browser(noted, tmp_path / "browser", COUNT_DRAWN)
    assert "FAILED: " not in document.replace(note, "")
    assert "<title>12 of 12 drawn</title>" in document


@needs_chromium
def test_names_in_figures_are_text(project: Trained, tmp_path: Path) -> None:
    name = "<b>a</b> &lt; b"
    script = """ready.then(({ draw }) => {
      const [name, place] = [NAME, document.getElementById("figure-history")];
      const points = { type: "scatter", mode: "markers+text", name, x: [name, "z"], y: [1, 2], text: [name, ""] };
      const [xaxis, yaxis] = [{ title: { text: name } }, { tickvals: [1], ticktext: [name] }];
      const layout = { showlegend: true, xaxis, yaxis, annotations: [{ x: 0, y: 1, text: name }] };
      draw(place.id, [{ ...points, hovertext: [`${name}\\nc`, ""] }], layout);
      const shown = [...place.querySelectorAll("text")].filter((text) => text.textContent === name);
      document.title = `${shown.length} ${place.data[0].hovertext[0]}`;
    });"""
    document = in_browser(project.results / "report.html", tmp_path / "browser", script.replace("NAME", repr(name)))
    title = html.unescape(document.partition("<title>")[2].partition("</title>")[0])
    assert (
        title == "6 &lt;b>a&lt;/b> &amp;lt; b<br>c"
    )  # text, legend, title, two marks and a note; hover as Plotly reads it


def test_every_table_has_a_name(project: Trained) -> None:
    tables = re.findall(r"<table[^>]*>(?:\s*<caption>)?", own_part(page_of(project)))
    assert len(tables) > 5
    assert [table for table in tables if not re.search("aria-label=|<caption>|aria-live", table)] == []


@needs_chromium
def test_a_click_on_a_heading_sorts_the_table(project: Trained, tmp_path: Path) -> None:
    press = "document.querySelectorAll('#runs thead button')[1].click();"
    names = "[...document.querySelectorAll('#runs tbody tr')].map((row) => row.cells[1].textContent.trim())"
    sizes = []
    for name, presses in (("up", press), ("down", press * 2)):
        script = f"{presses} document.title = {names}.join(' ')"
        document = in_browser(project.results / "report.html", tmp_path / name, script)
        title = re.search("<title>(.*?)</title>", document)
        assert title
        sizes.append([float(text) for text in title[1].split()])
    assert sizes[0] == sorted(sizes[0]) == sizes[1][::-1]
    assert len(set(sizes[0])) > 1

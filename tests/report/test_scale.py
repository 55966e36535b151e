"""Commands do work in proportion to the number of runs, and the page of thousands of runs stays usable."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import store
from tests.support.report_page import COUNT_DRAWN, in_browser, needs_chromium, own_part, unpacked
from workflow_lib import plan
from workflow_lib.report.cost import cost
from workflow_lib.report.curves import MAX_CURVES
from workflow_lib.report.runs_table import PAGE
from workflow_lib.results.read_runs import load_results

RUNS, MANY = 30, 1050

# Counts the files that are opened, and the names in each folder that is listed.
COUNT = """
import os, sys
from workflow_lib import cli
count = {"open": 0, "entries": 0}
inside = False
def hook(event, arguments):
    global inside
    if event == "open":
        count["open"] += 1
    elif event in ("os.listdir", "os.scandir") and not inside:
        inside = True
        try:
            count["entries"] += len(os.listdir(arguments[0] or "."))
        except OSError:
            pass
        inside = False
sys.addaudithook(hook)
sys.stdout = open(os.devnull, "w")
code = cli.main(sys.argv[1:])
print(count["open"], count["entries"], code, file=sys.stderr)
"""
PAGE_OF = ["--results", "results/wide", "--plan", "results/wide/plan.json", "--output", "results/wide/report.html"]
VERBS = {
    "status": ["status"],
    "clean": ["clean"],
    "report": ["report", "--experiment", "config/wide.yaml", *PAGE_OF],
    "plan": ["plan", "config/wide.yaml"],
}


def work_of(folder: Path, arguments: list[str]) -> tuple[int, int]:
    """Return how many files the command opens, and how many names the folders that it lists have."""
    done = subprocess.run([sys.executable, "-c", COUNT, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened, listed, code = map(int, done.stderr.splitlines()[-1].split())
    assert code == 0, done.stderr
    return opened, listed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run, to which tests add others."""
    folder = tmp_path_factory.mktemp("scale")
    store.make(folder)
    return folder


@pytest.fixture(scope="module")
def work(project: Path) -> dict[str, list[tuple[int, int]]]:
    """The work of each command with RUNS runs, twice as many and three times as many."""
    found: dict[str, list[tuple[int, int]]] = {verb: [] for verb in VERBS}
    for runs in (RUNS, 2 * RUNS, 3 * RUNS):
        store.grow(project, runs)
        for verb, arguments in VERBS.items():
            found[verb].append(work_of(project, arguments))
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_twice_the_runs_are_twice_the_work(work: dict[str, list[tuple[int, int]]], verb: str) -> None:
    """Equally many further runs cost the same, whatever the start costs; otherwise something is quadratic."""
    for kind, counts in zip(("opened", "listed"), zip(*work[verb], strict=True), strict=True):
        first, second = counts[1] - counts[0], counts[2] - counts[1]
        assert second <= 1.1 * first + 10, (verb, kind, counts)


def test_a_run_costs_a_status_a_handful_of_files(work: dict[str, list[tuple[int, int]]]) -> None:
    (opened, _), (more, _), _ = work["status"]
    assert (more - opened) / RUNS <= 6  # manifest, attempt, configuration, events, deliveries


@pytest.fixture(scope="module")
def many(work: object, project: Path) -> Path:
    """The folder with the report of thousands of runs: report.html and runs.csv."""
    store.grow(project, MANY)
    work_of(project, VERBS["report"])
    return project / "results" / store.NAME


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_page_of_a_thousand_runs_is_small(many: Path) -> None:
    assert len(rows_of(many)) == MANY
    assert (many / "report.html").stat().st_size < 2_500_000


def test_without_javascript_the_page_shows_the_best_runs_and_names_the_table(many: Path) -> None:
    page = own_part(page_of(many))
    (table,) = re.findall(r'<section id="runs".*?</section>', page, re.DOTALL)
    assert re.findall(r'<th scope="row"><code>([^<]+)', table) == [row["name"] for row in rows_of(many)[:PAGE]]
    assert re.search(rf"<noscript><p>Shown are the {PAGE} best of {MANY:,} runs.*runs\.csv", table)


def test_the_page_draws_the_best_curves_and_says_so(many: Path) -> None:
    page = own_part(page_of(many))
    drawn = [curve["name"] for curve in json.loads(unpacked(page, "data"))["curves"]]
    assert drawn == [row["name"] for row in rows_of(many)[:MAX_CURVES]]
    assert f"Drawn here: the {MAX_CURVES} best runs, of {MANY:,}" in page


def test_the_costs_of_thousands_of_runs_add_up(many: Path, project: Path) -> None:
    experiment = store.experiment(project)
    names = [run.id for run in plan.expand(experiment)]
    runs = load_results(experiment, many, names, project / "work")
    *lines, (_, everything) = cost(experiment, many, runs, [], project / "work")
    assert len(lines) == PAGE + 1
    assert lines[-1][0] == f"{MANY - PAGE:,} other runs"
    assert everything.attempts == MANY == sum(account.attempts for _, account in lines)


# Writes the result of the steps into the document as soon as the table has its pages.
LOOK = """
const cells = (row) => [...row.cells].map((cell) => cell.innerText);
const texts = () => [...document.querySelectorAll('#runs tbody tr')].map(cells);
const said = () => document.querySelector('#runs [role=status]').textContent;
const press = (label) => document.querySelector(`#runs button[aria-label="${label}"]`).click();
const heading = (place) => document.querySelectorAll('#runs thead button')[place].click();
const write = (text) => {
  const field = document.querySelector('#runs input[type=search]');
  field.value = text;
  field.dispatchEvent(new Event('input'));
};
const server = texts();
const wait = setInterval(() => {
  if (!document.querySelector('#runs [role=status]')) return;
  clearInterval(wait);
  const out = Object.assign(document.createElement('script'), { type: 'text/plain', id: 'out' });
  document.body.append(out);
  out.textContent = JSON.stringify((() => { STEPS })());
}, 20);
"""


def looked(page: Path, browser: Path, steps: str) -> dict[str, Any]:
    """Return the results of the steps in a browser."""
    document = in_browser(page, browser, LOOK.replace("STEPS", steps))
    (out,) = re.findall('<script type="text/plain" id="out">(.*?)</script>', document, re.DOTALL)
    found: dict[str, Any] = json.loads(out)
    return found


@needs_chromium
def test_the_table_pages_sorts_and_filters_over_all_rows(many: Path, tmp_path: Path) -> None:
    rows = rows_of(many)
    chosen = rows[987]
    steps = f"""
      const found = {{ start: said() }};
      press('Next page'); found.second = [said(), texts().map((row) => row[0])];
      press('Last page'); found.last = [said(), texts().at(-1)[0]]; press('Next page'); found.beyond = said();
      press('Previous page'); found.before = said(); press('First page'); found.first = said();
      heading(3); found.up = [said(), texts().map((row) => row[0])];
      heading(3); found.down = texts().map((row) => row[0]);
      write('{chosen["digest"][:12]}'); found.filtered = [said(), texts().map((row) => row[0])];
      write('no such run'); found.none = [said(), texts().length];
      write(''); found.all = said();
      return found;
    """
    found = looked(many / "report.html", tmp_path / "browser", steps)
    names = [row["name"] for row in rows]
    plain = {key: [text.split()[0] for text in found[key][1]] for key in ("second", "up")}  # the best has a badge
    assert found["start"] == found["first"] == found["all"] == f"rows 1–{PAGE} of {MANY:,}"
    assert found["second"][0] == f"rows {PAGE + 1}–{2 * PAGE} of {MANY:,}"
    assert plain["second"] == names[PAGE : 2 * PAGE]
    assert found["last"] == [f"rows {MANY - PAGE + 1:,}–{MANY:,} of {MANY:,}", names[-1]]
    assert found["beyond"] == found["last"][0]
    assert found["before"] == f"rows {MANY - 2 * PAGE + 1:,}–{MANY - PAGE:,} of {MANY:,}"
    ranked = sorted(rows, key=lambda row: float(row["select_value"]))
    assert plain["up"] == [row["name"] for row in ranked[:PAGE]]
    assert found["down"] == [row["name"] for row in ranked[::-1][:PAGE]]
    assert found["filtered"] == [f"rows 1–1 of 1 (filtered, of {MANY:,})", [chosen["name"]]]
    assert found["none"] == [f"no rows (filtered, of {MANY:,})", 0]


@needs_chromium
def test_rows_made_in_the_browser_look_like_those_in_the_page(many: Path, tmp_path: Path) -> None:
    """Half of the first rows are removed from the page, so the browser makes them."""
    page = page_of(many)
    rows = re.findall(r'<tr(?: class="best")?>\s*<th scope="row"><code>.*?</tr>', page, re.DOTALL)[:PAGE]
    for row in rows[PAGE // 2 :]:
        page = page.replace(row, "", 1)
    cut = tmp_path / "cut.html"
    cut.write_text(page, encoding="utf-8")
    whole = looked(many / "report.html", tmp_path / "whole", "return { rows: server };")
    made = looked(cut, tmp_path / "made", "return { rows: texts(), server: server.length };")
    assert made["server"] == PAGE // 2
    assert made["rows"] == whole["rows"]


@needs_chromium
def test_the_pages_can_be_reached_by_keyboard_and_are_labelled(many: Path, tmp_path: Path) -> None:
    steps = """
      const bar = document.querySelector('#runs .pager');
      const name = (element) => element.getAttribute('aria-label') ?? element.labels[0].innerText.trim();
      const reached = [...bar.querySelectorAll('button, input')].map((element) => [element.tabIndex, name(element)]);
      press('Last page');
      return { reached, group: [bar.getAttribute('role'), bar.getAttribute('aria-label')],
        ends: [...bar.querySelectorAll('button')].map((button) => button.getAttribute('aria-disabled')),
        count: document.querySelector('#runs table').getAttribute('aria-rowcount'),
        index: document.querySelector('#runs tbody tr').getAttribute('aria-rowindex') };
    """
    found = looked(many / "report.html", tmp_path / "browser", steps)
    labels = ["Filter runs", "First page", "Previous page", "Next page", "Last page"]
    assert found["reached"] == [[0, label] for label in labels]
    assert found["group"] == ["group", "Pages of the table of runs"]
    assert found["ends"] == ["false", "false", "true", "true"]
    assert (found["count"], found["index"]) == (str(MANY + 1), str(MANY - PAGE + 2))


def test_the_page_holds_every_row_with_every_digit(many: Path) -> None:
    columns = json.loads(unpacked(page_of(many), "rows"))
    rows = rows_of(many)
    assert columns[0]["values"] == [row["name"] for row in rows]
    assert columns[3]["values"] == [float(row["select_value"]) for row in rows]


@needs_chromium
def test_a_browser_draws_every_figure_of_thousands_of_runs(many: Path, tmp_path: Path) -> None:
    copy = tmp_path / "report.html"
    shutil.copy(many / "report.html", copy)
    assert "<title>8 of 8 drawn</title>" in in_browser(copy, tmp_path / "browser", COUNT_DRAWN)

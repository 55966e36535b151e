"""The notebook of the documentation, and the page about Python, in a kernel, in a new project outside a clone."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from IPython import get_ipython

from tests.support.notebook import run_cells
from tests.support.repository import ROOT
from tests.workflow.conftest import WAIT_S
from workflow_lib import start
from workflow_lib.live import displays

SETUP = "from workflow_lib.live import displays; displays.CELL_S = 0"  # each view is sent, and not only one a second

# a pipeline with a job that fails
FAILING = """
from pathlib import Path
from workflow_lib.live.watch import Watch
from workflow_lib.store.events import EventLog, Follower

events = EventLog(Path("events.jsonl"))
events.append("plan", results="results/a<b", runs=["a-1"], is_local=True, experiment="e.json")
events.append("jobs", counts={"train": 1, "total": 1})
events.append("started", runs=["a-1"], packs={}, prepared="ready")
with Watch(Follower(events.path), Path("log")) as watch:
    watch.update()
    events.append("job", id=1, rule="train", wildcards={"run": "a-1"})
    events.append("failed", id=1, code=1, reason="everstep train: a bug")
    watch.update()
"""


def cells_of_notebook() -> list[str]:
    cells = [cell for cell in nbformat.read(ROOT / "docs/notebook.ipynb", 4).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    return [cell.source for cell in cells]


def blocks_of_page() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_notebook_and_the_examples_of_the_page_work(tmp_path: Path) -> None:
    """The page repeats the runs of the notebook, so that they are trained once."""
    project = tmp_path / "a project"
    start.new_project(project)
    cells = [SETUP, *cells_of_notebook(), *blocks_of_page(), FAILING]
    found = run_cells(cells, project, tmp_path, WAIT_S)
    shown = "\n".join(cell.text for cell in found)
    assert "4 runs of 4 with a result, best first" in shown
    assert "<b>Metrics on the test split</b><table" in shown
    (measured,) = re.findall(r"^accuracy of the opened model (\S+), of the report (\S+)$", shown, re.MULTILINE)
    assert measured[0] == measured[1]
    assert shown.count("nothing to do: sizes is finished (4 runs)") == 1
    assert (project / "config/mine.yaml").read_text().startswith("# Written from Python")

    *running, last, end = next(cell.views for cell, text in zip(found, cells, strict=True) if "sizes.run()" in text)
    assert all(view.startswith("<pre ") for view in running)
    assert "17 of 17 jobs" in last
    waiting, failed, nothing = found[-1].views
    assert "a&lt;b" in waiting
    assert "waiting" in waiting
    assert "failed" in failed
    assert nothing == end == ""  # no view is left
    plan, failure = (line[9:] for line in found[-1].text.splitlines())
    assert plan == "a<b: 1 job to run: training. Snakemake's output: log"
    assert failure == "train a-1 failed: a bug"


def test_python_that_has_imported_ipython_is_no_notebook() -> None:
    assert get_ipython() is None
    assert not displays.is_notebook()

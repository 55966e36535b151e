"""The notebook of the documentation, and the page about Python, in a new project outside of the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.support.repository import ROOT
from tests.workflow.conftest import WAIT_S
from workflow_lib import start

# runs each text as a cell: the value of its last expression is printed as a notebook shows it
CELLS = """
import ast, json, sys

names = {}
for cell in json.load(sys.stdin):
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        print(value._repr_html_() if hasattr(value, "_repr_html_") else value)
"""


def cells_of_notebook() -> list[str]:
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def blocks_of_page() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_notebook_and_the_examples_of_the_page_work(tmp_path: Path) -> None:
    """The page repeats the runs of the notebook, so that they are trained once."""
    project = tmp_path / "a project"
    start.new_project(project)
    cells = [*cells_of_notebook(), *blocks_of_page()]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", CELLS],
        cwd=project,
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout
    assert "4 runs of 4 with a result, best first" in shown
    assert "<b>Metrics on the test split</b><table" in shown
    (measured,) = re.findall(r"^accuracy of the opened model (\S+), of the report (\S+)$", shown, re.MULTILINE)
    assert measured[0] == measured[1]
    assert shown.count("nothing to do: sizes is finished (4 runs)") == 1
    assert (project / "config/mine.yaml").read_text().startswith("# Written from Python")

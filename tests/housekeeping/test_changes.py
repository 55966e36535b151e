"""A trained run in Python says if its code or its data has changed since, until the user accepts that."""

from __future__ import annotations

from pathlib import Path

import pytest

import workflow_lib
from tests.support.project import Project
from workflow_lib.files import read_json, write_json
from workflow_lib.store import layout

CODE = "the code, or a file that a setting names, has changed since the training (`everstep explain RUN`)"


def test_a_run_says_that_its_code_or_its_data_has_changed(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    assert workflow_lib.open_run(finished.run).changes == []

    # as if the model had been edited: the state is that of other code, and the statement names it
    other = f"{finished.workspace.name[:12]}-{'f' * 12}"
    before = finished.workspace
    trained = read_json(finished.output)
    write_json(finished.output, trained | {"sealed": trained["sealed"].replace(before.name, other)})
    before.rename(before.with_name(other))
    run = workflow_lib.open_run(finished.run)
    assert run.changes == [CODE]
    assert repr(run).endswith(CODE)
    assert "everstep explain RUN" in run._repr_html_()
    accepted = {"workspace": other, "code": "", "trained_with": None, "by": "", "time": ""}
    write_json(layout.acceptance_file(before), accepted)
    assert workflow_lib.open_run(finished.run).changes == []

    write_json(Path(finished.data), read_json(Path(finished.data)) | {"digest": "0" * 32})
    assert workflow_lib.open_run(finished.run).changes == [f"the data has changed since the training ({finished.data})"]
    Path(finished.data).unlink()
    assert workflow_lib.open_run(finished.run).changes == [f"its data is not prepared now ({finished.data})"]

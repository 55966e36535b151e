"""`everstep clean` leaves files of the user, of other clones, and behind symbolic links."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.housekeeping.conftest import clean, data_of, forget, listed, load, rest, run_of, tree
from tests.support.project import Project
from workflow_lib import cli
from workflow_lib.errors import UserError
from workflow_lib.housekeeping import cleaning
from workflow_lib.store import results_folders


def test_runs_that_another_clone_needs_stay(finished: Project, tmp_path: Path) -> None:
    """Its work/ is a link to the store of the first."""
    other = tmp_path / "other"
    (finished.folder / "results").rename(tmp_path / "results of the other")
    other.mkdir()
    (tmp_path / "results of the other").rename(other / "results")
    (other / "work").symlink_to(finished.folder / "work")
    results_folders.register(other / "work", other / "results")
    results_folders.register(finished.folder / "work", finished.folder / "results")
    rest(finished.folder / "work")
    assert list(listed(finished).values()) == ["older checkpoint of a finished run"]
    other.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{other}/results.* is missing.* delete .*work/clones/\w+\.json"):
        listed(finished)
    shutil.rmtree(tmp_path / "elsewhere" / "results")
    (tmp_path / "elsewhere").rename(other)
    assert run_of(finished) in listed(finished)


def test_a_moved_project_can_be_cleaned(finished: Project, tmp_path: Path) -> None:
    results_folders.register(finished.folder / "work", finished.folder / "results")
    finished.folder.rename(tmp_path / "moved")
    rest(tmp_path / "moved" / "work")
    items = cleaning.removable(tmp_path / "moved" / "work", tmp_path / "moved" / "results")
    assert [item.why for item in items] == ["older checkpoint of a finished run"]


def test_the_command_that_writes_a_plan_registers_its_results(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    shutil.rmtree("work/clones", ignore_errors=True)
    plan_file = f"results/{load(finished).name}/plan.json"
    assert cli.main(["freeze", "--experiment", "experiment.yaml", "--output", plan_file]) == 0
    assert results_folders.list_folders(Path("work"), finished.folder / "none") == [finished.folder / "results"]


def test_files_of_the_user_stay(finished: Project) -> None:
    work = finished.folder / "work"
    mine = ["notes.txt", "data/my-images/cat.png", "data/readme", "runs/backup/run/attempts/a.json", "prove/mine/x"]
    mine += ["experiments/draft.yaml", "runs/" + "0" * 32 + "/thesis.tex"]
    for name in mine:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    forget(finished)
    clean(finished)
    assert all((work / name).read_text() == name for name in mine)
    assert listed(finished) == {}


def test_a_folder_with_a_file_of_the_user_stays_complete(finished: Project) -> None:
    (finished.workspace / "thoughts.md").write_text("mine")
    (data_of(finished) / "labels.csv").write_text("mine")
    forget(finished)
    before = tree(finished.workspace) | tree(data_of(finished))
    clean(finished)
    assert tree(finished.workspace) | tree(data_of(finished)) == before


def test_symbolic_links_are_not_followed(finished: Project, tmp_path: Path) -> None:
    outside = tmp_path / "other disk"
    outside.mkdir()
    work, workspace, data = finished.folder / "work", finished.workspace, data_of(finished)
    for path in (workspace.parent, data):
        path.rename(outside / path.name)
        path.symlink_to(outside / path.name)
    (outside / "precious").mkdir()
    (outside / "precious" / "thesis.tex").write_text("mine")
    links = ["data/" + "a" * 32, "runs/" + "b" * 32, "prove/" + "c" * 12, "data/.trash-1", "experiments/x.json"]
    for name in links:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).symlink_to(outside / "precious")
    forget(finished)
    rest(outside)
    before = tree(outside)
    assert listed(finished) == {}
    clean(finished)
    assert tree(outside) == before
    assert all((work / name).is_symlink() for name in links)


def test_a_link_in_a_removed_folder_is_removed_without_its_target(killed: Project, tmp_path: Path) -> None:
    """A proof's folder links to its data."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("mine")
    left = killed.folder / "work" / "prove" / "0123456789ab"
    left.mkdir(parents=True)
    (left / "data").symlink_to(tmp_path / "target")
    clean(killed)
    assert not left.exists()
    assert (tmp_path / "target" / "file").read_text() == "mine"


def test_a_store_that_is_a_symbolic_link_is_cleaned(finished: Project, tmp_path: Path) -> None:
    forget(finished)
    (finished.folder / "work").rename(tmp_path / "scratch")
    (finished.folder / "work").symlink_to(tmp_path / "scratch")
    assert len(listed(finished)) == 2
    clean(finished)
    assert listed(finished) == {}

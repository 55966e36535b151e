"""A snapshot of the project's code: jobs import what was submitted, and everything else stays where it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest

from workflow_lib.errors import ConfigError
from workflow_lib.files import write_json
from workflow_lib.housekeeping import cleaning
from workflow_lib.plugins import source_digest
from workflow_lib.store import code_snapshot, controllers, layout

SHOW = "import mine.net as net; print(net.WIDTH, net.__file__, net.DATA.read_text(), net.NOTE.read_text(), sep='|')"
NET = """\
from pathlib import Path

from mine.sizes import WIDTH

DATA = Path(__file__).resolve().parents[1] / "data" / "words.txt"
NOTE = Path(__file__).with_name("note.txt")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a package of two modules, and data beside it."""
    folder = tmp_path / "project"
    for name, text in {
        "mine/net.py": NET,
        "mine/sizes.py": "WIDTH = 1\n",
        "mine/note.txt": "note",
        "data/words.txt": "words",
        "work/kept": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    return folder


def publish(project: Path, modules: dict[str, str] | None = None) -> Path:
    named = {name: project / path for name, path in (modules or {"mine.net": "mine/net.py"}).items()}
    folder = code_snapshot.publish(named, project, project / "work")
    assert folder is not None
    return folder


def imported(folder: Path, command: tuple[str, ...] = ("-c", SHOW)) -> str:
    """Return what a job prints that starts in the project, and imports from the snapshot."""
    environment = {"PATH": os.environ["PATH"], **code_snapshot.environment(folder, {"PYTHONPATH": str(folder.parent)})}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def code_of(folder: Path) -> str:
    return source_digest.read("mine.net", folder / "mine" / "net.py").digest


def test_a_job_imports_what_was_submitted_and_a_later_submission_the_edited_code(project: Path) -> None:
    first, digest = publish(project), code_of(project)
    (project / "mine" / "sizes.py").write_text("WIDTH = 2\n")
    (project / "mine" / "note.txt").write_text("edited")
    second = publish(project)
    assert imported(first) == f"1|{first}/mine/net.py|words|note"
    assert imported(second) == f"2|{second}/mine/net.py|words|edited"
    assert (code_of(first), code_of(second)) == (digest, code_of(project)), "the place is no part of the digest"
    assert digest != code_of(project)
    assert publish(project) == second
    (project / "mine" / "sizes.py").write_text("WIDTH = 1\n")
    (project / "mine" / "note.txt").write_text("note")
    assert publish(project) == first


def test_packages_are_copied_and_everything_else_is_a_link(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_snapshot, "COPIED_BYTES", 10)
    monkeypatch.setattr(code_snapshot, "FOLDER_ENTRIES", 8)
    elsewhere = project.parent / "shared"
    elsewhere.mkdir()
    (elsewhere / "blocks.py").write_text("SIZE = 3\n")
    (project / "mine" / "shared").symlink_to(elsewhere)
    (project / "mine" / "itself").symlink_to(project / "mine")
    (project / "mine" / "broken").symlink_to(project / "nowhere")
    (project / "mine" / "large.bin").write_bytes(bytes(11))
    (project / "mine" / "many").mkdir()
    for number in range(9):
        (project / "mine" / "many" / f"{number}.txt").touch()
    (project / "mine" / "many").rename(project / "mine" / "shared" / "many")
    os.mkdir(os.path.join(os.fsencode(project), b"mine", b"\xff"))
    folder = publish(project)
    links = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()}
    assert links == {"data", "mine/itself", "mine/large.bin", "mine/shared/many"}
    assert (folder / "mine/shared/blocks.py").read_text() == "SIZE = 3\n"
    (project / "later").touch()
    assert (publish(project) / "later").is_symlink()


def test_folders_of_the_import_path_stay_and_installed_code_is_left_out(project: Path) -> None:
    for name in ("src/own/__init__.py", "src/alone.py", ".venv/site-packages/bought/net.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("import alone\n")
    modules = {"own": "src/own/__init__.py", "bought.net": ".venv/site-packages/bought/net.py"}
    folder = publish(project, modules)
    assert code_snapshot.import_path(folder) == [str(folder), str(folder / "src")]
    assert not (folder / "src" / "alone.py").is_symlink()
    assert (folder / ".venv").is_symlink()
    assert imported(folder, ("-c", "import own; print(own.__file__)")) == f"{folder}/src/own/__init__.py"
    assert code_snapshot.publish({"os": Path(os.__file__)}, project, project / "work") is None


def test_a_damaged_or_partial_snapshot_is_written_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish(project)
    assert not (folder / "mine" / "net.py").stat().st_mode & 0o222, "nobody edits it by mistake"
    (folder / "mine" / "net.py").unlink()
    (folder / "mine" / "net.py").write_text("")
    assert publish(project) == folder
    assert (folder / "mine" / "net.py").read_text() == NET
    (project / "mine" / "sizes.py").write_text("WIDTH = 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *paths: os._exit(9))  # killed before the rename
        if (child := os.fork()) == 0:
            publish(project)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (partial,) = (project / "work" / "code").glob(".tmp-*")
    assert "2|" in imported(publish(project))
    assert [item.path for item in cleaning.removable(project / "work", project / "results")] == [partial]


def test_a_package_with_too_many_files_is_rejected(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_snapshot, "MOST_FILES", 2)
    with pytest.raises(ConfigError, match="more than 2 files or 100 MiB, as in mine"):
        publish(project)
    monkeypatch.undo()
    monkeypatch.setattr(code_snapshot, "FOLDER_ENTRIES", 2)
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match="mine: a folder of code has more than 2 entries"):
        publish(project)
    assert not list((project / "work").glob("code/*"))


def test_clean_removes_what_no_job_used_for_a_week(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, used = publish(project), None
    (project / "mine" / "sizes.py").write_text("WIDTH = 2\n")
    used = publish(project)
    week_ago = time.time() - 8 * 86400
    for folder in (old, used):
        os.utime(folder / ".code.json", (week_ago, week_ago))
    frozen = layout.experiment_file(project / "work", "a" * 32)
    write_json(frozen, {"name": "none"})
    os.utime(frozen, (week_ago, week_ago))
    held: list[TextIO] = []
    monkeypatch.setattr(controllers, "_held", held)
    controllers.enter(project / ".snakemake")  # this Snakemake may start more jobs
    assert cleaning.removable(project / "work", project / "results") == []
    held[0].close()
    code_snapshot.environment(used)
    assert frozen in [item.path for item in cleaning.removable(project / "work", project / "results")]
    frozen.unlink()
    items = cleaning.removable(project / "work", project / "results")
    assert [item.path for item in items] == [project / "work" / "code" / old.name]
    assert [why for _, why in cleaning.clean(items)] == [None]
    assert (project / "data" / "words.txt").exists(), "links are removed, not what they point to"
    with pytest.raises(ConfigError, match=f"{old}: the code that this job was submitted with is gone"):
        code_snapshot.use(old)


def test_scripts_that_user_code_starts_find_their_own_folder() -> None:
    environ = {"PYTHONSAFEPATH": code_snapshot.SAFE_PATH}
    code_snapshot.let_children_find_scripts(environ)
    assert not environ
    code_snapshot.let_children_find_scripts(theirs := {"PYTHONSAFEPATH": "1"})
    assert theirs

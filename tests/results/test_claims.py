"""Results belong to one experiment file: another file with the same name is rejected, the same file never is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from workflow_lib.cli import main
from workflow_lib.errors import ConfigError
from workflow_lib.results import claims
from workflow_lib.results import layout as results_layout

RESULTS = Path("results")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose results of `tiny` belong to config/a.yaml."""
    folder = tmp_path / "project"
    (folder / "config").mkdir(parents=True)
    (folder / "Snakefile").touch()
    monkeypatch.chdir(folder)
    write("config/a.yaml", "name: tiny\n")
    acquire("config/a.yaml")
    return folder


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def acquire(*paths: str, settings: tuple[str, ...] = (), name: str = "tiny", results: Path = RESULTS) -> str | None:
    return claims.acquire(results, name, claims.claim_of([Path(path) for path in paths], settings))


def check(*paths: str, settings: tuple[str, ...] = (), name: str = "tiny", results: Path = RESULTS) -> str | None:
    return claims.check(results, name, claims.claim_of([Path(path) for path in paths], settings))


def test_a_copied_and_edited_file_is_rejected_with_the_owner() -> None:
    write("config/b.yaml", "name: tiny\nseed: 3\n")
    before = (RESULTS / "tiny" / results_layout.OWNER).read_bytes()
    for function in (check, acquire):
        with pytest.raises(ConfigError) as error:
            function("config/b.yaml")
        for words in ("config/b.yaml", "results/tiny belongs to config/a.yaml", "delete results/tiny/experiment.json"):
            assert words in str(error.value)
    assert (RESULTS / "tiny" / results_layout.OWNER).read_bytes() == before
    (RESULTS / "tiny" / results_layout.OWNER).unlink()
    assert acquire("config/b.yaml") is None
    write("config/a.yaml", "name: tiny\nseed: 4\n")
    with pytest.raises(ConfigError, match="belongs to config/b.yaml"):
        check("config/a.yaml")


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_validate_and_plan_reject_it_too(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("config/b.yaml", "name: tiny\nseed: 3\n")
    assert main([verb, "config/a.yaml"]) == 0
    assert main([verb, "config/b.yaml"]) == 2
    assert "results/tiny belongs to config/a.yaml" in capsys.readouterr().err
    assert main([verb, "config/b.yaml", "--set", "name=other"]) == 0


def test_the_same_file_is_accepted_edited_by_any_path_and_frozen(tmp_path: Path) -> None:
    write("config/a.yaml", "name: tiny\nseed: 5\n")
    assert check("config/a.yaml") is None
    assert acquire("config/a.yaml", settings=("training.epochs=3",)) is None
    Path("config/link.yaml").symlink_to("a.yaml")
    os.link("config/a.yaml", "config/hard.yaml")
    (tmp_path / "elsewhere").symlink_to(Path.cwd())
    for path in ("config/link.yaml", "config/hard.yaml", str(tmp_path / "elsewhere/config/a.yaml")):
        assert check(path) is None
    write("config/a.yaml", "name: [broken\n")
    frozen = Path(f"work/experiments/{'0' * 32}.json")
    frozen.parent.mkdir(parents=True)
    frozen.write_text("{}")
    assert check(str(frozen)) is None


def test_a_link_with_a_new_target_is_another_file() -> None:
    write("config/b.yaml", "name: tiny\nseed: 3\n")
    Path("config/now.yaml").symlink_to("a.yaml")
    assert acquire("config/now.yaml") is None
    Path("config/now.yaml").unlink()
    Path("config/now.yaml").symlink_to("b.yaml")
    with pytest.raises(ConfigError, match="belongs to config/a.yaml"):
        check("config/now.yaml")


def test_a_copy_with_the_same_content_is_accepted_without_taking_over() -> None:
    shutil.copy("config/a.yaml", "config/b.yaml")
    assert acquire("config/b.yaml") is None
    write("config/b.yaml", "name: tiny\nseed: 3\n")
    with pytest.raises(ConfigError, match="belongs to config/a.yaml"):
        check("config/b.yaml")


def test_equal_text_that_extends_different_files_is_another_file() -> None:
    write("config/a.yaml", "extends: base.yaml\n")
    Path("config/other").mkdir()
    write("config/base.yaml", "name: tiny\n")
    write("config/other/base.yaml", "name: tiny\nseed: 3\n")
    shutil.copy("config/a.yaml", "config/other/a.yaml")
    with pytest.raises(ConfigError, match="belongs to config/a.yaml"):
        check("config/other/a.yaml")


def test_a_renamed_file_takes_its_results_over_with_a_message() -> None:
    Path("config/a.yaml").rename("config/b.yaml")
    line = acquire("config/b.yaml")
    assert line == "results/tiny was made from config/a.yaml, which is gone; it now belongs to config/b.yaml"
    assert acquire("config/b.yaml") is None
    write("config/a.yaml", "name: tiny\nseed: 3\n")
    write("config/a.yaml", "name: tiny\nseed: 4\n")
    with pytest.raises(ConfigError, match="belongs to config/b.yaml"):
        check("config/a.yaml")


def test_a_file_with_a_new_name_releases_the_results_of_the_old_name() -> None:
    shutil.copy("config/a.yaml", "config/b.yaml")
    write("config/a.yaml", "name: second\nseed: 3\n")
    assert "now has another name; it now belongs to config/b.yaml" in str(acquire("config/b.yaml"))
    assert acquire("config/b.yaml") is None


def test_a_name_set_on_the_command_line_belongs_to_its_file() -> None:
    acquire("config/a.yaml", settings=("name=other",), name="other")
    write("config/b.yaml", "name: other\nseed: 3\n")
    with pytest.raises(ConfigError, match="results/other belongs to config/a.yaml"):
        check("config/b.yaml", name="other")


def test_merged_files_are_another_experiment_than_the_first_alone() -> None:
    write("config/over.yaml", "seed: 3\n")
    with pytest.raises(ConfigError, match=r"config/a.yaml with config/over.yaml: .* belongs to config/a.yaml"):
        check("config/a.yaml", "config/over.yaml")


def test_a_moved_project_keeps_its_results(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.rename(project.with_name("moved"))
    monkeypatch.chdir(project.with_name("moved"))
    assert acquire("config/a.yaml") is None
    project.mkdir()  # another project where this one was
    (project / "config").mkdir()
    (project / "config/a.yaml").write_text("name: tiny\nseed: 3\n")
    assert acquire("config/a.yaml") is None


def test_a_copied_project_has_its_own_results(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = project.with_name("copy")
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    write("config/a.yaml", "name: tiny\nseed: 3\n")
    assert check("config/a.yaml") is None
    assert acquire("config/a.yaml") is None
    write("config/b.yaml", "name: tiny\nseed: 4\n")
    with pytest.raises(ConfigError, match="belongs to config/a.yaml"):
        check("config/b.yaml")
    monkeypatch.chdir(project)
    write("config/a.yaml", "name: tiny\nseed: 5\n")
    assert check("config/a.yaml") is None


def test_another_clone_may_use_shared_results_while_the_files_are_equal(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, ignore=shutil.ignore_patterns("results"))
    (clone / "results").symlink_to(project / "results")
    monkeypatch.chdir(clone)
    assert acquire("config/a.yaml") is None
    write("config/a.yaml", "name: tiny\nseed: 3\n")
    with pytest.raises(ConfigError, match=f"belongs to {project}/config/a.yaml"):
        check("config/a.yaml")


def test_a_name_without_results_is_free() -> None:
    write("config/b.yaml", "name: fresh\n")
    write("config/c.yaml", "name: fresh\nseed: 3\n")
    assert main(["validate", "config/b.yaml", "config/c.yaml"]) == 0
    assert check("config/b.yaml", name="fresh") is None
    assert check("config/c.yaml", name="fresh") is None
    shutil.rmtree(RESULTS / "tiny")
    write("config/b.yaml", "name: tiny\nseed: 3\n")
    assert acquire("config/b.yaml") is None

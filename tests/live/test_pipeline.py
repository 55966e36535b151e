"""The command of Snakemake, and the job of `everstep run --detach`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser

from workflow_lib import live
from workflow_lib.errors import UserError
from workflow_lib.live import detached, pipeline
from workflow_lib.store.controllers import DETACHED


def test_words_after_the_options_are_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    command = live.snakemake(Path("a.yaml"), "local", ["seed=1", "name=b"], ["results/a/plan.json"])
    given = get_argument_parser().parse_args(command[command.index("snakemake") + 1 :])
    assert [*given.targets] == ["results/a/plan.json"]
    assert [str(path) for path in given.configfile] == ["a.yaml"]
    assert given.config == ["set=seed=1", "set=name=b"]


def test_logs_are_removed_that_are_old_and_not_among_the_newest(tmp_path: Path) -> None:
    names = [f"2026-01-{day:02}T120000-{day}.log" for day in range(1, 26)] + ["slurm-7.log", "2026-01-01.log"]
    for name in names:
        (tmp_path / name).touch()
        if not name.startswith("2026-01-03"):
            os.utime(tmp_path / name, (1e9, 1e9))
    pipeline.remove_old_logs(tmp_path)
    removed = {*names} - {path.name for path in tmp_path.iterdir()}
    assert removed == {f"2026-01-{day:02}T120000-{day}.log" for day in (1, 2, 4, 5)}


def test_only_a_profile_for_slurm_can_be_detached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has no Snakefile"):
        live.detach(Path("a.yaml"), "slurm", [], [], [])
    (tmp_path / "Snakefile").touch()
    with pytest.raises(UserError, match="no `executor: slurm`"):
        live.detach(Path("a.yaml"), "local", [], [], [])
    assert [path.name for path in tmp_path.iterdir()] == ["Snakefile"]


@pytest.mark.parametrize(("mark", "kept"), [("7", {"HOME", "SLURM_CONF", DETACHED}), ("6", None), (None, None)])
def test_snakemake_in_its_own_job_submits_without_the_variables_of_that_job(
    mark: str | None, kept: set[str] | None
) -> None:
    environ = {"HOME": "/", "SLURM_CONF": "/c", "SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "1"}
    environ |= {} if mark is None else {DETACHED: mark}
    assert detached.environment(environ).keys() == (environ.keys() if kept is None else kept)


def test_snakemake_has_a_cache_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert pipeline.cache_without_home({"HOME": str(tmp_path / "home")}) == {}
    moved = {"XDG_CACHE_HOME": str(tmp_path / ".snakemake" / "cache")}
    assert pipeline.cache_without_home({"HOME": str(tmp_path / "file" / "home")}) == moved

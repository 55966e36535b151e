"""Runs that are trained in a pack have the results of single jobs, and a later pipeline sees no difference."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

from tests.workflow.conftest import TINY, Project

FILES = ("model.safetensors", "history.csv", "predictions.csv", "model.onnx")
PACKED = TINY.partition("tune:")[0] + "runtime: {pack: auto}\n"


def statement(project: Project, run: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.folder / "results/tiny/runs" / run / name).read_text())
    return content


def without_provenance(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "provenance"}


def imports_of(project: Project, command: str, experiment: str) -> str:
    """Run a command of a rule; return its exit code, and True if it imported torch."""
    arguments = shlex.split(command)[3:]
    code = f"import sys; from workflow_lib.cli import main; print(main({arguments}), 'torch' in sys.modules)"
    environment = {**os.environ, "EVERSTEP_EXPERIMENT": experiment, "OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, "-c", code]
    return subprocess.run(
        command_line, cwd=project.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def test_a_packed_sweep_has_the_results_of_single_jobs(project: Project, finished: Project) -> None:
    project.write(PACKED)
    shown = project.everstep("plan", project.config)
    assert "runtime.pack: auto: on this machine, 2 runs without a result are trained by 1 job" in shown.stdout
    outcome = project.make()
    runs = {run for rule, run in outcome.jobs if rule == "train" and run is not None}
    assert len(runs) == 2
    assert {rule for rule, _ in outcome.jobs} >= {"pack", "train", "evaluate", "export"}
    for run in runs:
        for name in FILES:
            ours, alone = (its.folder / "results/tiny/runs" / run / name for its in (project, finished))
            assert ours.read_bytes() == alone.read_bytes(), name
        for name, verb in (("evaluation.json", "evaluate"), ("export.json", "export")):
            ours, alone = statement(project, run, name), statement(finished, run, name)
            assert without_provenance(ours) == without_provenance(alone)
            assert ours["provenance"]["command"] == alone["provenance"]["command"]
            assert ours["provenance"]["inputs"].keys() == alone["provenance"]["inputs"].keys()
            assert ours["provenance"]["environment"]["command"][1] == verb
            log = (project.folder / f"logs/{verb}/tiny/{run}.log").read_text()
            assert "computed in a pack" in log, log
        assert statement(project, run, "train.json")["attempts"] == 1
        log = (project.folder / f"logs/train/tiny/{run}.log").read_text()
        assert log.endswith(f"info  results/tiny/runs/{run}/train.json: trained in a pack\n"), log
        assert len(log.splitlines()) == 1, "it is handed out without the package, and without a training"
    assert not list(project.folder.glob("work/packs/ready-*")), "the pipeline removes what was prepared"
    # the pack is no part of the record: neither its absence nor another setting reruns anything
    assert not (project.folder / "results/tiny/packs").exists()
    assert project.make("--dry-run").is_nothing
    assert project.make("--dry-run", "--config", "set=runtime.pack=1").is_nothing
    for name in ("train.json", "evaluation.json", "export.json"):
        made = statement(project, min(runs), name)["provenance"]
        assert imports_of(project, made["command"], made["experiment"]) == "0 False"
    # what a pack computed is verified: a damaged result is computed again
    (damaged,) = project.folder.glob(f"work/runs/{max(runs)[-12:]}*/*/computed/*/predictions.csv")
    damaged.write_bytes(damaged.read_bytes()[:-2])
    made = statement(project, max(runs), "evaluation.json")["provenance"]
    assert imports_of(project, made["command"], made["experiment"]) == "0 True"
    ours, alone = (its.folder / "results/tiny/runs" / max(runs) / "predictions.csv" for its in (project, finished))
    assert ours.read_bytes() == alone.read_bytes()
    # a single run without a result is trained by its own job
    run = min(runs)
    (project.folder / f"results/tiny/runs/{run}/train.json").unlink()
    assert {rule for rule, _ in project.plan()} == {"train", "evaluate", "export", "report"}


def test_runs_are_not_packed_on_several_processes(project: Project) -> None:
    project.write(PACKED.replace("{pack: auto}", "{pack: 8, nproc: 2}"))
    assert {rule for rule, _ in project.plan()}.isdisjoint({"pack"})
    shown = project.everstep("plan", project.config).stdout
    assert "runtime.pack: 8: runs are trained one by one, since runtime.nproc is 2" in shown

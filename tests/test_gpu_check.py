"""scripts/gpu-check with --cpu, and its exit codes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.repository import ROOT, copy_repository
from tests.support.warm import until

# a sitecustomize that clears the moments of the optimizer on a resume
FORGETFUL = """
import sys

if "prove-resume" in sys.orig_argv:
    from workflow_lib.training import snapshot

    restore = snapshot.restore

    def forgetful(state, loaded):
        restore(state, loaded)
        for moments in state.optimizer.state.values():
            moments["exp_avg"].zero_()

    snapshot.restore = forgetful
"""

BUILT = """
import torch

torch.backends.cuda.is_built = lambda: {built}
"""

NO_DRIVER = """
import ctypes

class Hiding(ctypes.CDLL):
    def __init__(self, name, *given, **options):
        if name == "libcuda.so.1":
            raise OSError(name)
        super().__init__(name, *given, **options)

ctypes.CDLL = Hiding
"""

# checks that end at once, all but one only when they are told to
WAITING = """
import os, sys, time

if "--child" in sys.orig_argv:
    while "graph-mlp" not in sys.orig_argv and not os.path.exists({go!r}):
        time.sleep(0.05)
    os._exit(5)
"""

# a prove-resume that does not end
ENDLESS = """
import os, sys, time

if "prove-resume" in sys.orig_argv:
    with open(os.environ["TMPDIR"] + "/pid", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(10_000)
"""


def planted(folder: Path, plant: str) -> str:
    """Return a folder from which each Python first runs the code in ``plant``."""
    (folder / "sitecustomize.py").write_text(plant)
    return str(folder)


def checked(
    folder: Path, *words: str, clone: Path = ROOT, plant: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; each of its processes first runs the code in ``plant``."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**inherited, "TMPDIR": str(folder), "PYTHONPATH": planted(folder, plant), **variables}
    command = [sys.executable, str(clone / "scripts/gpu-check"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_one_line_says_why(tmp_path: Path) -> None:
    shown = checked(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert shown.returncode == 2
    assert shown.stdout == ""
    (line,) = shown.stderr.splitlines()
    assert line.startswith("gpu-check: ")
    assert any(why in line for why in ("not built for CUDA", "driver", "no GPU"))


def test_a_torch_without_cuda_is_told_from_a_missing_driver(tmp_path: Path) -> None:
    without = checked(tmp_path, plant=BUILT.format(built=False))
    driverless = checked(tmp_path, plant=BUILT.format(built=True) + NO_DRIVER)
    assert [without.returncode, driverless.returncode] == [2, 2]
    assert "is not built for CUDA" in without.stderr
    assert "NVIDIA's driver is not installed" in driverless.stderr


def test_the_rehearsal_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    copy_repository(clone)
    before = sorted(clone.rglob("*"))
    only = [word for name in ("forks", "full-memory", "model-starts", "graph-mlp") for word in ("--only", name)]
    shown = checked(tmp_path, "--cpu", *only, "--json", str(tmp_path / "found.json"), clone=clone)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    found = {check["name"]: check for check in json.loads((tmp_path / "found.json").read_text())["checks"]}
    assert {name: check["verdict"] for name, check in found.items()} == {
        "forks": "PASS",
        "full-memory": "PASS",
        "model-starts": "SKIP",
        "graph-mlp": "PASS",
    }
    assert "3 passed, 0 failed, 1 skipped" in shown.stdout.splitlines()[-1]
    assert not list(tmp_path.glob("gpu-check-*"))
    assert sorted(clone.rglob("*")) == before


def test_a_resume_that_is_not_exact_fails(tmp_path: Path) -> None:
    shown = checked(tmp_path, "--cpu", "--only", "prove-mlp", plant=FORGETFUL)
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "prove-mlp         FAIL" in shown.stdout
    assert "NOT exact after" in shown.stdout
    assert "0 passed, 1 failed, 0 skipped" in shown.stdout.splitlines()[-1]
    (kept,) = tmp_path.glob("gpu-check-*")
    assert str(kept) in shown.stdout


def test_a_check_that_the_whole_time_cuts_short_has_not_failed(tmp_path: Path) -> None:
    shown = checked(tmp_path, "--cpu", "--only", "prove-mlp", "--within", "6", plant=ENDLESS)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "0 passed, 0 failed, 1 skipped" in shown.stdout.splitlines()[-1]


def test_a_check_that_hangs_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    shown = checked(tmp_path, "--cpu", "--only", "prove-mlp", "--limit", "20", plant=ENDLESS)
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "not done after 20 s: ended" in shown.stdout
    started = int((tmp_path / "pid").read_text())
    until(lambda: not psutil.pid_exists(started), "the check's process to end")


def test_a_part_of_a_measurement_that_fails_or_hangs_loses_its_own_figures_only(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}]
from gpu_check import measuring
place = Path.cwd()
parts = {{
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(1000),
    "tells nothing": lambda: None,
    "raises": lambda: measuring.tell(place, "begun") or 1 / 0,
    "whole": lambda: measuring.tell(place, "done"),
}}
print(measuring.in_forks(place, parts, 1))
print(measuring.told(place))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    failed, told = map(ast.literal_eval, shown.stdout.splitlines())
    assert [line.partition(": ")[2] for line in failed] == [
        "ended with -9: ",
        "not done after 1 s: ended",
        "no figure",
        "ended with 1: ZeroDivisionError: division by zero",
    ]
    assert told == ["begun", "done"]


def test_what_is_needed_most_comes_first_and_each_result_is_kept_at_once(tmp_path: Path) -> None:
    found, go = tmp_path / "found.json", tmp_path / "go"
    words = ["--cpu", "--only", "forks", "--only", "graph-mlp", "--json", str(found)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/gpu-check"), *words],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": planted(tmp_path, WAITING.format(go=str(go)))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        until(found.exists, "the result of the first check")
        assert [check["name"] for check in json.loads(found.read_text())["checks"]] == ["graph-mlp"]
        go.touch()
    assert [check["verdict"] for check in json.loads(found.read_text())["checks"]] == ["FAIL", "FAIL"]


def test_a_check_that_is_unknown_is_a_mistake(tmp_path: Path) -> None:
    shown = checked(tmp_path, "--cpu", "--only", "prove-mpl")
    assert shown.returncode == 2
    assert "prove-mlp" in shown.stderr


def test_a_check_names_missing_requirements_of_the_compiler(tmp_path: Path) -> None:
    shown = checked(tmp_path, "--cpu", "--only", "prove-compiled", CXX="no-such-g++")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "SKIP" in shown.stdout
    assert "a C++ compiler (no-such-g++)" in shown.stdout


def test_gpus_that_are_too_old_for_bf16_skip_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from gpu_check import exact, project, saves

    turing = project.Machine("cuda:0", 1, 7.5)
    checks = {check.name: check for check in (*exact.EXACT, *saves.SAVES)}
    for name in ("prove-transformer", "save"):
        with pytest.raises(project.Skipped, match="bf16 needs compute capability 8.0; here is 7.5"):
            checks[name].run(turing, tmp_path / name)
    project.need_bf16(project.Machine("cuda:0", 1, 8.0))


@pytest.mark.parametrize(("largest", "taken"), [(16, 16), (5, 4), (1, 1), (0, None)])
def test_a_batch_that_does_not_fit_is_made_smaller(
    monkeypatch: pytest.MonkeyPatch, largest: int, taken: int | None
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from gpu_check import bench, speed

    def measure(case: Any) -> int:
        if case.batch > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return int(case.batch)

    found = bench.fitting(speed.CASES["GPT 124M bf16"], torch.device("cpu"), measure)
    assert (found and (found[0].batch, found[1])) == (taken and (taken, taken))

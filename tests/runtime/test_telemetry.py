import json
import subprocess
from pathlib import Path

import pytest
import torch

from workflow_lib.runtime import telemetry

CPU = torch.device("cpu")


def test_the_report_is_json_and_names_what_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    report = json.loads(json.dumps(telemetry.environment(CPU)))
    assert report["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert report["scheduler"]["SLURM_JOB_ID"] == "77"
    assert report["cpus"] >= 1 and report["cpu"] and report["python"] and report["device"] == "cpu"


def test_the_fingerprint_is_the_same_in_the_same_circumstances_only() -> None:
    assert telemetry.fingerprint(CPU, nproc=2) == telemetry.fingerprint(CPU, nproc=2)
    assert telemetry.fingerprint(CPU, nproc=2) != telemetry.fingerprint(CPU, nproc=3)
    before, threads = telemetry.fingerprint(CPU), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert telemetry.fingerprint(CPU) != before
    finally:
        torch.set_num_threads(threads)


def test_deterministic_algorithms_are_in_the_fingerprint() -> None:
    before = telemetry.fingerprint(CPU)
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not was)
    try:
        assert telemetry.fingerprint(CPU) != before
    finally:
        torch.use_deterministic_algorithms(was)


def test_no_clock_host_or_job_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = telemetry.fingerprint(CPU)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert telemetry.fingerprint(CPU) == before


def test_the_commit_is_that_of_the_folder(tmp_path: Path) -> None:
    assert telemetry.git_commit(tmp_path) is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit = ["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "First"]
    subprocess.run(commit, check=True)
    found = telemetry.git_commit(tmp_path)
    assert found is not None and len(found) == 40 and set(found) <= set("0123456789abcdef")

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workflow_lib.errors import UserError
from workflow_lib.files import read_json, write_json
from workflow_lib.results import provenance


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results folder of a run with statements of training and evaluation, the latter with provenance."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERSTEP_EXPERIMENT", "work/experiments/abc.json")
    monkeypatch.setattr(sys, "argv", ["everstep", "evaluate", "--run", "a b"])
    folder = tmp_path / "results" / "demo" / "runs" / "demo-0123456789ab"
    identity = {"run": folder.name, "digest": "0123456789ab" + "0" * 20, "data": "d" * 32, "code": "c" * 32}
    training = {
        "model": "m" * 64,
        "steps": 120,
        "epochs": 4,
        "attempts": 3,
        "sealed": "work/runs/x/checkpoints/step-120",
    }
    write_json(folder / "train.json", {**identity, **training, "model": "m" * 64})
    (folder / "model.safetensors").write_bytes(b"weights")
    record = provenance.record([folder / "model.safetensors"], torch.device("cpu"))
    write_json(folder / "evaluation.json", {**identity, "provenance": record})
    return folder


def test_a_record_names_the_command_the_inputs_and_the_machine(folder: Path) -> None:
    record = read_json(folder / "evaluation.json")["provenance"]
    assert record["command"] == "python -m workflow_lib evaluate --run 'a b'"
    assert record["inputs"] == {str(folder / "model.safetensors"): provenance.file_digest(folder / "model.safetensors")}
    assert record["environment"]["python"]
    assert record["code"]["version"]


def test_the_record_contains_uncommitted_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "One"]):
        subprocess.run([*git, *command], check=True)
    code = provenance.record([], torch.device("cpu"))["code"]
    assert len(code["commit"]) == 40
    assert code["modified"] is False
    Path("code.py").write_text("2")
    assert provenance.record([], torch.device("cpu"))["code"] == {**code, "modified": True}


def test_a_trace_contains_the_run_the_attempts_and_the_command(folder: Path) -> None:
    text = provenance.trace(folder / "evaluation.json", Path("work"))
    for expected in (
        "demo-0123456789ab",
        f"work/runs/{'0123456789ab' + '0' * 20}/config.json",
        "120 steps, 4 epochs, attempts: 3",
        "python -m workflow_lib evaluate --run 'a b'",
        f"everstep run work/experiments/abc.json -- --force {folder / 'evaluation.json'}",
    ):
        assert expected in text
    assert "changed since" not in text


def test_a_trace_marks_inputs_that_changed_or_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert "(changed since)" in provenance.trace(folder / "evaluation.json", Path("work"))
    (folder / "model.safetensors").unlink()
    assert "(gone)" in provenance.trace(folder / "evaluation.json", Path("work"))


def test_a_trace_says_that_the_weights_of_a_source_differ_now(folder: Path) -> None:
    trained = read_json(folder / "train.json")
    source = folder.parent / "pre-abcdef012345"
    source.mkdir()
    started = {"from": source.name, "digest": "1" * 64, "taken": 4, "not_taken": [], "unused": []}
    write_json(folder / "train.json", trained | {"initialised": started})

    def row() -> str:
        return next(
            line for line in provenance.trace(folder / "train.json", Path("work")).splitlines() if "pre-" in line
        )

    assert "(gone), 4 weights" in row()
    write_json(source / "train.json", trained | {"model": "1" * 64})
    assert f"{source.name} ({'1' * 64}), 4 weights" in row()
    write_json(source / "train.json", trained | {"model": "2" * 64})  # trained again, with other code
    assert f"({'1' * 64}) (its weights differ now: {'2' * 64}), 4 weights" in row()
    Path("start.pt").write_bytes(b"weights")
    digest = provenance.file_digest(Path("start.pt"))
    write_json(folder / "train.json", trained | {"initialised": started | {"from": "start.pt", "digest": digest}})
    said = provenance.trace(folder / "train.json", Path("work"))
    assert "differ" not in said
    Path("start.pt").write_bytes(b"others")
    assert "start.pt" in said
    assert "(its weights differ now" in provenance.trace(folder / "train.json", Path("work"))


@pytest.mark.parametrize(("name", "statement"), [("predictions.csv", "evaluation.json"), ("history.csv", "train.json")])
def test_other_files_are_traced_by_the_statement_beside_them(folder: Path, name: str, statement: str) -> None:
    (folder / name).touch()
    rest = provenance.trace(folder / name, Path("work")).splitlines()[1:-1]
    assert rest == provenance.trace(folder / statement, Path("work")).splitlines()[1:-1]


def test_files_that_cannot_be_traced_are_rejected_with_the_reason(folder: Path) -> None:
    write_json(folder / "other.json", {"run": "x"})
    (folder / "model.onnx").touch()
    for name, why in (
        ("none.json", "no such file"),
        ("other.json", "not a result"),
        ("model.onnx", "no export.json"),
    ):
        with pytest.raises(UserError, match=f"{name}: {why}"):
            provenance.trace(folder / name, Path("work"))

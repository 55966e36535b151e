"""Prepared results of a pack are handed out to the command that they are for, and to no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workflow_lib import ready
from workflow_lib.files import write_json, write_signed
from workflow_lib.store.events import read_events

OUTPUT, MODEL, DATA = Path("results/e.json"), Path("results/m.bin"), Path("results/d.json")
PREPARED = {"table.csv": b"a,b\n1,2\n"}
EVALUATION = {"model": "ab", "metrics": {"accuracy": 0.5}}
COMMAND = ["x/__main__.py", "export", "--run", "r", "--model", str(MODEL), "--evaluation", "results/v.json"]
COMMAND += ["--output", str(OUTPUT)]


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare the results of COMMAND in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ready.FOLDER, "work/ready")
    monkeypatch.setenv(ready.EXPERIMENT, "work/experiments/e.json")
    monkeypatch.setenv(ready.THREADS, "1")
    for name in ("results", "scratch"):
        Path(name).mkdir()
    MODEL.write_bytes(b"weights")
    write_json(Path("results/v.json"), {**EVALUATION, "provenance": {"command": "evaluate"}})
    Path("scratch/table.csv").write_bytes(PREPARED["table.csv"])
    made = {"command": "pack", "experiment": "e", "inputs": {}, "environment": {"host": "n1", "command": ["pack"]}}
    write_json(Path("scratch/e.json"), {"value": 1, "provenance": made})
    ready.write(
        "export",
        {"--run": "r", "--model": MODEL, "--evaluation": "results/v.json"},
        OUTPUT,
        inputs={MODEL: MODEL},
        files={"table.csv": Path("scratch/table.csv")},
        statement=Path("scratch/e.json"),
        evaluation=EVALUATION,
        absent=["steps.csv"],
        is_of_threads=True,
        requests=Path("requests.jsonl"),
        said="computed in a pack",
    )


def test_prepared_results_are_handed_out_with_the_provenance_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results/steps.csv").write_text("of an earlier training")
    assert ready.hand_out([*COMMAND, "--deadline-minutes", "5"])
    assert Path("results/table.csv").read_bytes() == PREPARED["table.csv"]
    assert not Path("results/steps.csv").exists()
    statement = json.loads(OUTPUT.read_text())
    assert statement["value"] == 1
    made = statement["provenance"]
    assert made["command"].startswith("python -m workflow_lib export --run r --model results/m.bin")
    assert made["inputs"].keys() == {str(MODEL), "results/v.json"}
    assert made["environment"] == {"host": "n1", "command": [*COMMAND, "--deadline-minutes", "5"]}
    assert capsys.readouterr().err.endswith("info  results/e.json: computed in a pack\n")
    (request,) = read_events(Path("requests.jsonl"))
    assert (request["kind"], request["to"]) == ("delivered", str(OUTPUT))


FAULTS: dict[str, Callable[[], object]] = {
    "changed weights": lambda: MODEL.write_bytes(b"others"),
    "missing weights": MODEL.unlink,
    "another evaluation": lambda: write_json(Path("results/v.json"), {**EVALUATION, "model": "cd"}),
    "a damaged file": lambda: Path("scratch/table.csv").write_bytes(b"a,b\n1,3\n"),
    "a damaged ticket": lambda: _ticket().write_text(_ticket().read_text().replace('"value": 1', '"value": 2')),
    "a ticket of another version": lambda: write_signed(_ticket(), {"verb": "export"}),
    "no ticket": lambda: _ticket().unlink(),
}


def _ticket() -> Path:
    (found,) = Path("work/ready").glob("*.json")
    return found


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_command_whose_inputs_or_results_differ_does_its_work_itself(fault: Callable[[], object]) -> None:
    fault()
    assert not ready.hand_out(COMMAND)
    assert not OUTPUT.exists()


@pytest.mark.parametrize(
    "command",
    [
        [*COMMAND[:3], "other", *COMMAND[4:]],
        [*COMMAND, "--more", "1"],
        [COMMAND[0], "evaluate", *COMMAND[2:]],
        [*COMMAND[:-1], "results/other.json"],
        COMMAND[:-2],
        COMMAND[:1],
    ],
)
def test_another_command_does_its_work_itself(command: list[str]) -> None:
    assert not ready.hand_out(command)


@pytest.mark.parametrize(
    ("name", "value"),
    [(ready.EXPERIMENT, "work/experiments/f.json"), (ready.THREADS, "4"), (ready.FOLDER, "work/gone")],
)
def test_a_command_of_another_pipeline_does_its_work_itself(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not ready.hand_out(COMMAND)


def test_without_a_pipeline_nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    _ticket().unlink()
    monkeypatch.delenv(ready.FOLDER)
    ready.write("best", {}, OUTPUT, inputs={}, files={}, said="")
    assert list(Path("work/ready").iterdir()) == []
    assert not ready.hand_out(COMMAND)

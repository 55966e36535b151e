"""docs/extending.md works exactly as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from safetensors.numpy import load_file

from tests.support.repository import ROOT
from tests.workflow.conftest import Project

BLOCK = re.compile(
    r"(?:^`(?P<file>[^`]+)`:\n\n|^In `(?P<edited>[^`]+)`, after `(?P<after>[^`]+)`:\n\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def follow(document: str, project: Project) -> list[str]:
    """Write the files of the document and run its commands, in order; return the commands."""
    ran = []
    for block in BLOCK.finditer(document):
        text = block["text"]
        if block["file"]:
            (project.folder / block["file"]).parent.mkdir(exist_ok=True)
            (project.folder / block["file"]).write_text(text)
        elif block["edited"]:
            project.edit(block["edited"], f"{block['after']}\n", f"{block['after']}\n{text}")
        else:
            assert block["language"] == "sh", f"a block without a file to write it to:\n{text}"
            for command in text.splitlines():
                run(command, project.folder)
                ran.append(command)
    return ran


def run(command: str, folder: Path) -> None:
    """Run the command in the project's folder; it must succeed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shown = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"


def test_the_files_and_commands_of_the_document_work(project: Project) -> None:
    """Slow: several commands run whole pipelines."""
    commands = follow((ROOT / "docs/extending.md").read_text(), project)
    ran = [command.split()[0] for command in commands]
    names = ["python", "snakemake", "everstep", "snakemake", "everstep", "snakemake", "everstep"]
    assert ran == [
        *names,
        "snakemake",
        "snakemake",
        "echo",
        "everstep",
        "snakemake",
        "everstep",
        "snakemake",
        "everstep",
    ]
    parts = json.loads(next((project.folder / "results/parts").glob("runs/*/evaluation.json")).read_text())["metrics"]
    assert {"f1_macro", "streak", "sharp"} < parts.keys()
    assert parts["sharp"]["low"] < parts["sharp"]["value"] < parts["sharp"]["high"]
    (model,) = (project.folder / "results/net").glob("runs/*/model.safetensors")
    assert {name.partition(".")[0] for name in load_file(model)} == {"inner", "hidden", "head"}
    manifest = json.loads(next((project.folder / "results/signals/data").glob("*.json")).read_text())
    assert (manifest["shards"], manifest["in_place"]["files"]) == ([], ["signals.bin"])
    assert next((project.folder / "results/signals").glob("runs/*/model.onnx")).exists()
    (generator,) = (project.folder / "results/gan").glob("runs/*/model.safetensors")
    assert {name.partition(".")[0] for name in load_file(generator)} == {"layers"}
    judged = json.loads(generator.with_name("evaluation.json").read_text())
    assert (judged["split"], judged["metrics"].keys()) == ("val", {"val_loss", "val_score"})
    header = generator.with_name("history.csv").read_text().partition("\n")[0]
    assert header == "epoch,step,lr,train_loss,val_loss,train_generator,train_penalty,val_score"
    shown = project.everstep("summary", "--results", "results/gan").stdout
    assert re.search(r"^  validation +loss .*, score ", shown, re.MULTILINE)
    assert "predict" not in shown
    for ref in (generator.parent, generator.with_name("model.onnx")):
        rejected = project.everstep("predict", str(ref), "config/gan.yaml", "--output", "predicted.csv")
        assert (rejected.returncode, "inputs of its own training step" in rejected.stderr) == (2, True)
    page = generator.parents[2].joinpath("report.html").read_text()
    assert "example inputs of the training step" in page
    assert "Validation score" in page
    student = json.loads(next((project.folder / "results/student").glob("runs/student-*/train.json")).read_text())
    (taught_by,) = student["sources"].values()
    teacher = json.loads((project.folder / f"results/student/runs/{taught_by['run']}/train.json").read_text())
    assert taught_by["digest"] == teacher["model"]
    results = project.folder / "results/wine"
    bundle = next(results.glob("runs/*/bundle.zip"))
    assert sorted(zipfile.ZipFile(bundle).namelist()) == ["evaluation.json", "export.json", "model.onnx"]
    assert (results / "report.html").exists()
    predicted = (project.folder / "predictions.csv").read_text().splitlines()
    assert predicted[0] == "line,predicted,p(class_0),p(class_1),p(class_2)"
    assert predicted[1].startswith("1,class_")
    copy = project.folder / f"tracking/jsonlines/wine/{bundle.parent.name}.jsonl"
    assert [json.loads(line)["epoch"] for line in copy.read_text().splitlines()] == [1, 2, 3, 4, 5]
    measured = json.loads(next((project.folder / "results/diabetes").glob("runs/*/evaluation.json")).read_text())
    assert (measured["task"], measured["metrics"].keys()) == ("quantile", {"pinball", "coverage"})
    assert '<section id="predictions"' in (project.folder / "results/diabetes/report.html").read_text()

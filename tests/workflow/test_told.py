"""An experiment with `notify` and `registry` in a real Snakemake: one message a fact, one version, no secret."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.receivers import web_server
from tests.workflow.conftest import TINY, Project
from workflow_lib.files import file_digest

SECRET = "-".join(("s3cret", "path"))  # this file, a part of the clone, does not contain it
MORE = """
notify: {webhook_env: HOOK, command_env: TELL, events: [end, failure]}
registry: {name: tiny, mlflow: true}
"""


@pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning")  # of MLflow about itself
def test_the_best_model_is_registered_and_the_end_and_a_failure_are_told_once(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished.folder
    finished.write(TINY + MORE)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TELL", "cat >> told.txt")
    assert finished.run("--dry-run").code == 0
    refused = finished.run()
    assert refused.code == 2
    assert "these environment variables are not set here: HOOK (notify.webhook_env)" in refused.output

    with web_server() as web:
        monkeypatch.setenv("HOOK", f"{web.url}/{SECRET}")
        assert finished.make().jobs == {("register", None)}
        assert finished.make().is_nothing
        assert [json.loads(body)["event"] for body in web.bodies] == ["end"]
        statement = json.loads((folder / "results/tiny/registered.json").read_text())
        mistaken = finished.run("--dry-run", "--config", "set=registry.folder=config/tiny.yaml")
        assert "registry.folder: config/tiny.yaml is a file; allowed: " in mistaken.output
        (folder / "taken/tiny").mkdir(parents=True)
        (folder / "taken/tiny/versions").touch()
        assert finished.run("--config", "set=registry.folder=taken").code == 1
    ended, failed = (json.loads(body) for body in web.bodies)
    assert ended["text"].startswith("tiny ended: 3 runs.\nbest run: ")
    assert (failed["event"], "register" in failed["text"]) == ("failure", True)
    assert (folder / "told.txt").read_text() == "".join(json.dumps(each) for each in (ended, failed))

    assert (statement["version"], statement["is_new"], statement["decision"]["promoted"]) == (1, True, True)
    version = folder / "registry/tiny/versions/000001"
    record = json.loads((version / "version.json").read_text())
    assert {name: file_digest(version / name) for name in record["files"]} == record["files"]
    assert {"model.safetensors", "model.onnx", "predictions.csv"} <= record["files"].keys()
    card = (version / "card.md").read_text()
    for part in (record["data"], "## Intended use", "| accuracy | ", "fewer than 50 samples of: ", "everstep run "):
        assert part in card
    assert "best of 3, chosen by val_loss on the validation split" in card
    assert "the best of 2 trials by val_accuracy on the validation split" in card
    with closing(sqlite3.connect(folder / "tracking/mlflow.db")) as database:
        ((source,),) = database.execute("SELECT source FROM model_versions WHERE name = 'tiny' AND version = 1")
        aliases = database.execute("SELECT alias, version FROM registered_model_aliases").fetchall()
    assert aliases == [("champion", 1)]
    copy = source.removeprefix("file://").replace("%20", " ")
    assert file_digest(folder / copy / "model.onnx") == record["files"]["model.onnx"]
    from mlflow import pyfunc

    assert "mlflow.onnx" in str(pyfunc.load_model(str(folder / copy)))
    written = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]

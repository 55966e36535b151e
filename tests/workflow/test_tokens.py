"""The whole pipeline of data that is read in place: files of tokens, from their digests to the predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tests.workflow.conftest import Project

TOKENS = """\
name: tokens
data:
  name: tokens
  params: {path: data/counting, vocabulary: 24, context: 16, separator: 0, cross_documents: false}
model: {name: transformer, params: {width: 16, layers: 1, heads: 2}}
training: {epochs: 2, batch_size: 16}
optimizer: {lr: 0.01}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
"""


def write_tokens(folder: Path) -> None:
    """Write documents of up to 49 tokens that count from 1 to 23 again and again, each followed by token 0."""
    folder.mkdir(parents=True)
    for split, size in (("train", 4000), ("val", 900), ("test", 900)):
        tokens = np.arange(size) % 23 + 1
        tokens[::50] = 0
        tokens.astype("<u2").tofile(folder / f"{split}.bin")


def losses(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_pipeline_of_tokens_read_in_place(project: Project) -> None:
    project.write(TOKENS)
    write_tokens(project.folder / "data/counting")
    project.make()
    assert project.run("--dry-run").is_nothing
    results = project.folder / "results/tokens"
    assert "report" in (results / "report.html").read_text()[:2000].lower()
    assert not list(project.folder.glob("work/data/*/*-*.safetensors"))  # no copy of the data
    (run,) = (results / "runs").iterdir()
    assert np.mean(losses(run / "predictions.csv")) < 0.8 * np.log(23)
    for number, source in enumerate((run.name, str(run / "model.onnx"))):
        given = ("predict", source, "data/counting/test.bin", "--output", f"{number}.csv")
        assert project.everstep(*given).returncode == 0
    by_run, by_graph = (losses(project.folder / f"{number}.csv") for number in range(2))
    np.testing.assert_allclose(by_run, by_graph, atol=1e-4)
    with (project.folder / "data/counting/train.bin").open("r+b") as file:
        file.write(b"\x05\x00")
    assert {rule for rule, _ in project.plan()} >= {"preprocess", "train", "evaluate", "export"}

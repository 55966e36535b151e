"""A small experiment that was really trained, to test what comes after training."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.repository import ROOT
from tests.support.small_models import save
from workflow_lib import config, evaluation, export, plan, report, tuning

EXPERIMENT = """
name: digits-demo
labels:
  who: "Zoë <b>bold</b> & co"
  "</script><script>alert(1)</script>": "größer"
model: {name: mlp, params: {hidden: [16]}}
training: {epochs: 3, select_metric: val_accuracy}
checkpoint: {interval_steps: 1000}
sweep: {grid: {optimizer.lr: [0.001, 0.01]}}
evaluate: {bootstrap: 200}
"""
TUNE = """
tune:
  trials: 3
  space: {training.batch_size: {type: int, low: 16, high: 64, step: 16}}
  set: {training.epochs: 1}
"""


# a table with a category, missing numbers and targets far from zero; and a text that is easy to learn
NUMBERS = """
name: digits-demo
data: {name: table, params: {path: houses.csv, target: price, task: regression}, test_fraction: 0.15}
model: {name: tabular, params: {hidden: [16]}}
optimizer: {lr: 0.01}
training: {epochs: 5, batch_size: 32, select_metric: val_mae}
checkpoint: {interval_steps: 1000}
sweep: {grid: {seed: [0, 1]}}
evaluate: {bootstrap: 200}
"""
SEVERAL = """
name: digits-demo
data: {name: table, params: {path: houses.csv, target: [price, area], task: regression}, test_fraction: 0.15}
model: {name: tabular, params: {hidden: [16]}}
optimizer: {lr: 0.01}
training: {epochs: 2, batch_size: 32}
checkpoint: {interval_steps: 1000}
evaluate: {bootstrap: 200}
"""
LABELS = SEVERAL.replace("[price, area], task: regression", "[large, dear], task: multilabel")
TEXT = """
name: digits-demo
data: {name: text, params: {path: rhyme.txt, context: 16}}
model: {name: transformer, params: {layers: 1, heads: 2, width: 32}}
optimizer: {lr: 0.01}
training: {epochs: 3, batch_size: 16}
checkpoint: {interval_steps: 1000}
evaluate: {bootstrap: 200}
"""
IMAGES = """
name: digits-demo
data: {name: image_folder, params: {path: photos, size: 8}}
model: {name: mlp, params: {hidden: [16]}}
training: {epochs: 5, batch_size: 16}
checkpoint: {interval_steps: 1000}
evaluate: {bootstrap: 200}
"""
MASKS = """
name: digits-demo
data: {name: image_masks, params: {path: photos, masks: masks, classes: [dark, bright]}}
model: {name: unet, params: {width: 4, levels: 1}}
training: {epochs: 1, batch_size: 8}
checkpoint: {interval_steps: 1000}
evaluate: {bootstrap: 20}
"""
ADAPTERS = """
name: digits-demo
data:
  name: labelled_text
  params: {path: reviews.csv, tokens: bpe, bpe: {path: bert, pad: "[PAD]"}, length: 8}
model: {name: transformers, params: {path: bert, lora: {r: 4}}}
optimizer: {lr: 0.02}
training: {epochs: 4, batch_size: 16}
checkpoint: {interval_steps: 1000}
evaluate: {bootstrap: 20}
"""
EXPERIMENTS = {"images": IMAGES, "classification": EXPERIMENT, "regression": NUMBERS, "language": TEXT} | {
    "several": SEVERAL,
    "labels": LABELS,
    "masks": MASKS,
    "adapters": ADAPTERS,
}


def write_data(root: Path) -> None:
    """Write the table and the text into the folder."""
    rows = ["area,kind,age,price"]
    for number in range(300):
        area, kind, age = 40 + number * 7 % 160, ("flat", "house")[number * 5 % 7 % 2], number * 11 % 90
        price = 250_000 + 900 * area + (40_000 if kind == "house" else 0) - 500 * age
        rows.append(f"{area},{kind},{'' if number % 17 == 0 else age},{price}")
    (root / "houses.csv").write_text("\n".join(rows) + "\n")
    if "multilabel" in (root / "experiment.yaml").read_text(encoding="utf-8"):
        numbers = [line.split(",") for line in rows[1:]]
        labels = [
            f"{line},{int(int(row[0]) > 120)},{int(row[3]) > 330_000}"
            for line, row in zip(rows[1:], numbers, strict=True)
        ]
        (root / "houses.csv").write_text("\n".join([rows[0] + ",large,dear", *labels]) + "\n")
    if "image_masks" in (root / "experiment.yaml").read_text(encoding="utf-8"):
        for number in range(30):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
            for folder, content in (("photos", pixels), ("masks", (pixels > 127).astype(np.uint8))):
                (root / folder / "a").mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / folder / "a" / f"{number}.png")
    if "labelled_text" in (root / "experiment.yaml").read_text(encoding="utf-8"):
        write_reviews(root)
    (root / "rhyme.txt").write_text("the cat <sat> on the mat & the rat ate the hat. " * 120)


def write_reviews(root: Path) -> None:
    """Write texts of two classes, and a model with a tokenizer for their words, into the folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "[PAD]", "good", "fine", "bad", "poor", "film", "song", "play", "very"]
    texts = [[words[6 + number % 3], "very", words[2 + number * 7 % 4]] for number in range(160)]
    rows = [f"{' '.join(text)},{'up' if text[2] in ('good', 'fine') else 'down'}" for text in texts]
    (root / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    save(root / "bert", "bert", hidden_size=16, pad_token_id=1)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(root / "bert" / "tokenizer.json"))


@dataclass(frozen=True)
class Trained:
    """A project whose runs are trained; the paths are those that Snakemake would pass."""

    root: Path

    @property
    def experiment(self) -> config.Experiment:
        return config.load([self.root / "experiment.yaml"])

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def results(self) -> Path:
        return self.root / "results" / "digits-demo"

    @property
    def data(self) -> Path:
        return self.results / "data" / f"{plan.data_id(self.experiment)}.json"

    @property
    def runs(self) -> list[str]:
        return [run.id for run in plan.expand(self.experiment)]

    @property
    def tune_dir(self) -> Path:
        return self.results / "tune" / plan.study_id(self.experiment)

    def reference(self, run: str) -> str:
        """Return the text by which a rule refers to the run."""
        return str(self.tune_dir / "best.json") if run == "tuned" else run


def train(root: Path, *, tune: bool = False, task: str = "classification") -> Trained:
    """Make a project in the folder, and train its runs in a separate process."""
    (root / "Snakefile").touch()
    (root / "experiment.yaml").write_text(EXPERIMENTS[task] + TUNE * tune, encoding="utf-8")
    write_data(root)
    command = [sys.executable, "-m", "tests.support.trained", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Trained(root)


def _train_all(project: Trained) -> None:
    from workflow_lib.data import preprocess
    from workflow_lib.launch import commands

    experiment, work = project.experiment, project.work
    plan.write_plan(experiment, work, project.results / "plan.json")
    preprocess(experiment, project.data.stem, work, project.data)
    if experiment.tune:
        _tune(project, experiment)
    for run in [*project.runs, *(["tuned"] if experiment.tune else [])]:
        output = project.results / "runs" / run / "train.json"
        commands.train(experiment, run=project.reference(run), data=project.data, work=work, output=output)


def _tune(project: Trained, experiment: config.Experiment) -> None:
    from workflow_lib.launch import commands

    work, tune_dir = project.work, project.tune_dir
    for number in range(3):
        path = tuning.suggestion_path(tune_dir, number)
        suggestion = tuning.suggest(experiment, number, tune_dir, work, path)
        stop_early = tuning.pruner(suggestion)
        history = commands.trial(experiment, run=str(path), data=project.data, work=work, stop_early=stop_early)
        tuning.write_result(suggestion, history, tuning.result_path(tune_dir, number))
    tuning.best(experiment, tune_dir, work, tune_dir / "best.json")


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # paths of data sets are relative to it
    _train_all(Trained(Path(sys.argv[1])))


def with_results(root: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Train, evaluate, export and report a project."""
    project = train(root, task=task)
    monkeypatch.chdir(root)
    for run in project.runs:
        folder = project.results / "runs" / run
        subject = {"run": run, "data": project.data, "work": project.work, "model": folder / "model.safetensors"}
        evaluation.evaluate(project.experiment, **subject, output=folder / "evaluation.json")
        measured = folder / "evaluation.json"
        export.export(project.experiment, **subject, evaluation=measured, output=folder / "export.json")
    report.write(project.experiment, project.results, project.runs, project.work, project.results / "report.html")
    return project

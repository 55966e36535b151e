"""Measure a sweep of small runs in packs and in single jobs: the whole pipeline, from the plan to the report.

    python benchmarks/packs.py [--runs 16] [--rounds 3]

The two alternate, with scripts that train as many networks on made-up numbers of the same shapes and do nothing else
(no evaluation, export, checkpoint or report): one process for each network, as submitit starts them, with torch and
with each framework that is installed, and one process that trains all of them at once by `torch.func.vmap`. It prints
medians of elapsed and CPU seconds, ratios, the time of the trainings of the pack, and that of the packed pipeline by
rule; and it fails if a file of a run differs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "rules", "profiles", "report", "workflow_lib")
COMPARED = ("model.safetensors", "history.csv", "predictions.csv", "model.onnx")
EXPERIMENT = """\
name: sweep
data: {{name: digits}}
model: {{name: mlp}}
training: {{epochs: 10, batch_size: 64}}
sweep: {{list: {points}}}
runtime: {{device: cpu, pack: {pack}}}
"""

# the loop of one network; `models` networks at once with vmap
PEER = """\
import sys, torch
from torch.func import functional_call, stack_module_state, vmap
torch.set_num_threads(1)
models, epochs = map(int, sys.argv[1:])
def network():
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
inputs, targets = torch.randn(1168, 64), torch.randint(10, (1168,))
def loss_of(weights, x, y):
    return torch.nn.functional.cross_entropy(functional_call(base, weights, (x,)), y)
base = network()
if models == 1:
    weights = list(base.parameters())
else:
    stacked = {name: value.detach().requires_grad_() for name, value in
               stack_module_state([network() for _ in range(models)])[0].items()}
    weights = list(stacked.values())
optimizer = torch.optim.AdamW(weights)
for epoch in range(epochs):
    orders = torch.stack([torch.randperm(1168) for _ in range(models)])
    for step in range(1168 // 64):
        rows = orders[:, step * 64 : step * 64 + 64]
        if models == 1:
            loss = torch.nn.functional.cross_entropy(base(inputs[rows[0]]), targets[rows[0]])
        else:
            loss = vmap(loss_of)(stacked, inputs[rows], targets[rows]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
# the same network with a framework, which neither logs nor saves
FRAMEWORK = """\
import logging, sys, torch, warnings
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
kind, epochs = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
data = torch.utils.data.TensorDataset(torch.randn(1168, 64), torch.randint(10, (1168,)))
batches = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
optimizer = torch.optim.AdamW(model.parameters())
loss_of = torch.nn.functional.cross_entropy
if kind == "lightning":
    import lightning
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model
        def training_step(self, batch, _):
            return loss_of(self.model(batch[0]), batch[1])
        def configure_optimizers(self):
            return optimizer
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, **quiet).fit(Module(), batches)
    sys.exit()
if kind == "fabric":
    from lightning.fabric import Fabric
    engine = Fabric(accelerator="cpu", devices=1)
    model, optimizer = engine.setup(model, optimizer)
    batches = engine.setup_dataloaders(batches)
else:
    from accelerate import Accelerator
    engine = Accelerator(cpu=True)
    model, optimizer, batches = engine.prepare(model, optimizer, batches)
for epoch in range(epochs):
    for inputs, targets in batches:
        optimizer.zero_grad()
        engine.backward(loss_of(model(inputs), targets))
        optimizer.step()
"""
FRAMEWORKS = {"fabric": "lightning", "lightning": "lightning", "accelerate": "accelerate"}  # and their packages


def peer(calls: int, script: str, first: object) -> tuple[float, float]:
    """Run a script so many times, one after the other, for ten epochs; return elapsed and CPU seconds."""
    began, before = time.monotonic(), _cpu_s()
    for _ in range(calls):
        subprocess.run([sys.executable, "-c", script, str(first), "10"], check=True)
    return time.monotonic() - began, _cpu_s() - before


def make(folder: Path, runs: int, pack: object, *, is_unequal: bool) -> tuple[float, float]:
    """Run the pipeline in a new folder; return its elapsed and its CPU seconds."""
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    points = [{"seed": seed} for seed in range(runs)]
    if is_unequal:
        points[-1]["training.epochs"] = 100
    (folder / "sweep.yaml").write_text(EXPERIMENT.format(points=json.dumps(points), pack=pack))
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--configfile", "sweep.yaml"]
    began, before = time.monotonic(), _cpu_s()
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
    return time.monotonic() - began, _cpu_s() - before


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trainings(folder: Path) -> tuple[float, float]:
    """Return the seconds from the first start of a training to the last end, and from the start of the pipeline."""
    attempts = [json.loads(path.read_text()) for path in folder.glob("work/runs/*/*/attempts/*.json")]
    first, last = (pick(datetime.fromisoformat(entry[key]).timestamp() for entry in attempts)
                   for pick, key in ((min, "began"), (max, "ended")))  # fmt: skip
    return last - first, last - (folder / "sweep.yaml").stat().st_mtime


def files(folder: Path) -> dict[str, bytes]:
    """Return the compared files of all runs."""
    found = [path for name in COMPARED for path in sorted(folder.glob(f"results/sweep/runs/*/{name}"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def by_rule(folder: Path) -> dict[str, tuple[int, float]]:
    """Return the number of jobs of each rule, and the sum of their elapsed seconds, by Snakemake's benchmarks."""
    seconds = defaultdict(list)
    for path in folder.glob("benchmarks/**/*.tsv"):
        with path.open() as file:
            (row,) = csv.DictReader(file, delimiter="\t")
        seconds[path.relative_to(folder).parts[1]].append(float(row["s"]))
    return {rule: (len(values), sum(values)) for rule, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unequal", action="store_true", help="the last run has ten times as many epochs")
    parser.add_argument("--only", choices=["pack"], help="measure the pack alone")
    arguments = parser.parse_args()
    present = [name for name, package in FRAMEWORKS.items() if importlib.util.find_spec(package)]
    spent, trained = defaultdict(list), []
    with tempfile.TemporaryDirectory() as place:
        for number in range(arguments.rounds):
            kinds = ("single jobs", "a pack") if arguments.only is None else ("a pack",)
            folders = {kind: Path(place) / f"{kind}-{number}" for kind in kinds}
            for kind, folder in folders.items():
                pack = "auto" if kind == "a pack" else 1
                spent[kind].append(make(folder, arguments.runs, pack, is_unequal=arguments.unequal))
            trained.append(trainings(folders["a pack"]))
            if arguments.only is not None:
                continue
            spent["a process each, training only"].append(peer(arguments.runs, PEER, 1))
            for name in present:
                spent[f"a process each with {name}, training only"].append(peer(arguments.runs, FRAMEWORK, name))
            spent["vmap, training only"].append(peer(1, PEER, arguments.runs))
            alone, packed = (files(folder) for folder in folders.values())
            if len(alone) != arguments.runs * len(COMPARED) or alone != packed:
                sys.exit("the results of the pack differ from those of single jobs")
        where = by_rule(folders["a pack"])
    medians = {kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in spent.items()}
    for kind, (elapsed, cpu) in medians.items():
        print(f"{arguments.runs} runs in {kind}: {elapsed:.1f} s elapsed, {cpu:.1f} s of CPU")
    alone_s, whole_s = (statistics.median(column) for column in zip(*trained, strict=True))
    print(f"trainings in the pack: {alone_s:.1f} s, the last one ended {whole_s:.1f} s after the start of the pipeline")
    if arguments.only is None:
        single, packs, *_ = medians.values()
        print(f"ratio: {single[0] / packs[0]:.1f} elapsed, {single[1] / packs[1]:.1f} CPU, on {os.cpu_count()} cores")
    for rule, (jobs, seconds) in sorted(where.items(), key=lambda item: -item[1][1]):
        print(f"  {rule:10} {jobs:4} jobs {seconds:7.1f} s")


if __name__ == "__main__":
    main()

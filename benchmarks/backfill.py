"""Measure when a training ends in a full queue, with a fixed time limit and with one that SLURM may shrink into a gap.

    python benchmarks/backfill.py

Each kind runs on a cluster of scripts/slurm-sandbox of its own, at the same time, with the same load: three of four
nodes are taken for five minutes, and the next job in the queue waits for all four. So one node is free for less than
five minutes. The training needs about six minutes and asks for four hours. It fails if the weights differ or a step is
computed twice. It takes about 15 minutes, most of them idle.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SANDBOX = ROOT / "scripts" / "slurm-sandbox"
COPIED = ("Snakefile", "rules", "profiles", "report", "workflow_lib")
PAUSE_S = 0.6
MODEL = """\
import time

from workflow_lib.models import mlp

Params = mlp.Params


def build(params, spec):
    from torch import nn

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp.build(params, spec)

        def forward(self, inputs):
            if self.training:
                time.sleep(PAUSE_S)
            return self.inner(inputs)

    return Slow()
"""
EXPERIMENT = """\
name: gap
data: {name: digits}
model: {name: slow, params: {hidden: [8]}}
training: {epochs: 30, batch_size: 64}
runtime: {device: cpu}
"""
LOAD = (  # nodes, seconds, minutes of its limit
    (3, 290, 5),
    (4, 50, 1),
)
KINDS = {"fixed": [], "with --time-min": ["--time-min=2"]}


def measure(folder: Path, options: list[str]) -> tuple[float, bytes, list[dict[str, object]]]:
    """Return the seconds from the submission to the end of the training, its weights, and its attempts."""
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "workflow_lib" / "models" / "slow.py").write_text(MODEL.replace("PAUSE_S", str(PAUSE_S)))
    (folder / "gap.yaml").write_text(EXPERIMENT)
    path = folder / "profiles" / "slurm" / "config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["slurm-init-seconds-before-status-checks"], profile["latency-wait"] = 2, 10
    extra = " ".join(["--exclusive", *options])
    profile["set-resources"]["train"] |= {"slurm_partition": "cpu", "slurm_extra": f"'{extra}'", "runtime": 240}
    path.write_text(yaml.safe_dump(profile))
    cluster = Path(tempfile.mkdtemp(prefix="gap-", dir="/tmp"))  # short, as sockets need it
    try:
        return _replayed(folder, cluster)
    finally:
        subprocess.run([SANDBOX, "--dir", cluster, "stop"], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(cluster)


def _replayed(folder: Path, cluster: Path) -> tuple[float, bytes, list[dict[str, object]]]:
    """Submit the load and then the training; wait for its end."""
    snakemake = [sys.executable, "-m", "snakemake", "--configfile", "gap.yaml", "--profile"]
    with (folder / "log.txt").open("w") as log:
        before = [*snakemake, "profiles/local", "--until", "plan", "preprocess"]
        subprocess.run(before, cwd=folder, check=True, stdout=log, stderr=log)
        subprocess.run([SANDBOX, "--dir", cluster, "start"], check=True, stdout=log, stderr=log)
        path = f"{cluster}/bin:{os.environ['PATH']}"
        environment = {**os.environ, "SLURM_CONF": f"{cluster}/slurm.conf", "PATH": path}
        for nodes, seconds, minutes in LOAD:
            size = (f"--nodes={nodes}", f"--time={minutes}", f"--wrap=sleep {seconds}", "--exclusive")
            subprocess.run(["sbatch", "--output=/dev/null", *size], env=environment, check=True, stdout=log, stderr=log)
        (run,) = json.loads((folder / "results/gap/plan.json").read_text())["runs"]
        target = folder / "results" / "gap" / "runs" / run["id"] / "train.json"
        command = [*snakemake, "profiles/slurm", "--", str(target.relative_to(folder))]
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=log, stderr=log)
    records = [json.loads(path.read_text()) for path in folder.glob("work/runs/*/*/attempts/*.json")]
    attempts = sorted(records, key=lambda record: record["began"])
    ended = target.stat().st_mtime - time.time() + time.monotonic()
    return ended - began, target.with_name("model.safetensors").read_bytes(), attempts


def main() -> None:
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor() as pool:
        folders = [Path(place) / str(number) for number in range(len(KINDS))]
        found = dict(zip(KINDS, pool.map(measure, folders, KINDS.values()), strict=True))
    for kind, (seconds, _, attempts) in found.items():
        print(f"{kind}: ends after {seconds:.0f} s, in {len(attempts)} parts")
        for attempt in attempts:
            print(f"    from step {attempt['resumed_step']} to {attempt['step']}: {attempt['reason']}")
        for earlier, later in zip(attempts, attempts[1:], strict=False):
            if earlier["step"] != later["resumed_step"]:
                sys.exit("steps were lost")
    if len({weights for _, weights, _ in found.values()}) > 1:
        sys.exit("the weights differ")
    print("steps lost: 0; the weights are equal")


if __name__ == "__main__":
    main()

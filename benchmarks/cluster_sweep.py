"""Measure a sweep of small runs in packs on a cluster of scripts/slurm-sandbox, from the plan to the report.

    python benchmarks/cluster_sweep.py [--runs 200] [--epochs 3] [--pack auto]

It prints the elapsed time and where the CPU seconds go, then trains each run alone, in a process of its own that is
forked after the imports, and fails if the weights or the curve of a run differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pipeline

EXPERIMENT = """\
name: sweep
data: {{name: digits}}
model: {{name: mlp}}
training: {{epochs: {epochs}, batch_size: 64}}
sweep: {{seeds: {runs}}}
runtime: {{device: cpu, pack: {pack}}}
"""
COMPARED = ("model.safetensors", "history.csv")


def alone(project: Path, config: Path) -> None:
    """Train each run of the experiment in a process of its own, as many at once as there are cores."""
    project.mkdir()
    pipeline.copy_to(project)
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--configfile", str(config), "--quiet"]
    subprocess.run([*command, "--until", "plan", "preprocess"], cwd=project, check=True, stderr=subprocess.DEVNULL)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    sys.path.insert(0, str(project))
    os.chdir(project)
    from workflow_lib.cli import main
    from workflow_lib.launch import launcher
    from workflow_lib.training import trainer as trainer  # imports torch

    launcher.prepare()
    runs = json.loads(Path("results/sweep/plan.json").read_text())["runs"]
    running = 0
    for run in runs:
        if running == os.cpu_count():
            _wait()
            running -= 1
        folder = Path("results/sweep/runs", run["id"])
        given = ["--run", run["id"], "--data", f"results/sweep/data/{run['data_id']}.json"]
        if os.fork() == 0:
            folder.mkdir(parents=True)
            with (folder / "log.txt").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os._exit(main(["train", "--experiment", str(config), *given, "--output", str(folder / "train.json")]))
        running += 1
    for _ in range(running):
        _wait()


def _wait() -> None:
    if os.wait()[1]:
        sys.exit("a training failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pack", default="auto", help="runtime.pack; 1 trains each run in its own job")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        config = place / "sweep.yaml"
        config.write_text(EXPERIMENT.format(**vars(arguments)))
        elapsed, found = pipeline.run(place / "cluster", config, is_slurm=True)
        pipeline.show([elapsed], [found])
        alone(place / "alone", config)
        packed = place / "cluster" / "project" / "results" / "sweep" / "runs"
        runs = sorted(path.name for path in packed.iterdir())
        files = [Path(run, name) for run in runs for name in COMPARED]
        own = place / "alone" / "results" / "sweep" / "runs"
        equal = sum((packed / path).read_bytes() == (own / path).read_bytes() for path in files)
        print(f"{equal} of {len(files)} files of {len(runs)} runs are equal to those of runs that were trained alone")
        if len(runs) != arguments.runs or equal != len(files):
            sys.exit(1)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()

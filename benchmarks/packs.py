"""Measure a sweep of small runs in packs and in single jobs: the whole pipeline, from the plan to the report.

    python benchmarks/packs.py [--runs 16] [--rounds 3]

The two alternate. It prints medians of elapsed and CPU seconds, the ratio, and the time of the packed pipeline by rule;
and it fails if a file of a run differs.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "rules", "profiles", "report", "workflow_lib")
COMPARED = ("model.safetensors", "history.csv", "predictions.csv", "model.onnx")
EXPERIMENT = """\
name: sweep
data: {{name: digits}}
model: {{name: mlp}}
training: {{epochs: 10, batch_size: 64}}
sweep: {{seeds: {runs}}}
runtime: {{device: cpu, pack: {pack}}}
"""


def make(folder: Path, runs: int, pack: object) -> tuple[float, float]:
    """Run the pipeline in a new folder; return its elapsed and its CPU seconds."""
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "sweep.yaml").write_text(EXPERIMENT.format(runs=runs, pack=pack))
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--configfile", "sweep.yaml"]
    began, before = time.monotonic(), _cpu_s()
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
    return time.monotonic() - began, _cpu_s() - before


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    arguments = parser.parse_args()
    spent = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        for number in range(arguments.rounds):
            folders = {kind: Path(place) / f"{kind}-{number}" for kind in ("single jobs", "a pack")}
            for kind, folder in folders.items():
                spent[kind].append(make(folder, arguments.runs, "auto" if kind == "a pack" else 1))
            alone, packed = (files(folder) for folder in folders.values())
            if len(alone) != arguments.runs * len(COMPARED) or alone != packed:
                sys.exit("the results of the pack differ from those of single jobs")
        where = by_rule(folders["a pack"])
    medians = {kind: [statistics.median(column) for column in zip(*rows, strict=True)] for kind, rows in spent.items()}
    for kind, (elapsed, cpu) in medians.items():
        print(f"{arguments.runs} runs in {kind}: {elapsed:.1f} s elapsed, {cpu:.1f} s of CPU")
    single, pack = medians.values()
    print(f"ratio: {single[0] / pack[0]:.1f} elapsed, {single[1] / pack[1]:.1f} CPU, on {os.cpu_count()} cores")
    for rule, (jobs, seconds) in sorted(where.items(), key=lambda item: -item[1][1]):
        print(f"  {rule:10} {jobs:4} jobs {seconds:7.1f} s")


if __name__ == "__main__":
    main()

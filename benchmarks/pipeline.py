"""Measure where the CPU seconds of the pipeline go: its commands by rule, and the Snakemakes.

    python benchmarks/pipeline.py [--config config/config.yaml] [--set "runtime.pack=auto"] [--slurm] [--rounds 3]

It prints the medians of the rounds. `--slurm` runs the jobs on a cluster of scripts/slurm-sandbox; the table then also
has the two Snakemakes of each job. The CPU seconds of a command are those of its process and of all its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "rules", "profiles", "report", "config", "workflow_lib")
NOTED = "EVERSTEP_BENCHMARK_NOTES"
# imported by each Python when it starts; forks do not run it
SITE = f"""\
import atexit, json, os, resource, sys, time, uuid

def note(pid=os.getpid()):
    if os.getpid() == pid and sys.argv:
        own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        found = [sys.argv, own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime]
        with open(os.path.join(os.environ[{NOTED!r}], uuid.uuid4().hex), "w") as file:
            json.dump(found, file)

if {NOTED!r} in os.environ:
    atexit.register(note)
"""


def copy_to(project: Path) -> None:
    """Copy the pipeline to a folder."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project / name)


def run(
    folder: Path, config: Path, settings: str = "", *, is_slurm: bool = False
) -> tuple[float, dict[str, list[float]]]:
    """Run the pipeline in ``folder/project``; return elapsed seconds, and CPU seconds of each process by kind."""
    project, notes, site = (folder / name for name in ("project", "notes", "site"))
    for path in (project, notes, site):
        path.mkdir(parents=True)
    copy_to(project)
    (site / "sitecustomize.py").write_text(SITE)
    profile = "profiles/slurm" if is_slurm else "profiles/local"
    command = [sys.executable, "-m", "snakemake", "--profile", profile, "--configfile", str(config)]
    if settings:
        command += ["--config", f"set={settings}"]
    if is_slurm:
        cluster = tempfile.mkdtemp(prefix="bench-", dir="/tmp")  # short, as sockets need it
        command = [str(ROOT / "scripts" / "slurm-sandbox"), "--dir", cluster, "run", *command]
    python_path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": python_path, NOTED: str(notes)}
        if subprocess.run(command, cwd=project, env=environment, stdout=log, stderr=log, check=False).returncode:
            sys.exit((folder / "log.txt").read_text())
    elapsed = time.monotonic() - began
    if is_slurm:
        shutil.rmtree(cluster)
    return elapsed, _by_kind(notes)


def _by_kind(notes: Path) -> dict[str, list[float]]:
    seconds = defaultdict(list)
    for path in notes.iterdir():
        argv, own, others = json.loads(path.read_text())
        if Path(argv[0]).parent.name == "workflow_lib":
            seconds[argv[1]].append(own + others)
        elif "snakemake" in argv[0]:
            seconds["Snakemake in a job" if "--mode" in argv else "Snakemake"].append(own)
    return seconds


def show(elapsed: Sequence[float], rounds: Sequence[dict[str, list[float]]]) -> None:
    """Print medians of the rounds: elapsed seconds, and CPU seconds by kind of process."""
    kinds = {kind: [found.get(kind, []) for found in rounds] for kind in rounds[0]}
    sums = {kind: statistics.median(map(sum, values)) for kind, values in kinds.items()}
    total = sum(sums.values())
    print(f"{statistics.median(elapsed):.1f} s elapsed, {total:.1f} s of CPU, on {os.cpu_count()} cores")
    print(f"  {'':20} processes  CPU seconds  each  share")
    for kind, seconds in sorted(sums.items(), key=lambda item: -item[1]):
        each = statistics.median(value for values in kinds[kind] for value in values)
        print(f"  {kind:20} {len(kinds[kind][0]):9} {seconds:12.1f} {each:5.2f} {seconds / total:6.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--set", default="", help="settings that replace those of the file")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(number) for number in range(arguments.rounds)]
        rounds = [run(path, arguments.config, arguments.set, is_slurm=arguments.slurm) for path in folders]
    elapsed, found = zip(*rounds, strict=True)
    show(elapsed, found)


if __name__ == "__main__":
    main()

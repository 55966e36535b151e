"""Measure what a large sweep costs besides its training.

    python benchmarks/scale.py plan [--runs 10000]     expand, freeze and dry-run a sweep
    python benchmarks/scale.py job [--runs 10000]      the start-up of Snakemake inside a cluster job
    python benchmarks/scale.py sweep [--runs 200] [--jobs 16] [--until train]
                                                          on its own SLURM sandbox: how the time of a job is spent
    python benchmarks/scale.py finished [--runs 5000]  the cost of the commands when a tenth of the runs, and all, are
                                                          finished: medians of three

It prints CPU and elapsed seconds: on a busy machine only the former can be compared. The dry run is compared with that
of a bare chain of three rules with as many jobs, the cost of Snakemake itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import store

from workflow_lib import config
from workflow_lib.plan import freeze_experiment

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--quiet", "all")

BARE = """\
rule all:
    input: expand("r/{n}/c", n=range(int(config["count"])))
rule a:
    output: "r/{n}/a"
    shell: "touch {output}"
rule b:
    input: "r/{n}/a"
    output: "r/{n}/b"
    shell: "touch {output}"
rule c:
    input: "r/{n}/b"
    output: "r/{n}/c"
    shell: "touch {output}"
"""

# every Python of a job records its start, its end, and the CPU time of itself and its children
TRACE = """\
import atexit, json, os, time
if "SLURM_JOB_ID" in os.environ:
    _began, _pid = time.time(), os.getpid()
    def _tell():
        if os.getpid() == _pid:
            used = os.times()
            line = {"job": os.environ["SLURM_JOB_ID"], "began": _began, "ended": time.time(), "cpu": sum(used[:4]),
                    "command": open("/proc/self/cmdline").read().split("\\0")}
            with open(os.environ["EVERSTEP_BENCH_TRACE"], "a") as file:
                file.write(json.dumps(line) + "\\n")
    atexit.register(_tell)
"""

SBATCH = """\
#!/bin/sh
began=$(date +%s.%N)
job=$({sbatch} "$@") || exit
line='{{"job": "%s", "began": %s, "ended": %s, "command": ["sbatch"], "cpu": 0}}\\n'
printf "$line" $job $began $(date +%s.%N) >> {trace}
echo "$job"
"""


def experiment_of(runs: int) -> str:
    """Return an experiment with small runs: two learning rates, and as many seeds as needed."""
    seeds = ", ".join(str(seed) for seed in range((runs + 1) // 2))
    return (
        "name: wide\nmodel: {params: {hidden: [8]}}\ntraining: {epochs: 2}\nevaluate: {bootstrap: 50}\n"
        f"sweep:\n  grid:\n    optimizer.lr: [1e-3, 2e-3]\n    seed: [{seeds}]\n"
    )


@contextmanager
def project(runs: int) -> Iterator[Path]:
    """Make a copy of the pipeline with that sweep."""
    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as name:
        folder = Path(name)
        store.copy_project(folder)
        (folder / "config" / "wide.yaml").write_text(experiment_of(runs))
        yield folder


def measured(command: list[str] | tuple[str, ...], folder: Path, **more: Any) -> tuple[float, float]:
    """Return elapsed and CPU seconds of a command, which must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


def row(name: str, times: tuple[float, float]) -> None:
    print(f"{name:<58}{times[0]:9.1f}{times[1]:9.1f}", flush=True)


def plan(runs: int) -> None:
    """Print the cost before the first job of a sweep."""
    print(f"{runs} runs{'elapsed':>58}{'CPU s':>9}")
    verb = (sys.executable, "-m", "workflow_lib")
    wide = ("--configfile", "config/wide.yaml", "--profile", "profiles/slurm")
    with project(runs) as folder:
        (folder / "bare").mkdir()
        (folder / "bare" / "Snakefile").write_text(BARE)
        row("everstep validate: expand the sweep", measured((*verb, "validate", "config/wide.yaml"), folder))
        freeze = (*verb, "freeze", "--experiment", "config/wide.yaml", "--output", "plan.json")
        row("everstep freeze: every run, for the first time", measured(freeze, folder))
        row("everstep freeze: every run, frozen before", measured(freeze, folder))
        dry = measured((*SNAKEMAKE, "--dry-run", *wide), folder)
        row(f"dry run: {3 * runs + 3} jobs", dry)
        bare = (*SNAKEMAKE, "--dry-run", "--scheduler", "greedy", "--config", f"count={runs}")
        row(f"dry run of a bare chain of three rules: {3 * runs} jobs", measured(bare, folder / "bare"))


def job(runs: int) -> None:
    """Print the time that Snakemake takes to plan one training, in sweeps of one run and of many. Jobs do it twice."""
    print(f"{'the Snakemake of one job':<58}{'elapsed':>9}{'CPU s':>9}")
    for count in (1, runs):
        with project(count) as folder:
            experiment = config.load([folder / "config" / "wide.yaml"], root=folder)
            frozen = freeze_experiment(experiment, folder / "work")
            verb = (sys.executable, "-m", "workflow_lib", "freeze", "--experiment", str(frozen))
            measured((*verb, "--output", "results/wide/plan.json"), folder)
            written = json.loads((folder / "results/wide/plan.json").read_text())["runs"]
            run, data = written[0]["id"], folder / "results/wide/data" / f"{written[0]['data_id']}.json"
            data.parent.mkdir()
            data.write_text("{}")
            target = f"train:experiment=wide,run={run}"
            inner = ("--mode", "remote", "--allowed-rules", "train", "--target-jobs", target)
            command = (*SNAKEMAKE, "--dry-run", "--configfile", str(frozen), "--cores", "1", *inner)
            row(f"of a sweep of {count}", measured(command, folder))


def sweep(runs: int, jobs: int, until: str) -> None:
    """Print how the time of a job is spent, for the sweep on its own sandbox."""
    sandbox = str(ROOT / "scripts" / "slurm-sandbox")
    with project(runs) as folder, tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as cluster:
        tools, trace = folder / "tools", folder / "trace.jsonl"
        tools.mkdir()
        (tools / "sitecustomize.py").write_text(TRACE)
        wrapper = tools / "sbatch"
        wrapper.write_text(SBATCH.format(sbatch=f"{cluster}/bin/sbatch", trace=trace))
        wrapper.chmod(0o755)
        profile = ("--configfile", "config/wide.yaml", "--profile", "profiles/slurm", "--jobs", str(jobs))
        snakemake = (*SNAKEMAKE, *profile, "--until", until)
        inside = f"PATH={tools}:$PATH PYTHONPATH={tools} EVERSTEP_BENCH_TRACE={trace} exec {' '.join(snakemake)}"
        print(f"{runs} runs, --jobs {jobs}, --until {until}", flush=True)
        try:
            elapsed, _ = measured((sandbox, "--dir", cluster, "run", "sh", "-c", inside), folder)
            print(f"in all {elapsed:.0f} s, {elapsed / runs:.2f} s a run")
        finally:  # also of the finished part, if it is interrupted
            phases(trace, folder)


def finished(runs: int) -> None:
    """Print the cost of the commands in a project whose runs are finished."""
    for count in (runs // 10, runs):
        with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as name:
            folder = Path(name)
            store.make(folder)
            store.grow(folder, count)
            print(f"{count} finished runs{'elapsed':>{54 - len(str(count))}}{'CPU s':>9}")
            commands(folder)


def commands(folder: Path, repeats: int = 3) -> None:
    """Print a line per command, in an order in which only the last one, the removal, changes what the next finds."""
    verb, wide = (sys.executable, "-m", "workflow_lib"), ("--configfile", "config/wide.yaml")
    results = Path("results") / store.NAME
    made = sorted((folder / results / "runs").iterdir())
    page = ("--results", str(results), "--plan", str(results / "plan.json"), "--output", str(results / "report.html"))
    report = (*verb, "report", "--experiment", "config/wide.yaml", *page)
    dry = (*SNAKEMAKE, "--dry-run", "--profile", "profiles/local", *wide)
    clean = (*verb, "clean")
    rows: tuple[tuple[str, tuple[str, ...], int], ...] = (
        ("everstep status", (*verb, "status"), repeats),
        ("everstep status --json", (*verb, "status", "--json"), repeats),
        ("everstep clean: an older checkpoint of every run is listed", clean, repeats),
        ("everstep clean --yes: and removed", (*clean, "--yes"), 1),
        ("everstep clean: nothing to remove", clean, repeats),
        ("everstep report: page and table", report, repeats),
        ("everstep plan", (*verb, "plan", "config/wide.yaml"), repeats),
        ("everstep explain: two of the runs", (*verb, "explain", made[0].name, made[-1].name), repeats),
        ("everstep trace", (*verb, "trace", str(made[0].relative_to(folder) / "export.json")), repeats),
        ("snakemake --dry-run", dry, 1),
    )
    for text, command, times in rows:
        taken = list(zip(*(measured(command, folder) for _ in range(times)), strict=True))
        row(text, (statistics.median(taken[0]), statistics.median(taken[1])))
    sizes = [(folder / results / name).stat().st_size / 1e6 for name in ("report.html", "runs.csv")]
    print(f"report.html {sizes[0]:.2f} MB, runs.csv {sizes[1]:.2f} MB", flush=True)


def phases(trace: Path, folder: Path) -> None:
    """Print the medians over all trainings, in the order of the phases of a job."""
    of_job: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in trace.read_text().splitlines():
        found = json.loads(line)
        of_job[found["job"]].append(found)
    records = [json.loads(path.read_text()) for path in folder.glob("work/runs/*/*/attempts/*.json")]
    attempts = {record["job"]: record for record in records if record["job"]}
    elapsed: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for name, processes in of_job.items():
        one = {kind: of_kind(processes, kind) for kind in ("sbatch", "snakemake", "workflow_lib")}
        if name not in attempts or [len(found) for found in one.values()] != [1, 2, 1]:
            continue
        (sbatch,), (batch, step), (ours,) = one.values()
        began, ended = (datetime.fromisoformat(attempts[name][key]).timestamp() for key in ("began", "ended"))
        for phase, seconds in (
            ("sbatch", sbatch["ended"] - sbatch["began"]),
            ("waiting for a node", batch["began"] - sbatch["ended"]),
            ("Snakemake of the batch step, until srun's begins", step["began"] - batch["began"]),
            ("Snakemake of the job step, until the command begins", ours["began"] - step["began"]),
            ("our start: imports, lease, checks", began - ours["began"]),
            ("training, evaluation each epoch, checkpoints", ended - began),
            ("our end: outputs, exit", ours["ended"] - ended),
            ("both Snakemakes' end", batch["ended"] - ours["ended"]),
            ("in all, from sbatch", batch["ended"] - sbatch["began"]),
        ):
            elapsed[phase].append(seconds)
        cpu["Snakemake of the batch step, until srun's begins"].append(batch["cpu"])
        cpu["Snakemake of the job step, until the command begins"].append(step["cpu"] - ours["cpu"])
        cpu["training, evaluation each epoch, checkpoints"].append(ours["cpu"])
    print(f"{'medians':<58}{'elapsed':>9}{'CPU s':>9}   ({len(elapsed['sbatch'])} jobs)")
    for phase, seconds in elapsed.items():
        used = f"{statistics.median(cpu[phase]):9.1f}" if phase in cpu else ""
        print(f"{phase:<58}{statistics.median(seconds):9.2f}{used}")
    print("The CPU seconds of a phase are those of its process, from its start to its end.")


def of_kind(processes: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the processes of a job of this kind, the earliest first."""
    found = [one for one in processes if kind in (Path(word).name for word in one["command"][:4])]
    return sorted(found, key=lambda one: float(one["began"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "job", "sweep", "finished"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--until", default="train", help="the last rule")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if arguments.what == "sweep":
        sweep(arguments.runs or 200, arguments.jobs, arguments.until)
    elif arguments.what == "finished":
        finished(arguments.runs or 5000)
    else:
        {"plan": plan, "job": job}[arguments.what](arguments.runs or 10_000)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

"""Measure interruptions: start to first step, SIGTERM to a durable end, and a chain of kills.

    python benchmarks/resume.py [--rounds 5] [--kills 50]

All processes run the package's own command on the digits with a small model; `plain script` imports torch, builds the
same model and makes one step. The chain is one training that is killed with SIGKILL again and again after a moment; its
loss per kill is the difference from the same training without kills.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workflow_lib import config, plan

EXPERIMENT = """
name: bench
model: {{name: mlp, params: {{hidden: [256]}}}}
training: {{epochs: {epochs}, batch_size: 32}}
checkpoint: {{interval_s: 1.0, max_stalled_attempts: 1000}}
"""
PLAIN = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.AdamW(model.parameters())
torch.nn.functional.cross_entropy(model(torch.randn(32, 64)), torch.zeros(32, dtype=torch.long)).backward()
optimizer.step()
import time; print(time.time(), flush=True)
"""
# runs a command, and prints the time of the first optimizer step of its process
TIMED = """
import os, runpy, sys, time
def watch(event, arguments, said=[]):
    if event == "everstep" and arguments[0] == "commit" and not said:
        said.append(os.write(1, f"{time.time()}\\n".encode()))
sys.addaudithook(watch)
runpy.run_module("workflow_lib", run_name="__main__", alter_sys=True)
"""


class Project:
    """A folder with one run, planned and preprocessed."""

    def __init__(self, folder: Path, epochs: int) -> None:
        folder.mkdir()
        (folder / "Snakefile").touch()
        (folder / "experiment.yaml").write_text(EXPERIMENT.format(epochs=epochs))
        self.folder = folder
        self.environment = {**os.environ, "EVERSTEP_EXPERIMENT": "experiment.yaml"}
        experiment = config.load([folder / "experiment.yaml"])
        run = plan.expand(experiment)[0]
        self._call("freeze", "--output", "plan.json")
        self._call("preprocess", "--data", run.data_id, "--output", "data.json")
        self.train = ("train", "--run", run.id, "--data", "data.json", "--output", "out/train.json")

    def _call(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "workflow_lib", *arguments]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, capture_output=True)

    def start(self) -> tuple[subprocess.Popen[str], float]:
        """Start a training; return its process and the seconds from its start to its first step."""
        begun = time.time()
        process = subprocess.Popen(
            [sys.executable, "-c", TIMED, *self.train],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        return process, (float(line) - begun if line else float("nan"))


def plain() -> float:
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True)
    return float(done.stdout) - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        interruptions(Path(folder), arguments.rounds)
        chain(Path(folder), arguments.kills)


def interruptions(folder: Path, rounds: int) -> None:
    """Print medians of alternating starts and stops."""
    times: dict[str, list[float]] = {"plain script": [], "first start": [], "resume": [], "SIGTERM to end": []}
    for turn in range(rounds):
        project = Project(folder / f"stop-{turn}", epochs=100_000)
        times["plain script"].append(plain())
        for kind in ("first start", "resume"):
            process, seconds = project.start()
            times[kind].append(seconds)
            begun = time.time()
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            times["SIGTERM to end"].append(time.time() - begun)
            if code != 75:
                raise SystemExit(f"the training ended with {code} instead of 75")
    for name, values in times.items():
        print(f"{name:<18}{statistics.median(values):>8.2f} s   (from {min(values):.2f} to {max(values):.2f})")


def chain(folder: Path, kills: int) -> None:
    """Run one training without kills and one under SIGKILLs; both must end with the same weights."""
    epochs = 40 * max(kills, 1)
    straight, killed = Project(folder / "straight", epochs), Project(folder / "killed", epochs)
    begun = time.time()
    straight.start()[0].wait()
    alone_s = time.time() - begun
    each_s = alone_s / (kills + 1)
    begun, struck = time.time(), 0
    while True:
        process, first_step_s = killed.start()
        try:
            code = process.wait(timeout=each_s if struck < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            struck += 1
            continue
        if code != 0:
            raise SystemExit(f"the training ended with {code}")
        break
    total_s = time.time() - begun
    weights = [json.loads((one.folder / "out" / "train.json").read_text())["model"] for one in (straight, killed)]
    same = "the same bits" if weights[0] == weights[1] else "DIFFERENT WEIGHTS"
    lost_s = (total_s - alone_s) / max(struck, 1)
    print(
        f"{struck} kills, one every {each_s:.1f} s: {same}; {lost_s:.2f} s lost a kill, goodput {alone_s / total_s:.2f}"
    )


if __name__ == "__main__":
    main()

"""Make a store and results of many finished runs from one run that Snakemake really planned, trained and exported.

Each further run has copies of that run's files with its own id, digest, attempt and metrics; the digests of changed
files are computed again, so every check passes. Only the weights are the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from workflow_lib import checkpoint, config, plan
from workflow_lib.files import compact_json, file_digest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "report", "profiles", "config", "workflow_lib", "scripts")
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--quiet", "all", "--configfile", "config/wide.yaml")
NAME = "wide"
FIRST_SEED = 10_000  # all names have the same length
NUMBER = re.compile(r"(?<![\d.])\d\.\d{6,}")  # metrics with all digits
SHARED = "predictions.csv"  # hard-linked: they are nearly all bytes of a run, and only those of the best run are read
MANIFEST, STATE = checkpoint.MANIFEST, checkpoint.STATE


def experiment_of(runs: int) -> str:
    """Return an experiment with small runs: two learning rates, and as many seeds as needed."""
    rates = [1e-3, 2e-3][:runs]
    seeds = [FIRST_SEED + number for number in range((runs + 1) // 2)]
    return (
        f"name: {NAME}\nmodel: {{params: {{hidden: [8]}}}}\ntraining: {{epochs: 2}}\nevaluate: {{bootstrap: 50}}\n"
        f"sweep:\n  grid:\n    optimizer.lr: {rates}\n    seed: {seeds}\n"
    )


def make(folder: Path) -> None:
    """Make a project with one finished run, without a report, in the existing folder."""
    copy_project(folder)
    _planned(folder, 1, "export")


def copy_project(folder: Path) -> None:
    """Copy the pipeline into the existing folder."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)


def grow(folder: Path, runs: int) -> None:
    """Extend the project to this number of finished runs, two or more; existing runs are not changed."""
    first, *others = plan.expand(_planned(folder, runs, "plan"))
    models = _models(folder, first)
    for run in others:
        if not (folder / "results" / NAME / "runs" / run.id).exists():
            _write(folder, models, first, run)


def _planned(folder: Path, runs: int, until: str) -> config.Experiment:
    """Run Snakemake until the rule, on an experiment of this number of runs."""
    path = folder / "config" / "wide.yaml"
    path.write_text(experiment_of(runs))
    command = [*SNAKEMAKE, "--profile", "profiles/local", "--cores", "2", "--until", until]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return experiment(folder)


def experiment(folder: Path) -> config.Experiment:
    """Return the experiment of the project."""
    return config.load([folder / "config" / "wide.yaml"], root=folder)


def _models(folder: Path, run: plan.Run) -> dict[str, bytes]:
    """Return the files of a run by their place in the project; a file comes before those that contain its digest."""
    places = (f"work/runs/{run.digest}/*/**/*", f"results/{NAME}/runs/{run.id}/*")
    found = [path for place in places for path in folder.glob(place) if path.is_file() and path.name != SHARED]
    found += [path for path in folder.glob(".snakemake/metadata/*") if run.id in _decoded(path.name)]
    order = (STATE, MANIFEST, "model.onnx", "evaluation.json")
    found.sort(key=lambda path: order.index(path.name) if path.name in order else len(order))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _write(folder: Path, models: Mapping[str, bytes], first: plan.Run, run: plan.Run) -> None:
    """Write the files of a finished run."""
    frozen = [folder / "work" / "runs" / each.digest / "config.json" for each in (first, run)]
    texts = {first.id: run.id, first.digest: run.digest, first.digest[:12]: run.digest[:12]}
    texts[file_digest(frozen[0])] = file_digest(frozen[1])
    attempt = next(Path(place).stem for place in models if "/attempts/" in place)
    own = uuid.uuid4().hex
    texts |= {attempt: own, attempt[:8]: own[:8]}
    factor = random.Random(run.digest).uniform(0.5, 1.1)
    signed: dict[str, bytes] = {}
    for place, content in models.items():
        name = place.rpartition("/")[2]
        if not name.endswith(".safetensors"):
            new = content
            for old, its in texts.items():
                new = new.replace(old.encode(), its.encode())
            if not name.endswith(".onnx"):
                new = NUMBER.sub(lambda found: repr(float(found[0]) * factor), new.decode()).encode()
            if name == MANIFEST:
                new = _signed(new, signed[f"{place.rpartition('/')[0]}/{STATE}"])
            if name == STATE:
                signed[place] = new
            if name in ("model.onnx", "evaluation.json"):  # later files contain their digests
                texts[digest_of(content)] = digest_of(new)
            content = new
        path = folder / _renamed(place, texts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        times = (folder / place).stat()
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # in the order of their creation
    shared, target = (folder / "results" / NAME / "runs" / each.id / SHARED for each in (first, run))
    target.hardlink_to(shared)


def _renamed(place: str, texts: Mapping[str, str]) -> str:
    """Return the place of the file in the other run."""
    parent, _, name = place.rpartition("/")
    is_record = parent == ".snakemake/metadata"
    place = _decoded(name) if is_record else place
    for old, its in texts.items():
        place = place.replace(old, its)
    return f"{parent}/{base64.urlsafe_b64encode(place.encode()).decode()}" if is_record else place


def _decoded(name: str) -> str:
    """Return the output of a record of Snakemake."""
    return base64.urlsafe_b64decode(name).decode()


def _signed(manifest: bytes, state: bytes) -> bytes:
    """Return the manifest of a checkpoint with that state."""
    content = json.loads(manifest)
    del content["digest"]
    content["files"][STATE] = {"bytes": len(state), "blake3": blake3(state).hexdigest()}
    return compact_json(content | {"digest": checkpoint.digest(compact_json(content))})


def digest_of(content: bytes) -> str:
    """Return the digest of a file with that content, as results record it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()

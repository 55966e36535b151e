"""The sources that decide the results of each stage, and the record of their digests.

`scripts/stages` writes the record: the number of each stage, and the digest of each of its sources. After a change of a
source, raise the number of its stages in `workflow_lib/config/stages.py` if results change; then run the script.
"""

from __future__ import annotations

import json
from pathlib import Path

from workflow_lib.files import file_digest, json_text
from workflow_lib.plan import STAGES
from workflow_lib.plugins import source_digest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workflow_lib"
RECORD = ROOT / "tests" / "recorded" / "stages.json"

DATA = ("datasets/*", "data/*", "checkpoint/safetensors.py")
TRAINING = (
    "training/*",
    "tasks/*",
    "metrics/own.py",
    "metrics/kept.py",
    "models/*",
    "distributed/parallel.py",
    "distributed/fsdp.py",
    "distributed/resharding.py",
    "distributed/ranks.py",
    "checkpoint/*",
    "metrics/token_loss.py",
    "launch/worker.py",
    "orchestrator.py",
    "runtime/determinism.py",
    "runtime/seed.py",
    "runtime/device.py",
    "runtime/environment.py",
    "runtime/torch_internals.py",
)
LOADING = ("data/loader.py", "data/normalisation.py", "data/in_place.py", "data/mapped_files.py", "data/rows.py")
READING = (*LOADING, "data/prefetch.py")
SOURCES: dict[str, tuple[str, ...]] = {
    "plan": ("plan/*", "config/*", "plugins/*", "tasks/*"),
    "preprocess": DATA,
    "train": (*TRAINING, *READING, "results/write_run.py"),
    "evaluate": ("evaluation/*", "metrics/*", "tasks/*", "models/*", *LOADING),
    "suggest": ("tuning/*",),
    "export": ("export/*", "tasks/*", "models/*", *LOADING),
    "report": (
        "report/*",
        "tasks/*",
        "report/templates/*",
        "results/read_runs.py",
        "results/configurations.py",
        "store/accounting.py",
    ),
    "track": ("tracking/*", "trackers/*"),
    "register": ("registry/*",),
}
# modules that cannot change a number in a result
NEUTRAL = (
    "__init__.py",
    "__main__.py",
    "arguments.py",
    "cli/*",
    "comparison/*",
    "checksums.py",
    "distributed/*",
    "errors.py",
    "files.py",
    "housekeeping/*",
    "interactive/*",
    "launch/*",
    "live/*",
    "notify/*",
    "packs/*",
    "prediction/*",
    "processes.py",
    "py.typed",
    "ready.py",
    "records.py",
    "prove/*",
    "results/*",
    "runtime/*",
    "serve/*",
    "serve/templates/*",
    "shards.py",
    "shipped.py",
    "slurm/*",
    "snakefile.py",
    "start/*",
    "store/*",
    "text.py",
)

Record = dict[str, dict[str, int | dict[str, str]]]


def sources(patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of the package that match the patterns."""
    found = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file() and path.suffix != ".pyc"}
    return sorted(found)


def current() -> Record:
    """Return the number of each stage and the digest of each of its sources."""
    return {
        stage: {
            "number": STAGES[stage],
            "sources": {str(path.relative_to(PACKAGE)): _digest(path) for path in sources(SOURCES[stage])},
        }
        for stage in STAGES
    }


def _digest(path: Path) -> str:
    """Return the digest of a file; comments, docstrings and formatting of a module do not change it."""
    return source_digest.of_text(path.read_bytes()) if path.suffix == ".py" else file_digest(path)


def recorded() -> Record:
    """Return the record."""
    record: Record = json.loads(RECORD.read_text())
    return record


def unweighed(now: Record, before: Record) -> list[str]:
    """Return the sources that changed since the record while the number of their stage did not."""
    changed = []
    for stage, entry in now.items():
        old = before.get(stage, {"number": None, "sources": {}})
        if entry["number"] == old["number"]:
            ours, theirs = entry["sources"], old["sources"]
            assert isinstance(ours, dict)
            assert isinstance(theirs, dict)
            names = sorted(ours.keys() | theirs.keys())
            changed += [f"{stage}: {name}" for name in names if ours.get(name) != theirs.get(name)]
        else:
            changed.append(f"{stage}: its number is {entry['number']}, recorded is {old['number']}")
    return changed


if __name__ == "__main__":
    for line in unweighed(current(), recorded() if RECORD.exists() else {}):
        print(f"recorded  {line}")
    RECORD.write_text(json_text(current()))

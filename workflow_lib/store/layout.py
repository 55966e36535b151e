"""Paths in work/. No other module contains them.

experiments/<digest>.json               frozen experiments
runs/<run>/config.json                  frozen settings of a run
runs/<run>/<data>-<code>/               its workspace for this data and code
    attempts/                           one record an attempt
    checkpoints/
    leases/                             owner of the workspace
    code.json                           code that the run is trained with
    failure.json                        last failure, if it may recur
    metrics.jsonl                       learning curve, one line a validation
    steps.jsonl                         loss and learning rate by step, if they are logged
    summaries/                          gradients, weights and images of some steps, with tracking.every_steps
    events.jsonl                        log of all attempts
    computed/                           evaluations and exports that a pack computed
    delivered.jsonl                     each time that the finished run was requested
runs/<run>/<data>-<code>.accepted.json  acceptance of another workspace's result
studies/<digest>/study.json             definition of a study
packs/<digest>.json                     runs of a pack
packs/ready-<process>/                  results that packs have prepared for the jobs of a running pipeline
data/<store>/                           shards of a data set, or the index of files read in place; manifest.json
parts/<digest>/                         digests of the parts of a file that is read in place
clones/<digest>.json                    results folders that may need something here
code/<digest>/                          snapshot of the project's code, which jobs import
prove/<id>/                             temporary folder of a running proof
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from workflow_lib.files import names_in
from workflow_lib.processes import writer_mark

WORK = Path("work")  # relative to the folder of the project
WORKSPACE = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{12})?")  # data and code; workspaces of version 0.1 have no code
RUN = re.compile("[0-9a-f]{32}")
STORE = re.compile("[0-9a-f]{32}")
PROOF = re.compile("[0-9a-f]{12}")
LOCKS = frozenset({".lock", "leases"})  # readers write to these too, so they do not count as use
EXPERIMENT_FILE = re.compile(r"[0-9a-f]{32}\.json")
# names of the files that Everstep writes to a workspace and to a folder of shards
WORKSPACE_CONTENT = re.compile(
    r"attempts|checkpoints|computed|leases|summaries|(code|failure)\.json|(metrics|steps|events|delivered)\.jsonl|\..*\.tmp"
)
STORE_CONTENT = re.compile(
    r"(train|val|test)-\d{12}-\d{12}(-[0-9a-f]{32})?\.safetensors|index\.safetensors|tokenizer\.json|manifest\.json|leases|\.lock|\..*\.tmp"
)

SUMMARY = re.compile(r"\d{12}\.safetensors")
READY = re.compile("ready-(?P<mark>[0-9a-f]{20})[0-9a-f]{12}")
PARTS = re.compile("[0-9a-f]{32}")
CODE = re.compile("[0-9a-f]{32}")
PARTS_CONTENT = re.compile(r"\d+\.json|\..*\.tmp")


def experiment_file(work: Path, digest: str) -> Path:
    """Return the path of a frozen experiment."""
    return work / "experiments" / f"{digest}.json"


def experiment_files(work: Path) -> list[Path]:
    """Return the files of all frozen experiments, sorted."""
    return sorted(work.glob("experiments/*.json"))


def is_experiment_file(path: Path) -> bool:
    """Return True if the path is that of a frozen experiment."""
    return path.parent.name == "experiments" and EXPERIMENT_FILE.fullmatch(path.name) is not None


def runs_dir(work: Path) -> Path:
    return work / "runs"


def run_config(work: Path, run: str) -> Path:
    """Return the path of the frozen settings of a run."""
    return work / "runs" / run / "config.json"


def run_configs(work: Path, prefix: str) -> list[Path]:
    """Return the frozen settings of the runs whose digest begins with the prefix, sorted."""
    return sorted((work / "runs").glob(f"{prefix}*/config.json"))


def config_of(workspace: Path) -> Path:
    """Return the path of the frozen settings of the workspace's run."""
    return workspace.parent / "config.json"


def workspace_path(work: Path, run: str, data: str, code: str) -> Path:
    """Return the workspace of a run with this data and this code."""
    return work / "runs" / run / f"{data[:12]}-{code[:12]}"


def workspaces(work: Path, run: str, data: str = "") -> list[Path]:
    """Return the run's workspaces with any code, sorted; only those with this data, if it is given."""
    found = (work / "runs" / run).glob(f"{data[:12]}*")
    return sorted(path for path in found if WORKSPACE.fullmatch(path.name) and path.is_dir())


def all_workspaces(work: Path) -> list[Path]:
    """Return the workspaces of all runs, sorted."""
    found = []
    for run in filter(RUN.fullmatch, names_in(work / "runs")):
        folder = work / "runs" / run
        names = (name for name in names_in(folder) if WORKSPACE.fullmatch(name))
        found += [folder / name for name in names if (folder / name).is_dir()]
    return found


def run_of(workspace: Path) -> str:
    """Return the digest of the workspace's run."""
    return workspace.parent.name


def data_of(workspace: Path) -> str:
    """Return the first 12 digits of the digest of the workspace's data."""
    return workspace.name[:12]


def acceptance_file(workspace: Path) -> Path:
    """Return the path of the record that the result of another workspace is accepted for this one."""
    return workspace.with_name(f"{workspace.name}.accepted.json")


def attempts_dir(workspace: Path) -> Path:
    return workspace / "attempts"


def attempt_file(workspace: Path, attempt: str) -> Path:
    """Return the path of the record of an attempt."""
    return workspace / "attempts" / f"{attempt}.json"


def heartbeat_file(workspace: Path, attempt: str) -> Path:
    """Return the path of the progress of an attempt, which exists until it ends."""
    return workspace / "attempts" / f"{attempt}.pulse"


def checkpoints_dir(workspace: Path) -> Path:
    return workspace / "checkpoints"


def checkpoint_path(work: Path, run: str, recorded: str) -> Path:
    """Return the checkpoint of a run that a statement recorded, even if the store was moved since."""
    return work / "runs" / run / Path(*Path(recorded).parts[-3:])


def parent_workspace(checkpoint: Path) -> Path:
    """Return the workspace of a checkpoint."""
    return checkpoint.parents[1]


def leases_dir(owned: Path) -> Path:
    """Return the folder of the lease files of a workspace, of a folder of shards, or of a proof."""
    return owned / "leases"


def code_file(workspace: Path) -> Path:
    """Return the path of the record of the code that the workspace's run is trained with."""
    return workspace / "code.json"


def failure_file(workspace: Path) -> Path:
    """Return the path of the record of the last failure."""
    return workspace / "failure.json"


def metrics_file(workspace: Path) -> Path:
    """Return the path of the learning curve."""
    return workspace / "metrics.jsonl"


def steps_file(workspace: Path) -> Path:
    """Return the path of the log of steps."""
    return workspace / "steps.jsonl"


def summary_file(workspace: Path, step: int) -> Path:
    """Return the path of the gradients, weights and images of a step."""
    return workspace / "summaries" / f"{step:012}.safetensors"


def summary_files(workspace: Path) -> list[tuple[int, Path]]:
    """Return the steps whose gradients, weights and images are there, in order, with their files."""
    names = (name for name in names_in(workspace / "summaries") if SUMMARY.fullmatch(name))
    return [(int(name.partition(".")[0]), workspace / "summaries" / name) for name in names]


def events_file(workspace: Path) -> Path:
    """Return the path of the log of all attempts."""
    return workspace / "events.jsonl"


def delivered_file(workspace: Path) -> Path:
    """Return the path of the log of requests for the finished run."""
    return workspace / "delivered.jsonl"


def computed_dir(workspace: Path) -> Path:
    """Return the folder of the evaluations and exports that a pack computed."""
    return workspace / "computed"


def pack_file(work: Path, pack: str) -> Path:
    """Return the path of the runs of a pack."""
    return work / "packs" / f"{pack}.json"


def pack_files(work: Path) -> list[Path]:
    """Return the files of all packs, sorted."""
    return sorted(work.glob("packs/*.json"))


def new_ready_dir(work: Path) -> Path:
    """Return the path of a new folder for the results that packs prepare; it is named by the mark of this process."""
    return work / "packs" / f"ready-{writer_mark()}{uuid.uuid4().hex[:12]}"


def ready_dirs(work: Path) -> list[tuple[Path, str]]:
    """Return the folders of prepared results, sorted, each with the mark of the process whose pipeline they are for."""
    found = ((path, READY.fullmatch(path.name)) for path in sorted(work.glob("packs/ready-*")))
    return [(path, match["mark"]) for path, match in found if match and path.is_dir()]


def study_file(work: Path, digest: str) -> Path:
    """Return the path of the definition of a study."""
    return work / "studies" / digest / "study.json"


def data_dir(work: Path) -> Path:
    """Return the folder of all data sets."""
    return work / "data"


def stores(work: Path) -> list[Path]:
    """Return what is in the folder of all data sets, sorted."""
    return sorted(work.glob("data/*"))


def store_dir(work: Path, store: str) -> Path:
    """Return the folder of the shards of a data set."""
    return work / "data" / store


def store_manifest(store: Path) -> Path:
    """Return the path of the manifest in a folder of shards."""
    return store / "manifest.json"


def store_index(store: Path) -> Path:
    """Return the path of the index of data that is read in place."""
    return store / "index.safetensors"


def store_tokenizer(store: Path) -> Path:
    """Return the path of the tokenizer of a language, if one made its tokens."""
    return store / "tokenizer.json"


def parts_dir(work: Path) -> Path:
    """Return the folder of the digests of files that are read in place."""
    return work / "parts"


def parts(work: Path) -> list[Path]:
    """Return what is in the folder of the digests of files that are read in place, sorted."""
    return sorted(parts_dir(work).glob("*"))


def old_store_lock(store: Path) -> Path:
    """Return the file that version 0.1 locks while it prepares the data; newer versions take a lease."""
    return store / ".lock"


def is_store(path: Path) -> bool:
    """Return True if the path is a folder of shards, by its place."""
    return path.parent.name == "data"


def results_folder_file(work: Path, digest: str) -> Path:
    """Return the path of the record of a results folder that uses this store."""
    return work / "clones" / f"{digest}.json"


def results_folder_files(work: Path) -> list[Path]:
    """Return the records of all results folders that use this store, sorted."""
    return sorted(work.glob("clones/*.json"))


def code_snapshot(work: Path, digest: str) -> Path:
    """Return the folder of a snapshot of the project's code."""
    return work / "code" / digest


def code_snapshots(work: Path) -> list[Path]:
    """Return what is in the folder of the snapshots of code, sorted."""
    return sorted(work.glob("code/*"))


def code_snapshot_record(folder: Path) -> Path:
    """Return the path of the facts about a snapshot of code; its time is that of the last use."""
    return folder / ".code.json"


def proof_dir(work: Path, proof: str) -> Path:
    """Return the folder of a proof of exact resume."""
    return work / "prove" / proof


def proofs(work: Path) -> list[Path]:
    """Return what is in the folder of proofs, sorted."""
    return sorted(work.glob("prove/*"))


def removals(work: Path) -> list[Path]:
    """Return the folders whose removal has begun but not finished."""
    places = ("runs/*", "data", "parts", "prove", "experiments", "code", "packs")
    return [path for place in places for path in sorted(work.glob(f"{place}/.trash-*"))]

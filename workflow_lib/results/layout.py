"""Paths in results/. No other module contains them; the rules contain them as patterns.

<experiment>/plan.json                          runs and study of the experiment
<experiment>/experiment.json                    experiment file that the results belong to
<experiment>/data/<data id>.json                manifest of a data set
<experiment>/data/<data id>.splits.csv          row or file of each sample, and its split
<experiment>/runs/<run>/train.json              statement of the training
<experiment>/runs/<run>/model.safetensors       trained weights
<experiment>/runs/<run>/history.csv             learning curve
<experiment>/runs/<run>/steps.csv               loss and learning rate by step, with training.log_every_steps
<experiment>/runs/<run>/evaluation.json         statement of the evaluation
<experiment>/runs/<run>/predictions.csv         prediction for each test sample
<experiment>/runs/<run>/export.json             statement of the export
<experiment>/runs/<run>/model.onnx              exported model
<experiment>/tune/<study>/suggest-<n>.json      trial before its training
<experiment>/tune/<study>/trial-<n>.json        trial after its training
<experiment>/tune/<study>/best.json             best trial
<experiment>/packs/<id>.json                    exit codes of the runs of a pack, until their jobs have ended
<experiment>/report.html                        report
<experiment>/runs.csv                           table of runs
<experiment>/runs.xlsx                          both tables as a workbook, with report.excel
<experiment>/configurations.csv                 means over seeds and folds, if runs repeat a configuration
<experiment>/tracking.json                      copies of the learning curves
<experiment>/registered.json                    version in the registry, and the decision on its promotion
<experiment>/registered.html                    the same as a page, with all versions of the model
<experiment>/notifications/<event>-<key>.json   a message, and which channels have got it
<experiment>/notifications/open.json            mark of a pipeline whose end is not told yet
"""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")  # relative to the folder of the project
PLAN, OWNER = "plan.json", "experiment.json"
TRAIN, MODEL, HISTORY, STEPS = "train.json", "model.safetensors", "history.csv", "steps.csv"
EVALUATION, PREDICTIONS = "evaluation.json", "predictions.csv"
EXPORT, ONNX = "export.json", "model.onnx"
BEST = "best.json"
REPORT, RUNS_TABLE, CONFIGURATIONS = "report.html", "runs.csv", "configurations.csv"
RUNS_WORKBOOK = "runs.xlsx"
REGISTERED, REGISTRY_PAGE = "registered.json", "registered.html"
STATEMENT_OF = {MODEL: TRAIN, HISTORY: TRAIN, STEPS: TRAIN, PREDICTIONS: EVALUATION, ONNX: EXPORT}


def plan_file(experiment: Path) -> Path:
    """Return the path of the plan in an experiment's results."""
    return experiment / PLAN


def owner_file(experiment: Path) -> Path:
    """Return the path of the record of the experiment file that the results belong to."""
    return experiment / OWNER


def data_manifest(experiment: Path, data_id: str) -> Path:
    """Return the path of the manifest of a data set."""
    return experiment / "data" / f"{data_id}.json"


def runs_dir(experiment: Path) -> Path:
    return experiment / "runs"


def run_dir(experiment: Path, run: str) -> Path:
    """Return the folder of the results of a run."""
    return experiment / "runs" / run


def trainings(experiment: Path) -> list[Path]:
    """Return the statements of all trainings of an experiment, sorted."""
    return sorted(experiment.glob(f"runs/*/{TRAIN}"))


def is_pack(path: Path) -> bool:
    """Return True if the path is that of a pack, relative to the project."""
    return path.parts[:1] == RESULTS.parts and path.parts[2:3] == ("packs",)


def study_dir(experiment: Path, study: str) -> Path:
    """Return the folder of a study."""
    return experiment / "tune" / study


def suggestion_file(study: Path, number: int) -> Path:
    """Return the path of a trial before its training."""
    return study / f"suggest-{number:04d}.json"


def suggestion_files(study: Path) -> list[Path]:
    """Return the suggestions of a study that exist, in order."""
    return sorted(study.glob("suggest-*.json"))


def trial_file(study: Path, number: int) -> Path:
    """Return the path of a trial after its training."""
    return study / f"trial-{number:04d}.json"


def best_file(study: Path) -> Path:
    """Return the path of the best trial of a study."""
    return study / BEST


def pointers(study: Path) -> list[Path]:
    """Return the files of a study that name a run: its suggestions, in order, and its best trial."""
    return [*suggestion_files(study), *study.glob(BEST)]


def all_plans(results: Path) -> list[Path]:
    """Return the plans of all experiments, sorted."""
    return sorted(results.glob(f"*/{PLAN}"))


def all_trainings(results: Path) -> list[Path]:
    """Return the statements of the trainings of all experiments, sorted."""
    return sorted(results.glob(f"*/runs/*/{TRAIN}"))


def all_trials(results: Path) -> list[Path]:
    """Return the trained trials of all studies, sorted."""
    return sorted(results.glob("*/tune/*/trial-*.json"))


def all_pointers(results: Path) -> list[Path]:
    """Return the files of all studies that name a run: first the suggestions, then the best trials."""
    return [*sorted(results.glob("*/tune/*/suggest-*.json")), *sorted(results.glob(f"*/tune/*/{BEST}"))]


def all_manifests(results: Path) -> list[Path]:
    """Return the manifests of all data sets, sorted."""
    return sorted(results.glob("*/data/*.json"))


def inputs(experiment: Path) -> list[Path]:
    """Return the files of studies and data of an experiment, sorted. Snakemake regenerates them if they are missing."""
    return sorted([*experiment.glob("tune/*/*.json"), *experiment.glob("data/*.json")])


def notifications_dir(experiment: Path) -> Path:
    return experiment / "notifications"


def notification_file(experiment: Path, event: str, key: str) -> Path:
    """Return the path of the record of a message."""
    return notifications_dir(experiment) / f"{event}-{key}.json"


def notification_files(experiment: Path) -> list[Path]:
    """Return the records of all messages, sorted."""
    return sorted(notifications_dir(experiment).glob("*-*.json"))


def open_file(experiment: Path) -> Path:
    """Return the path of the mark of a pipeline whose end is not told yet."""
    return notifications_dir(experiment) / "open.json"

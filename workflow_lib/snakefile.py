"""Functions that rules/common.smk calls in the Snakemake process: checks before the DAG, and final messages."""

from __future__ import annotations

import errno
import importlib.util
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_lib import config, files, plan, plugins, ready, shipped
from workflow_lib.errors import ConfigError, EverstepError, StateError, shortened
from workflow_lib.plan import preview, user_code
from workflow_lib.results import layout as results_layout
from workflow_lib.store import code_snapshot
from workflow_lib.text import terminal_width

RECORDS = ("metadata", "incomplete", "locks", "log", "controllers", "auxiliary")  # folders that Snakemake writes to

CONTAINER = "EVERSTEP_CONTAINER"  # variable: the image for `--sdm apptainer`


def settings_of(given: Sequence[str]) -> list[str]:
    """Return the settings that follow --config, as they were typed.

    Snakemake parses `set="labels={a: b}"` as YAML and loses the quotes.
    """
    entries = [entry.partition("=") for entry in given]
    if unknown := [name for name, *_ in entries if name != "set"]:
        raise ConfigError(
            f"--config {' '.join(unknown)}: the only name it takes is 'set'. "
            'A setting is overridden with --config set="training.epochs=20 seed=7"'
        )
    return [settings for *_, settings in entries]


def given_to_job(given: Sequence[str]) -> dict[str, str]:
    """Return what the jobs of a cluster get by `--config`: `code`, a digest, and `container`, an image."""
    return {name: value for name, _, value in (entry.partition("=") for entry in given) if name != "set"}


def container_image(is_wanted: bool, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the image in which `--sdm apptainer` runs the jobs, or None if it is not given.

    Raises ConfigError if there is no image, or none at its path.
    """
    image = environ.get(CONTAINER)
    if not is_wanted:
        return None
    if not image:
        raise ConfigError(f"--sdm apptainer needs the variable {CONTAINER}: an image, such as $PWD/everstep.sif")
    if "://" in image:
        return image
    if not Path(image).exists():
        raise ConfigError(f"{CONTAINER}={image}: no such file (looked for in {Path.cwd()}); apptainer builds it")
    return str(Path(image).absolute())


def take_snapshot(configs: Iterable[plan.RunConfig], work: Path, more: Iterable[Path] = ()) -> Path | None:
    """Write the snapshot of the project's rules and of the code that jobs of these runs import; `more` is also copied.

    Returns its folder, or None if there is nothing to copy. Raises ConfigError if there is too much of it.
    """
    modules: dict[str, Path] = {}
    known: set[str] = set()
    for run in configs:
        names = [run.data.name, run.model.name, run.training.hooks, sorted(user_code.objects_of(run).values())]
        if (key := config.canonical(names)) not in known:
            known.add(key)
            modules |= user_code.modules_of(run)
    return code_snapshot.publish(modules, Path.cwd(), work, more)


def data_files(data: config.Data) -> dict[str, str]:
    """Return the user's files that a data set is read from, by setting: the settings that are paths."""
    return {name: str(path) for name, path in plugins.named_files("data", data.name, data.params).items()}


def files_state(data: config.Data) -> str:
    """Return a text that changes when a file of a data set is changed, even to an older one, added or removed.

    Snakemake itself only notices newer files, and entries directly in a folder that are added or removed.
    """
    states = {name: files.file_state(Path(path)) for name, path in data_files(data).items()}
    for path in (entry[0] for entries in states.values() for entry in entries if isinstance(entry, list)):
        if not _is_utf8(path):
            raise ConfigError(f"{path!r}: its name is not UTF-8; rename it")
    return config.digest(states, "everstep-files")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_named_files(sections: Iterable[config.Data | config.Model], where: str = "") -> None:
    """Raise ConfigError if a file that the settings of a data set or model name does not exist."""
    unique = {config.canonical(section.model_dump(mode="json")): section for section in sections}
    for section in unique.values():
        kind, key = ("data", "data") if isinstance(section, config.Data) else ("models", "model")
        named = plugins.named_files(kind, section.name, section.params)
        paths = {f"{key}.params.{name}": path for name, path in named.items()}
        if isinstance(section, config.Model) and section.init.file is not None:
            paths["model.init.from"] = section.init.file
        for setting, path in paths.items():
            if kind == "data" and {"{", "}"} & {*str(path)}:
                raise ConfigError(
                    f"{where}{setting}: {path}: Snakemake would read the braces as wildcards; rename the file"
                )
            if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
                shown = shortened(str(path), 300)
                raise ConfigError(f"{where}{setting}: no such file: {shown} (looked for in {Path.cwd()})")


def check_excel(experiment: config.Experiment) -> None:
    """Raise ConfigError if the report needs openpyxl, and it is not installed."""
    if experiment.report.excel and importlib.util.find_spec("openpyxl") is None:
        raise ConfigError(
            f"report.excel: openpyxl is not installed here; install it with: {shipped.how_to_install('excel')}, or "
            "remove report.excel"
        )


def check_registry(experiment: config.Experiment) -> None:
    """Raise ConfigError if a file stands where the folder of the registry is, or would be made."""
    if experiment.registry is None:
        return
    wanted = experiment.registry.folder
    found = next((path for path in (wanted, *wanted.parents) if path.exists()), None)
    if found is not None and not found.is_dir():
        raise ConfigError(f"registry.folder: {found} is a file; allowed: a folder, which may be a new one")


def move_damaged(folder: Path) -> list[str]:
    """Rename damaged files of the study and of the data in an experiment's results; return a line for each.

    The pipeline then writes them again.
    """
    lines = []
    for path in results_layout.inputs(folder):
        try:
            files.read_json(path)
        except StateError:
            renamed = path.rename(path.with_name(f".{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
            lines.append(f"{path} is damaged, and is made again (the damaged file is now {renamed})")
    return lines


def models(experiment: config.Experiment, runs: Iterable[plan.Run]) -> list[config.Model]:
    """Return the models of the experiment, of its runs and of its study."""
    return [experiment.model, *(run.model for run in plan.all_configs(experiment, runs))]


def check_models(experiment: config.Experiment, runs: Iterable[plan.Run]) -> None:
    """Raise ConfigError if a model that can be checked before its training, or its `init`, does not fit."""
    all_configs = plan.all_configs(experiment, runs)
    checked = [run for run in all_configs if preview.is_built(run.model) or run.model.init != config.Model().init]
    if problems := preview.look(checked, experiment.runtime, Path.cwd()).problems:
        raise ConfigError("\n".join(problems))


def check_records(folder: Path) -> None:
    """Raise StateError if Snakemake cannot write its own folder or read its records; it would show a traceback."""
    advice = (
        f"Nothing was changed. If no Snakemake runs here, move {folder} away and run the same command again: it "
        f"contains no result, no checkpoint and no data"
    )
    for place in (folder, *(folder / name for name in RECORDS)):
        try:
            with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE):
                raise
            raise StateError(f"Snakemake cannot write to {place}: {error.strerror}. {advice}") from error
    for path in folder.glob("metadata/**/*"):
        try:
            if not (path.name.startswith("@") and path.is_dir()):  # Snakemake splits long names into folders
                path.read_bytes().decode()
        except FileNotFoundError:
            continue  # another Snakemake runs here
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"{path}, a record of Snakemake, cannot be read: {error}. {advice}") from error


def freeze_plan(experiment: config.Experiment, runs: Sequence[plan.Run], work: Path, results: Path) -> None:
    """Freeze the runs and the study, and prepare the plan, which its job then only hands out."""
    folder = ready.folder() or work
    prepared, output = folder / results_layout.PLAN, results / results_layout.PLAN
    plan.write_plan(experiment, work, prepared, runs)
    said = "written when the pipeline started"
    ready.write("freeze", {}, output, inputs={}, files={output.name: prepared}, said=said)


def summary(results: Path) -> str | None:
    """Return the summary of an experiment; None without a report, or if the report does not say what is best."""
    from workflow_lib.report import terminal

    try:
        return terminal.summary(results, terminal_width())
    except (EverstepError, OSError, KeyError, ValueError):  # the report itself says what is wrong
        return None


def without_packs(recorded: Callable[[Any, Any], list[str]]) -> Callable[[Any, Any], list[str]]:
    """Return Snakemake's function for the inputs of a job that it records and compares, without packs."""
    return lambda persistence, job: [p for p in recorded(persistence, job) if not results_layout.is_pack(Path(p))]


def also_local(is_local: property, is_handed_out: Callable[[Any], bool]) -> property:
    """Return Snakemake's property of a job, which is now also true for jobs with results in the store.

    A job becomes such a one while Snakemake runs. Its resources are then those of a job on this machine.
    """
    handed_out: set[int] = set()

    def is_here(job: Any) -> bool:
        if is_local.__get__(job) or id(job) in handed_out:
            return True
        if not is_handed_out(job):
            return False
        handed_out.add(id(job))
        job._resources = job._scheduler_resources = None
        return True

    return property(is_here)


def rate_limit(limiter: Any) -> Any:
    """Return the limit of Snakemake's scheduler for jobs per time; None instead of its default, 100 jobs a second.

    With any limit, each pass of the scheduler over the jobs that wait starts a thread that asks for another pass a
    second later. So there are as many passes a second as there have been jobs.
    """
    return None if limiter is None or (limiter.max_jobs, limiter.timespan) == (100, 1) else limiter


_done: dict[Path, dict[str, set[str]]] = {}


def done_in_pack(path: Path) -> dict[str, set[str]]:
    """Return the runs and numbers of trials that a pack has `trained`, and the runs that it has `computed`, too:
    evaluated and exported.

    They are remembered, since Snakemake deletes the file when the runs have been handed out.
    """
    if path not in _done:
        try:
            found = files.read_json(path, "runs", "computed", "trials")
        except (FileNotFoundError, StateError):
            return {"trained": set(), "computed": set()}
        _done[path] = {
            "trained": {name for name, code in (found["runs"] | found["trials"]).items() if code == 0},
            "computed": set(found["computed"]),
        }
    return _done[path]


def failures(jobs: Iterable[tuple[str, Path | None]], command: str) -> str:
    """Return the last log line of each failed job, given by name and log, and the command that resumes the pipeline."""
    lines = []
    for name, log in jobs:
        lines.append(f"{name} failed: {last_line(log)}\n    log: {log}")
    # A Snakemake that was stopped by a signal has no failed job.
    advice = "Fix the cause, then resume with" if lines else "Resume with"
    return "\n".join([*lines, f"no finished work is lost. {advice}: {command}"])


def last_line(log: Path | None) -> str:
    """Return the last line of a log that is not blank."""
    text = log.read_text(encoding="utf-8", errors="replace") if log and log.exists() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "its log is empty")

"""Packs: the runs of an experiment that one job trains, each in a fork of a warm process.

A pack decides only when runs are trained. Their names, checkpoints and results are those of single jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workflow_lib import config, files
from workflow_lib.config.experiment import Experiment
from workflow_lib.plan.expansion import Run
from workflow_lib.plan.naming import data_id
from workflow_lib.plan.sources import sources_of
from workflow_lib.plan.study import studied, study_id, tuned_base
from workflow_lib.store import layout
from workflow_lib.text import count

MOST_OF_AUTO = 64  # runs of a pack with `runtime.pack: auto`: the first results are seen when the first pack has ended


@dataclass(frozen=True)
class Pack:
    """The runs of a pack, or a study: the id of each run and of its data, or of the study and of its data."""

    runs: tuple[tuple[str, str], ...]
    study: tuple[str, str] | None = None

    @property
    def id(self) -> str:
        """A digest of the runs and the study."""
        return config.digest(self.runs if self.study is None else [self.runs, self.study], "pack")[:12]

    @property
    def data(self) -> list[str]:
        """The ids of the data that the pack needs."""
        return list(dict.fromkeys(data for _, data in (*self.runs, *([self.study] if self.study else []))))

    @property
    def described(self) -> str:
        """The contents of the pack, for messages."""
        study = [] if self.study is None else [f"the trials of the study {self.study[0]}"]
        return " and ".join([*([count(len(self.runs), "run")] if self.runs else []), *study])


def is_wanted(experiment: Experiment) -> bool:
    """Return True if the experiment asks for packs."""
    return experiment.runtime.pack != 1


def obstacle(experiment: Experiment, *, is_cluster: bool) -> str | None:
    """Return why runs are trained one by one although `runtime.pack` asks for packs; None if they can be packed."""
    runtime = experiment.runtime
    if is_cluster and runtime.device == "auto":  # a job of their own might get a GPU, and compute other bits there
        return "their jobs may get GPUs on a cluster (runtime.device: cpu trains on the CPU)"
    if is_cluster and runtime.device.startswith("cuda"):
        return "they are trained on GPUs of a cluster (runtime.device: cpu trains on the CPU)"
    for name in ("nodes", "nproc", "threads"):
        if getattr(runtime, name) > 1:
            return f"runtime.{name} is {getattr(runtime, name)}: a run of a pack has one process and one thread"
    return None


def packs(
    experiment: Experiment, runs: Iterable[Run], *, has_study: bool = False, shares: bool = True
) -> dict[str, Pack]:
    """Return the packs of these runs by id, as equal in size as possible; runs that start from others are left out.

    With ``has_study`` the study is packed, too. It shares the pack of the runs if there is only one and ``shares`` is
    true, since the import of torch takes seconds; on several nodes or GPUs, two packs are trained at the same time.
    """
    study = study_pack(experiment) if has_study else None
    found = _packs_of_runs(experiment, runs, 0 if study is not None and shares else 1)
    if study is not None and shares and len(found) == 1:
        found = [Pack(found[0].runs, study.study)]
    elif study is not None:
        found.append(study)
    return {pack.id: pack for pack in found}


def _packs_of_runs(experiment: Experiment, runs: Iterable[Run], more_than: int) -> list[Pack]:
    most = experiment.runtime.pack
    most = MOST_OF_AUTO if most == "auto" else most
    packed = [(run.id, run.data_id) for run in runs if not sources_of(run.config)]
    number = -(-len(packed) // most)
    found = [Pack(tuple(part)) for part in _parts(packed, number)]
    return [pack for pack in found if len(pack.runs) > more_than]


def _parts(items: list[tuple[str, str]], number: int) -> Iterator[list[tuple[str, str]]]:
    for index in range(number):
        yield items[index * len(items) // number : (index + 1) * len(items) // number]


def freeze_pack(pack: Pack, work: Path) -> None:
    """Write the runs of the pack to `work/packs/`, where its job reads them."""
    files.write_signed(layout.pack_file(work, pack.id), {"runs": pack.runs, "study": pack.study})


def load_pack(id: str, work: Path) -> Pack:
    """Return a frozen pack. Raises StateError if its file is damaged."""
    content = files.read_json(layout.pack_file(work, id), "runs", "study")
    study = content["study"]
    return Pack(tuple((str(run), str(data)) for run, data in content["runs"]), study and (study[0], study[1]))


def study_pack(experiment: Experiment) -> Pack | None:
    """Return the pack of the trials of the study; None without one, or if trials start from other runs."""
    if experiment.tune is None or any(sources_of(run) for run in studied(experiment)):
        return None
    return Pack((), (study_id(experiment), data_id(tuned_base(experiment))))


def words(experiment: Experiment, runs: Iterable[Run], reason: str | None) -> str:
    """Return what `everstep plan` says about packs; ``reason`` is that of `obstacle`."""
    setting = f"runtime.pack: {experiment.runtime.pack}"
    if reason is not None:
        return f"{setting}: runs are trained one by one, since {reason}"
    found = packs(experiment, runs, has_study=True).values()
    packed = sum(len(pack.runs) for pack in found)
    of_runs, study = [pack for pack in found if pack.runs], any(pack.study for pack in found)
    said = f"{count(packed, 'run')} without a result are trained by {count(len(of_runs), 'job')}"
    if study:
        said += ", the trials of the study by " + ("another" if len(found) > len(of_runs) else "the same")
    if (elsewhere := obstacle(experiment, is_cluster=True)) is None:
        return f"{setting}: {said}"
    return f"{setting}: on this machine, {said}; on a cluster one by one, since {elsewhere}"

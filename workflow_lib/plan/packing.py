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
from workflow_lib.plan.sources import sources_of
from workflow_lib.store import layout
from workflow_lib.text import count

MOST_OF_AUTO = 64  # runs of a pack with `runtime.pack: auto`: the first results are seen when the first pack has ended


@dataclass(frozen=True)
class Pack:
    """The runs of a pack: the id of each run and of its data."""

    runs: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """A digest of the runs."""
        return config.digest(self.runs, "pack")[:12]


def is_wanted(experiment: Experiment) -> bool:
    """Return True if the experiment asks for packs."""
    return experiment.runtime.pack != 1


def obstacle(experiment: Experiment, *, gpus: int, is_cluster: bool) -> str | None:
    """Return why runs are trained one by one although `runtime.pack` asks for packs; None if they can be packed.

    ``gpus`` is the number of GPUs that trainings may use here.
    """
    runtime = experiment.runtime
    if is_cluster:
        return "its jobs run on a cluster"
    if gpus or runtime.device.startswith("cuda"):
        return "they are trained on GPUs (runtime.device: cpu trains on the CPU)"
    for name in ("nodes", "nproc", "threads"):
        if getattr(runtime, name) > 1:
            return f"runtime.{name} is {getattr(runtime, name)}: a run of a pack has one process and one thread"
    return None


def packs(experiment: Experiment, runs: Iterable[Run]) -> dict[str, Pack]:
    """Return the packs of these runs by id, as equal in size as possible; runs that start from others are left out."""
    most = experiment.runtime.pack
    most = MOST_OF_AUTO if most == "auto" else most
    packed = [(run.id, run.data_id) for run in runs if not sources_of(run.config)]
    number = -(-len(packed) // most)
    found = [Pack(tuple(part)) for part in _parts(packed, number)]
    return {pack.id: pack for pack in found if len(pack.runs) > 1}


def _parts(items: list[tuple[str, str]], number: int) -> Iterator[list[tuple[str, str]]]:
    for index in range(number):
        yield items[index * len(items) // number : (index + 1) * len(items) // number]


def freeze_pack(pack: Pack, work: Path) -> None:
    """Write the runs of the pack to `work/packs/`, where its job reads them."""
    files.write_signed(layout.pack_file(work, pack.id), {"runs": pack.runs})


def load_pack(id: str, work: Path) -> Pack:
    """Return a frozen pack. Raises StateError if its file is damaged."""
    runs = files.read_json(layout.pack_file(work, id), "runs")["runs"]
    return Pack(tuple((str(run), str(data)) for run, data in runs))


def words(experiment: Experiment, runs: Iterable[Run], reason: str | None) -> str:
    """Return what `everstep plan` says about packs; ``reason`` is that of `obstacle`."""
    setting = f"runtime.pack: {experiment.runtime.pack}"
    if reason is not None:
        return f"{setting}: runs are trained one by one, since {reason}"
    found = packs(experiment, runs).values()
    packed = sum(len(pack.runs) for pack in found)
    jobs = count(len(found), "job")
    return f"{setting}: on this machine, {count(packed, 'run')} without a result are trained by {jobs}"

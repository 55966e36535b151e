"""The context of one attempt: what to train, on which data, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plan
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import ConfigError
from workflow_lib.plan import user_code
from workflow_lib.results import layout as results_layout
from workflow_lib.results import source_weights
from workflow_lib.slurm import nodes
from workflow_lib.slurm.job import seconds_left
from workflow_lib.store.attempts import new_attempt
from workflow_lib.store.layout import workspace_path

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.data import Manifest
    from workflow_lib.training.trainer import StopEarly


@dataclass(frozen=True)
class AttemptContext:
    """Settings, data, workspace and shared memory of one attempt. The ranks inherit it through fork."""

    experiment: Experiment
    run: plan.RunConfig
    digest: str
    manifest: Manifest
    code: str  # digest of the user's code and files
    weights: dict[str, Path]  # to start from, and of other runs that the training step reads, by setting
    source_digests: dict[str, str]  # of these weights, if another run trained them
    work: Path
    workspace: Path
    attempt: str
    shared_state: SharedState
    stop_early: StopEarly | None
    node: int  # index of this launcher's node, below `runtime.nodes`
    caller: str  # "a training", or which trial

    @property
    def is_owner(self) -> bool:
        """True on the first node, whose launcher owns the workspace."""
        return self.node == 0

    @property
    def world_size(self) -> int:
        """Number of ranks on all nodes."""
        return self.experiment.runtime.nodes * self.experiment.runtime.nproc

    @property
    def local_ranks(self) -> range:
        """Ranks of this node."""
        nproc = self.experiment.runtime.nproc
        return range(self.node * nproc, (self.node + 1) * nproc)


def create_context(
    experiment: Experiment,
    run: str,
    data: Path,
    work: Path,
    deadline_minutes: float | None,
    stop_early: StopEarly | None,
) -> AttemptContext:
    """Return the context of a new attempt; freeze the run if no plan has done so."""
    from workflow_lib.data import Manifest

    config, digest = _load_or_freeze(experiment, run, work)
    manifest = Manifest.load(data)
    weights, source_digests = _weights(config, experiment.name, work)
    code = user_code.digest(config, source_digests)
    return AttemptContext(
        experiment=experiment,
        run=config,
        digest=digest,
        manifest=manifest,
        code=code,
        weights=weights,
        source_digests=source_digests,
        work=work,
        workspace=workspace_path(work, digest, manifest.digest, code),
        attempt=new_attempt(),
        shared_state=SharedState(experiment.runtime.nproc, time_left(deadline_minutes)),
        stop_early=stop_early,
        node=nodes.number() if experiment.runtime.nodes > 1 else 0,
        caller="a training" if stop_early is None else f"trial {run}",
    )


def _weights(run: plan.RunConfig, experiment: str, work: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the weights that the run uses, by setting, and the verified digests of those that other runs trained."""
    from workflow_lib.results import write_run

    weights = source_weights.required(run, results_layout.RESULTS, experiment)
    digests = {setting: write_run.trained(path, work)["model"] for setting, path in weights.items()}
    file = run.model.init.file
    return ({plan.INIT: file} if file is not None else {}) | weights, digests


def _load_or_freeze(experiment: Experiment, run: str, work: Path) -> tuple[plan.RunConfig, str]:
    """Return the frozen settings of the run and their digest."""
    try:
        return plan.load_run(run, work)
    except ConfigError:
        planned = next((planned for planned in plan.expand(experiment) if planned.id == run), None)
        if planned is None:
            raise
        plan.freeze(planned.config, work)
        return planned.config, planned.digest


def time_left(deadline_minutes: float | None) -> float | None:
    """Return the seconds to the nearest deadline (rule or SLURM); None if there is none."""
    rule_s = None if deadline_minutes is None else deadline_minutes * 60
    return min((left_s for left_s in (rule_s, seconds_left()) if left_s is not None), default=None)

"""Gradients, weights and images are recorded once a step after any kill, and change no bit of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import PASS, Project, merged
from workflow_lib.results import summaries
from workflow_lib.store import layout

RECORDED: dict[str, Any] = {"tracking": {"every_steps": 3, "images": 2}}
DRAWING = {"augment": {"mixup": 0.3, "rotation": 9}}  # with the dropout of the model of SETTINGS
KINDS = {
    "one rank": DRAWING,
    "fsdp": merged(with_ranks(2), {"training": {"parallel": "fsdp"}}),
}


def recorded(project: Project) -> dict[int, bytes]:
    return {step: path.read_bytes() for step, path in layout.summary_files(project.workspace)}


@pytest.mark.parametrize("kind", KINDS)
def test_summaries_of_a_killed_training_are_those_of_one_that_ran_through(
    fresh: Fresh, reference: Fresh, kind: str
) -> None:
    changes = merged(KINDS[kind], RECORDED)
    run = fresh(changes)
    for count, signal in ((9, "SIGKILL"), (5, "SIGTERM"), (6, "SIGKILL")):
        run.attempt({"point": "optimizer", "count": count, "signal": signal})
    assert run.verdict(reference(changes)) == PASS
    assert run.verdict(reference(KINDS[kind])) == PASS, "a training that records nothing has other bits"
    found = recorded(run)
    assert found == recorded(reference(changes))
    assert list(found) == [*range(3, run.sealed().step + 1, 3)]
    assert not recorded(reference(KINDS[kind]))


def test_summaries_after_the_checkpoint_that_is_resumed_are_removed(fresh: Fresh) -> None:
    run = fresh(RECORDED)
    run.attempt({"point": "optimizer", "count": 9, "signal": "SIGKILL"})
    later: Path = layout.summary_file(run.workspace, 30)
    later.write_bytes(b"of a checkpoint that is damaged now")
    run.attempt({"point": "optimizer", "count": 3, "signal": "SIGKILL"})
    assert not later.exists()


def test_summaries_of_several_ranks_are_of_the_whole_model(reference: Fresh) -> None:
    """Gradients are averaged before they are recorded; sums over shards are rounded in another order."""
    of_kind = {}
    for kind in ("ddp", "fsdp"):
        run = reference(merged(merged(with_ranks(2), {"training": {"parallel": kind}}), RECORDED))
        of_kind[kind] = summaries.read(layout.summary_file(run.workspace, 3))
    ddp, fsdp = of_kind["ddp"], of_kind["fsdp"]
    assert list(ddp.histograms) == list(fsdp.histograms)
    assert any(name.startswith("gradients/") for name in ddp.histograms)
    for name, histogram in ddp.histograms.items():
        assert fsdp.histograms[name].values == histogram.values == sum(histogram.counts)
        assert fsdp.histograms[name].norm == pytest.approx(histogram.norm, rel=1e-4, abs=1e-9)
    assert ddp.images.keys() == fsdp.images.keys() == {"inputs", "predictions"}
    assert ddp.images["inputs"] == fsdp.images["inputs"]

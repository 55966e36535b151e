"""A run counted in steps has the bits of one counted in epochs; a validation within an epoch can be interrupted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, PASS, STOPPED, Project, merged
from workflow_lib import checkpoint

STEPS_PER_EPOCH = 17
BATCH = {"training": {"batch_size": 66}}
EPOCHS = merged(BATCH, {"training": {"epochs": 3}})
STEPS = merged(
    BATCH, {"training": {"epochs": None, "max_steps": 3 * STEPS_PER_EPOCH, "validate_every_steps": STEPS_PER_EPOCH}}
)
WITHIN: dict[str, Any] = {
    "training": {"batch_size": 66, "epochs": None, "max_steps": 40, "validate_every_steps": 6},
    "schedule": {"name": "cosine", "warmup_epochs": 0, "warmup_steps": 5},
}


def tensors(project: Project) -> dict[str, bytes]:
    final = project.sealed()
    return {path.name: path.read_bytes() for path in sorted(final.path.glob("*.safetensors"))}


def outputs(project: Project) -> list[str]:
    return [project.output.with_name("history.csv").read_text(), json.loads(project.output.read_text())["best"]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_counted_in_steps_has_the_bits_of_one_counted_in_epochs(reference: Fresh, ranks: int) -> None:
    by_epochs, by_steps = (reference(merged(with_ranks(ranks), changes)) for changes in (EPOCHS, STEPS))
    assert tensors(by_epochs) == tensors(by_steps)
    assert outputs(by_epochs) == outputs(by_steps)


def test_a_curve_has_a_row_for_each_validation_and_the_last_step(reference: Fresh) -> None:
    rows = [line.split(",") for line in outputs(reference(WITHIN))[0].splitlines()]
    assert rows[0][:2] == ["epoch", "step"]
    assert [int(row[1]) for row in rows[1:]] == [6, 12, 18, 24, 30, 36, 40]
    assert [float(row[0]) for row in rows[1:]] == [round(int(row[1]) / STEPS_PER_EPOCH, 6) for row in rows[1:]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_validation_within_an_epoch_can_be_interrupted(
    fresh: Fresh, reference: Fresh, signal: str, ranks: int
) -> None:
    changes = merged(with_ranks(ranks), WITHIN)
    run = fresh(changes)
    for point, number in (("validate", 2), ("metrics", 1), ("optimizer", 8), ("validate", 1), ("epoch", 2)):
        code = run.attempt({"point": point, "count": number, "signal": signal})
        assert code == (STOPPED if signal == "SIGTERM" else FAILED), point
    newest = checkpoint.read_newest(run.checkpoints)
    assert newest is not None
    assert run.verdict(reference(changes)) == PASS

"""A run counted in steps has the bits of one counted in epochs; a validation within an epoch can be interrupted."""

from __future__ import annotations

import json

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import COUNTED, with_ranks
from tests.support.project import FAILED, PASS, STOPPED, Project, merged
from workflow_lib import checkpoint

STEPS_PER_EPOCH = 17
BATCH = {"training": {"batch_size": 66}}
EPOCHS = merged(BATCH, {"training": {"epochs": 3}})
STEPS = merged(
    BATCH, {"training": {"epochs": None, "max_steps": 3 * STEPS_PER_EPOCH, "validate_every_steps": STEPS_PER_EPOCH}}
)


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
    rows = [line.split(",") for line in outputs(reference(COUNTED))[0].splitlines()]
    assert rows[0][:2] == ["epoch", "step"]
    assert [int(row[1]) for row in rows[1:]] == [6, 12, 18, 24, 30, 36, 40]
    assert [float(row[0]) for row in rows[1:]] == [round(int(row[1]) / STEPS_PER_EPOCH, 6) for row in rows[1:]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_validation_within_an_epoch_can_be_interrupted(
    fresh: Fresh, reference: Fresh, signal: str, ranks: int
) -> None:
    changes = merged(with_ranks(ranks), COUNTED)
    run = fresh(changes)
    for point, number in (("validate", 2), ("metrics", 1), ("optimizer", 8), ("validate", 1), ("epoch", 2)):
        code = run.attempt({"point": point, "count": number, "signal": signal})
        assert code == (STOPPED if signal == "SIGTERM" else FAILED), point
    newest = checkpoint.read_newest(run.checkpoints)
    assert newest is not None
    assert run.verdict(reference(changes)) == PASS


def test_early_stopping_within_an_epoch_can_be_interrupted(fresh: Fresh, reference: Fresh) -> None:
    """No loss improves by so much: the first validation is the best, and the third after it is the last."""
    impatient = {"metric": "val_loss", "patience": 2, "min_delta": 10.0}
    changes = merged(COUNTED, {"training": {"early_stopping": impatient}})
    run = fresh(changes)
    for point, count, signal in (("metrics", 2, "SIGKILL"), ("epoch", 1, "SIGTERM"), ("validated", 1, "SIGKILL")):
        run.attempt({"point": point, "count": count, "signal": signal})
    assert run.verdict(reference(changes)) == PASS
    assert run.sealed().step == 24


def test_a_pruned_run_that_is_counted_in_steps_can_be_interrupted(fresh: Fresh) -> None:
    plant, last = "tests.plugins.plants:pruned_by_the_third_validation", []
    for faults in ([], [("epoch", 1, "SIGKILL"), ("optimizer", 9, "SIGTERM"), ("metrics", 1, "SIGKILL")]):
        run = fresh(COUNTED)
        for point, count, signal in faults:
            assert run.attempt({"point": point, "count": count, "signal": signal}, plant=plant) in (FAILED, STOPPED)
        run.attempt(plant=plant)
        newest = checkpoint.read_manifest(checkpoint.published(run.checkpoints)[-1])
        contents = {path.name: path.read_bytes() for path in sorted(newest.path.glob("*.safetensors"))}
        last.append((newest.step, contents, checkpoint.read_state(newest)))
    assert last[0] == last[1]
    assert last[0][0] == 18


def test_the_log_has_a_row_every_few_steps_and_the_losses_of_the_curve(reference: Fresh) -> None:
    run = reference(COUNTED)
    text = run.output.with_name("steps.csv").read_text()
    header, *rows = [line.split(",") for line in text.splitlines()]
    assert header == ["step", "lr", "train_loss"]
    assert [int(row[0]) for row in rows] == [*range(3, 40, 3), 40]
    curve = [line.split(",") for line in outputs(run)[0].splitlines()[1:]]
    for number, row in enumerate(curve[:6]):  # validated every 6 steps, logged every 3
        first, second = rows[2 * number : 2 * number + 2]
        assert float(row[3]) == pytest.approx((float(first[2]) + float(second[2])) / 2)
        assert row[2] == second[1]
    lines = [json.loads(line) for line in (run.workspace / "steps.jsonl").read_text().splitlines()]
    assert [[repr(line[name]) for name in header] for line in lines] == rows


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_log_is_complete_after_a_kill_before_it_is_read(fresh: Fresh, reference: Fresh, kind: str) -> None:
    """The first rows are read by a save or after 64 steps; those of a killed attempt are repeated."""
    often = {"training": {"log_every_steps": 1, "parallel": kind}, "checkpoint": {"interval_steps": 7}}
    changes = merged(COUNTED, often)
    if kind == "fsdp":
        changes = merged(with_ranks(2), changes)
    run = fresh(changes)
    for count, signal in ((12, "SIGKILL"), (9, "SIGKILL"), (5, "SIGTERM"), (9, "SIGKILL")):
        run.attempt({"point": "optimizer", "count": count, "signal": signal})
    assert run.verdict(reference(changes)) == PASS
    rows = run.output.with_name("steps.csv").read_text().splitlines()[1:]
    assert [int(row.partition(",")[0]) for row in rows] == [*range(1, 41)]


def test_a_log_changes_no_weight(reference: Fresh) -> None:
    silent = merged(COUNTED, {"training": {"log_every_steps": None}})
    logged, plain = tensors(reference(COUNTED)), tensors(reference(silent))
    assert {name: logged[name] for name in ("model.safetensors", "optimizer.safetensors", "best.safetensors")} == {
        name: plain[name] for name in ("model.safetensors", "optimizer.safetensors", "best.safetensors")
    }
    assert not reference(silent).output.with_name("steps.csv").exists()

"""A training step of one's own is exact: two models, two optimizers, a gradient penalty, an average, and counters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import GAN, IN_TRAINING, OWN_RANKS, gan
from tests.support.project import FAILED, FINISHED, KILLED, PASS, STOPPED, TERMINATED, differences, merged
from workflow_lib import ConfigError, checkpoint


def signal_at(place: int) -> str:
    return ("SIGKILL", "SIGTERM")[place % 2]


def test_a_gan_interrupted_once_at_every_point_of_the_loop_is_exact(fresh: Fresh, reference: Fresh) -> None:
    """By both signals in turn; `scripts/chaos own` has each point with each of them."""
    changes = merged(GAN, {"training": {"epochs": 9}})
    run = fresh(changes)
    for number, (place, count, rank) in enumerate(IN_TRAINING):
        code = run.attempt({"point": place, "count": count, "signal": signal_at(number), "rank": rank})
        if signal_at(number) == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_gan_of_several_ranks_is_exact(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    """Also at the points within a step, between the steps of its optimizers."""
    run = fresh(gan(ranks))
    for number, (point, count) in enumerate(OWN_RANKS):
        sent = signal_at(number + ranks)  # of three ranks the other signal
        code = run.attempt({"point": point, "count": count, "signal": sent, "rank": number % ranks})
        assert code == (STOPPED if sent == "SIGTERM" else FAILED), point
    assert run.verdict(reference(gan(ranks))) == PASS


def test_a_stop_between_two_optimizers_waits_for_the_end_of_the_step(fresh: Fresh) -> None:
    """The critic has made two steps then, and the generator one: the second `stepped` is the generator's first."""
    run = fresh(GAN)
    assert run.attempt({"point": "stepped", "count": 1, "signal": "SIGTERM"}) == STOPPED
    assert run.newest_step() == 1
    saved = checkpoint.read_manifest(checkpoint.published(run.checkpoints)[-1])
    state = checkpoint.read_state(saved)
    assert state["step"] == {"generator_steps": 1}


def test_all_that_the_step_registers_is_in_a_checkpoint(reference: Fresh) -> None:
    from safetensors.torch import load_file

    run = reference(GAN)
    files = {path.stem: load_file(path) for path in run.sealed().path.glob("*.safetensors")}
    names = {name.partition(".")[0] for name in files["model"]}
    assert names == {"model", "critic", "fixed_noise"}
    assert all(name.startswith("model.") for name in files["ema"])
    assert "0.logged" in files["ranks"]
    assert len({name.partition(".")[0] for name in files["optimizer"]}) == 6 + 4  # weights of generator and critic
    assert set(files["best"]) == {name.removeprefix("model.") for name in files["model"] if name.startswith("model.")}
    header = run.output.with_name("history.csv").read_text().partition("\n")[0]
    assert header == "epoch,step,lr,train_loss,val_loss,train_critic,train_generator,train_penalty,val_distance"
    state = checkpoint.read_state(run.sealed())
    assert state["step"] == {"generator_steps": 26}


DISTILLED: dict[str, Any] = {
    "model": {"name": "mlp", "params": {"hidden": [16]}},
    "training": {"step": "tests.plugins.distilling:Step", "ema_decay": None},
}


def test_a_student_of_a_frozen_teacher_is_exact(fresh: Fresh, reference: Fresh) -> None:
    teacher = reference({"model": {"name": "mlp", "params": {"hidden": [32]}}, "training": {"ema_decay": None}})
    weights = teacher.output.with_name("model.safetensors")
    changes = merged(DISTILLED, {"training": {"step_params": {"teacher": str(weights), "hidden": [32]}}})
    run = fresh(changes)
    assert run.attempt({"point": "stepped", "count": 21, "signal": "SIGTERM"}) == STOPPED
    assert run.attempt({"point": "commit", "count": 14, "signal": "SIGKILL"}) == FAILED
    assert run.verdict(reference(changes)) == PASS
    from safetensors.torch import load_file

    final = load_file(run.sealed().path / "model.safetensors")
    for name, weight in load_file(weights).items():
        assert final[f"teacher.{name}"].equal(weight)  # not trained
    alone = reference(merged(changes, {"training": {"step_params": {"weight": 0.0}}}))
    assert any(name.startswith("model.model.") for name in differences(alone, run))
    assert json.loads(run.output.read_text())["best"]["metric"] == "val_loss"


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_of_ranks_are_averaged_by_their_samples(reference: Fresh, ranks: int) -> None:
    """131 samples divide unequally; the training of one process differs by rounding only."""
    plain = {"ema_decay": None, "step": "tests.plugins.plain_step:Step", "epochs": 2, "batch_size": 131}
    plain["memory_format"] = "channels_last"  # gradients have the strides of their weights
    changes = {
        "model": {"name": "cnn", "params": {"channels": [4, 4], "batch_norm": False, "dropout": 0.0}},
        "training": plain,
    }
    runs = [reference(changes), reference(merged(changes, {"runtime": {"nproc": ranks}}))]
    alone, together = (run.output.with_name("history.csv").read_text().splitlines()[-1].split(",") for run in runs)
    assert [float(value) for value in together] == pytest.approx([float(value) for value in alone], rel=1e-4)


def test_values_that_differ_between_ranks_are_rejected_by_the_first_save(fresh: Fresh) -> None:
    uneven = {"ema_decay": None, "step": "tests.plugins.plain_step:Uneven"}
    run = fresh(merged(gan(2), {"model": {"name": "mlp", "params": {"hidden": [16]}}, "training": uneven}))
    assert run.attempt() == ConfigError.exit_code
    assert 'Uneven.values differs between ranks at step 2: {"rank":0} on rank 0, {"rank":1} on rank 1' in run.log


def test_the_plainest_step_has_the_bits_of_a_training_without_one(reference: Fresh) -> None:
    changes = {"model": {"name": "cnn", "params": {"channels": [4]}}}
    plain, own = reference(changes), reference({**changes, "training": {"step": "tests.plugins.plain_step:Step"}})
    weights = [run.output.with_name("model.safetensors").read_bytes() for run in (plain, own)]
    assert weights[0] == weights[1]
    histories = [run.output.with_name("history.csv").read_text().splitlines() for run in (plain, own)]
    assert [line.rpartition(",")[0] for line in histories[1]] == histories[0]


def test_recomputed_activations_of_the_generator_change_no_bit(reference: Fresh) -> None:
    """Its forward pass has batch norm, and its backward pass is one of two in a step."""
    plain, saving = reference(GAN), reference(merged(GAN, {"training": {"activation_checkpointing": True}}))
    weights = [run.output.with_name("model.safetensors").read_bytes() for run in (plain, saving)]
    assert weights[0] == weights[1]


def test_a_step_in_bf16_with_clipped_gradients_and_a_schedule_is_exact(fresh: Fresh, reference: Fresh) -> None:
    changes = merged(GAN, {"training": {"precision": "bf16", "clip_norm": 0.5}, "schedule": {"name": "plateau"}})
    run = fresh(changes)
    assert run.attempt({"point": "commit", "count": 20, "signal": "SIGKILL"}) == FAILED
    assert run.attempt({"point": "validate", "count": 1, "signal": "SIGTERM"}) in (STOPPED, FINISHED)
    assert run.verdict(reference(changes)) == PASS

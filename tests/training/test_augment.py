"""The augmentation of a sample depends on seed, epoch and sample only, and has the configured distribution."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from tests.support.prepared import Prepare, given, prepared, trained
from workflow_lib import config, plan
from workflow_lib.config.run import Augment
from workflow_lib.data import ModelSpec
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import ConfigError
from workflow_lib.training import augment as augmentation
from workflow_lib.training import passes
from workflow_lib.training.augment import (
    augment,
    check_augmentation,
    epoch_key,
    is_augmenting,
    is_mixing,
    mix,
    mixing,
    mixing_partners,
)

__all__ = ["prepared"]

EVERYTHING: dict[str, Any] = {
    "flip_horizontal": 0.5,
    "flip_vertical": 0.5,
    "shift": 0.25,
    "rotation": 30,
    "crop": 2,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.5,
    "noise": 0.1,
}
EACH = [{name: value} for name, value in EVERYTHING.items()]
SHAPES = [(1, 8, 8), (3, 7, 10)]


def images(samples: int, shape: tuple[int, ...] = (3, 7, 10), seed: int = 0) -> Tensor:
    return torch.randn((samples, *shape), generator=torch.Generator().manual_seed(seed))


def bits(rows: int, name: str, *, seed: int = 0, epoch: int = 0) -> Tensor:
    return augmentation._Drawn(torch.arange(rows), epoch_key(seed, epoch))[name]


# Independence of the batch


@hypothesis.given(
    order=st.permutations(range(13)),
    cuts=st.lists(st.integers(1, 12), max_size=4, unique=True),
    shape=st.sampled_from(SHAPES),
    epoch=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=25)
def test_a_sample_has_the_same_bits_in_any_batch(
    order: list[int], cuts: list[int], shape: tuple[int, ...], epoch: int
) -> None:
    section, inputs, rows = Augment(**EVERYTHING), images(13, shape), torch.arange(100, 113)
    whole = augment(section, inputs, rows, key=epoch_key(3, epoch))
    edges = [0, *sorted(cuts), 13]
    batches = [torch.tensor(order[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    parts = [augment(section, inputs[batch], rows[batch], key=epoch_key(3, epoch)) for batch in batches]
    assert torch.equal(torch.cat(parts), whole[order])


@hypothesis.given(
    samples=st.integers(1, 50), mixup=st.sampled_from([0.0, 0.2, 1.0]), cutmix=st.sampled_from([0.3, 1.0])
)
@settings(deadline=None, max_examples=25)
def test_a_pair_is_the_same_in_any_batch(samples: int, mixup: float, cutmix: float) -> None:
    section, rows, inputs = Augment(mixup=mixup, cutmix=cutmix), torch.arange(9), images(9)
    key = epoch_key(1, 2)
    found = [mixing_partners(section, ids, samples=samples, key=key) for ids in (rows, *rows.split(2))]
    assert torch.equal(torch.cat(found[1:]), found[0])
    whole = mixing(section, rows, size=(7, 10), key=key)
    parts = [mixing(section, ids, size=(7, 10), key=key) for ids in rows.split(2)]
    for name in ("weights", "boxes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    others = images(9, seed=1)
    alone = [mix(*three) for three in zip(inputs.split(2), others.split(2), parts, strict=True)]
    assert torch.equal(torch.cat(alone), mix(inputs, others, whole))


@pytest.mark.parametrize("setting", EACH, ids=lambda setting: next(iter(setting)))
def test_augmentation_differs_between_epochs_seeds_and_samples(setting: dict[str, Any]) -> None:
    section = Augment(**setting)
    same = images(1).expand(16, -1, -1, -1).contiguous()
    first = augment(section, same, torch.arange(16), key=epoch_key(0, 0))
    assert not torch.equal(first, augment(section, same, torch.arange(16), key=epoch_key(0, 1)))
    assert not torch.equal(first, augment(section, same, torch.arange(16), key=epoch_key(1, 0)))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 1


def test_augmentation_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    augmentation._normal_quantiles.cache_clear()
    augment(Augment(**EVERYTHING), images(4), torch.arange(4), key=epoch_key(0, 0))
    mixing(Augment(mixup=0.7, cutmix=0.7), torch.arange(4), key=epoch_key(0, 0), size=(7, 10))
    assert torch.equal(torch.rand(4), expected)


def test_without_augmentation_the_images_are_returned_as_they_are() -> None:
    inputs = images(4)
    assert augment(Augment(), inputs, torch.arange(4), key=epoch_key(0, 0)) is inputs
    assert not is_augmenting(Augment())
    assert not is_mixing(Augment())
    assert all(is_augmenting(Augment(**setting)) for setting in EACH)


@pytest.mark.parametrize("setting", EACH, ids=lambda setting: next(iter(setting)))
def test_a_weaker_augmentation_is_closer_to_the_image(setting: dict[str, Any]) -> None:
    inputs = images(64, (3, 16, 16)).cumsum(2).cumsum(3)  # smooth, so that a small move is a small change
    (name, value), rows = next(iter(setting.items())), torch.arange(64)
    weaker = Augment(**{name: value // 2 if isinstance(value, int) else value / 8})
    far, near = (
        (augment(section, inputs, rows, key=epoch_key(0, 0)) - inputs).abs().mean()
        for section in (Augment(**setting), weaker)
    )
    assert near < far


@hypothesis.given(order=st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_each_occurrence_of_a_sample_in_an_epoch_has_an_id_of_its_own(order: list[int]) -> None:
    expected = [sample + 7 * order[:place].count(sample) for place, sample in enumerate(order)]
    assert augmentation.occurrence_ids(torch.tensor(order), 7).tolist() == expected


def test_an_image_that_is_drawn_again_in_an_epoch_has_other_noise(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, targets = np.arange(240, dtype=np.float32).reshape(60, 1, 2, 2), np.arange(60) % 10 == 0
    manifest = prepared(given(inputs, targets.astype(np.int64), classes=("often", "seldom")))
    seen: list[Tensor] = []

    def record(event: str, point: str, *arguments: Tensor) -> None:
        if point == "forward":
            seen.append(arguments[0].clone())

    monkeypatch.setattr(passes, "sys", SimpleNamespace(audit=record))
    settings = {"epochs": 1, "batch_size": 8, "sampling": "balanced"}
    images = []
    for noise in (0.0, 1e-4):
        seen.clear()
        trained(manifest, tmp_path, SharedState(1), workspace=f"{noise}", training=settings, augment={"noise": noise})
        images.append(torch.cat(seen).flatten(1))
    plain, noisy = images
    assert len(plain.unique(dim=0)) < len(plain)
    assert len(noisy.unique(dim=0)) == len(noisy)


# Images


def test_flips_only_mirror() -> None:
    inputs, rows = images(5), torch.arange(5)
    turned = augment(Augment(flip_horizontal=1), inputs, rows, key=epoch_key(0, 0))
    assert torch.equal(turned, inputs.flip(3))
    assert torch.equal(augment(Augment(flip_vertical=1), inputs, rows, key=epoch_key(0, 0)), inputs.flip(2))


def test_a_flip_has_the_configured_frequency() -> None:
    inputs = torch.arange(2.0).expand(20_000, 1, 1, 2)
    share = augment(Augment(flip_horizontal=0.3), inputs, torch.arange(20_000), key=epoch_key(0, 0))[:, 0, 0, 0].mean()
    assert abs(share - 0.3) < 0.01


@pytest.mark.parametrize(("setting", "down", "across"), [({"shift": 0.25}, 2, 3), ({"crop": 2}, 2, 2)])
def test_shifts_are_whole_pixels_within_their_bounds_and_repeat_the_edge(
    setting: dict[str, Any], down: int, across: int
) -> None:
    height, width = 8, 12
    y, x = torch.arange(8.0)[:, None].expand(8, 12), torch.arange(12.0).expand(8, 12)
    inputs = torch.stack((y, x)).expand(2000, 2, 8, 12)
    moved = augment(Augment(**setting), inputs, torch.arange(2000), key=epoch_key(0, 0))
    by_y, by_x = moved[:, 0, 4, 6] - 4, moved[:, 1, 4, 6] - 6
    assert set(by_y.tolist()) == set(range(-down, down + 1))
    assert set(by_x.tolist()) == set(range(-across, across + 1))
    expected_y = (torch.arange(height) + by_y[:, None]).clamp(0, height - 1)
    expected_x = (torch.arange(width) + by_x[:, None]).clamp(0, width - 1)
    assert torch.equal(moved[:, 0], expected_y[:, :, None].expand(-1, -1, width))
    assert torch.equal(moved[:, 1], expected_x[:, None, :].expand(-1, height, -1))


def test_a_rotation_equals_that_of_an_affine_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = images(1, (3, 9, 9))
    angle = torch.tensor(0.4)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(1, 2, 2)
    grid = torch.nn.functional.affine_grid(torch.cat((turn, torch.zeros(1, 2, 1)), 2), [1, 3, 9, 9], align_corners=True)
    expected = torch.nn.functional.grid_sample(inputs, grid, padding_mode="border", align_corners=True)
    table = torch.stack((angle.cos(), angle.sin()))[:, None].expand(2, augmentation.ANGLES)
    monkeypatch.setattr(augmentation, "_angles", lambda degrees, device: table)
    torch.testing.assert_close(augment(Augment(rotation=10), inputs, torch.arange(1), key=epoch_key(0, 0)), expected)


def test_a_constant_image_is_not_changed_by_any_move() -> None:
    inputs = torch.full((64, 3, 8, 8), 0.75)
    section = Augment(**{k: v for k, v in EVERYTHING.items() if k in augmentation.GEOMETRY})
    torch.testing.assert_close(augment(section, inputs, torch.arange(64), key=epoch_key(0, 0)), inputs)


def test_colours_change_within_their_bounds() -> None:
    inputs, rows = torch.ones(4000, 3, 2, 2), torch.arange(4000)
    lighter = augment(Augment(brightness=0.4), inputs, rows, key=epoch_key(0, 0))[:, 0, 0, 0] - 1
    assert stats.kstest(lighter.numpy(), stats.uniform(-0.4, 0.8).cdf).pvalue > 0.01
    stronger = augment(Augment(contrast=0.4), inputs, rows, key=epoch_key(0, 0))[:, 0, 0, 0]
    assert stats.kstest(stronger.numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > 0.01
    grey = augment(Augment(saturation=1), inputs, rows, key=epoch_key(0, 0))
    torch.testing.assert_close(grey, inputs)
    coloured = images(9)
    torch.testing.assert_close(
        augment(Augment(saturation=1), coloured, torch.arange(9), key=epoch_key(0, 0)).mean(1), coloured.mean(1)
    )


def test_noise_is_normal_and_independent_for_each_value() -> None:
    noise = augment(Augment(noise=0.5), torch.zeros(400, 3, 5, 5), torch.arange(400), key=epoch_key(0, 0))
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.5).cdf).pvalue > 0.01
    correlations = torch.corrcoef(noise.flatten(1).T) - torch.eye(75)
    assert correlations.abs().max() < 0.25


# Random numbers


def test_each_draw_is_uniform_over_samples_and_epochs() -> None:
    over_samples = augmentation._Drawn(torch.arange(20_000), epoch_key(0, 0))
    over_epochs = [augmentation._Drawn(torch.tensor([7]), epoch_key(0, epoch)) for epoch in range(1000)]
    for name in augmentation.DRAWS:
        for bits_of in (over_samples[name], torch.cat([epoch[name] for epoch in over_epochs])):
            values = augmentation._uniform(bits_of)
            assert values.min() >= 0
            assert values.max() < 1
            assert stats.kstest(values.numpy(), stats.uniform.cdf).pvalue > 0.001


def test_bits_are_fair_and_independent() -> None:
    words = bits(20_000, "noise")
    each = torch.stack([(words >> place) & 1 for place in range(64)]).to(torch.float64)
    assert (each.mean(1) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(each) - torch.eye(64, dtype=torch.float64)).abs().max() < 0.04


def test_draws_of_neighbours_epochs_and_seeds_are_independent() -> None:
    draws = [augmentation._uniform(bits(20_001, name)) for name in augmentation.DRAWS]
    others = [
        augmentation._uniform(bits(20_001, "partner", **other))
        for other in ({"epoch": 1}, {"seed": 1}, {"epoch": 2**20})
    ]
    streams = torch.stack([*(stream[:-1] for stream in (*draws, *others)), draws[0][1:]])
    assert (torch.corrcoef(streams) - torch.eye(len(streams))).abs().max() < 0.03


def test_one_bit_of_the_id_changes_half_of_the_bits() -> None:
    rows = torch.arange(2000)
    for place in (0, 5, 31, 40):
        first, second = (augmentation._Drawn(r, epoch_key(0, 0))["noise"] for r in (rows, rows ^ (1 << place)))
        changed = sum(((first ^ second) >> k) & 1 for k in range(64))
        assert abs(changed.to(torch.float32).mean() - 32) < 0.5


@hypothesis.given(count=st.integers(1, 2**32), word=st.integers(-(2**63), 2**63 - 1))
def test_integers_stay_in_their_range(count: int, word: int) -> None:
    assert 0 <= augmentation._below(torch.tensor([word]), count).item() < count


def test_random_numbers_are_the_same_in_every_version() -> None:
    assert bits(2, "flip_horizontal").tolist() == [5865245106255451061, 7643801266420209409]


# Pairs


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.5])
def test_weights_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    pairs = mixing(Augment(mixup=alpha), torch.arange(20_000), key=epoch_key(0, 0), size=(8, 8))
    assert pairs.weights.min() >= 0
    assert pairs.weights.max() <= 1
    for value in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        assert abs((pairs.weights < value).double().mean() - stats.beta(alpha, alpha).cdf(value)) < 0.012
    assert not pairs.boxes.any()


@hypothesis.given(alpha=st.floats(0.05, 20), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_the_weight_of_cutmix_is_the_area_that_remains(alpha: float, height: int, width: int) -> None:
    pairs = mixing(Augment(cutmix=alpha), torch.arange(64), key=epoch_key(0, 0), size=(height, width))
    own, other = torch.ones(64, 2, height, width), torch.zeros(64, 2, height, width)
    mixed = mix(own, other, pairs)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(mixed.mean((1, 2, 3)), pairs.weights)


def test_boxes_of_cutmix_have_the_area_of_the_distribution_anywhere_in_the_image() -> None:
    pairs = mixing(Augment(cutmix=1.0), torch.arange(20_000), key=epoch_key(0, 0), size=(64, 64))
    assert stats.kstest(pairs.weights.numpy(), stats.uniform.cdf).statistic < 0.02
    middle = (pairs.boxes[:, 0] + pairs.boxes[:, 2]) / 2
    assert abs(middle.mean() - 32) < 0.3


def test_a_blend_is_linear_and_keeps_pixels_that_both_images_share() -> None:
    first, second = images(9), images(9, seed=1)
    pairs = mixing(Augment(mixup=1.0), torch.arange(9), key=epoch_key(0, 0), size=(7, 10))
    weights = pairs.weights.view(-1, 1, 1, 1)
    torch.testing.assert_close(mix(first, second, pairs), weights * first + (1 - weights) * second)
    torch.testing.assert_close(mix(first, first, pairs), first)


def test_mixup_and_cutmix_are_used_for_half_of_the_pairs_each() -> None:
    pairs = mixing(Augment(mixup=1.0, cutmix=1.0), torch.arange(4000), key=epoch_key(0, 0), size=(32, 32))
    assert 0.45 < (pairs.boxes[:, 2] > 0).float().mean() < 0.55


def test_every_sample_is_equally_often_a_partner() -> None:
    others = mixing_partners(Augment(mixup=1.0), torch.arange(20_000), key=epoch_key(0, 0), samples=10)
    assert others is not None
    assert stats.chisquare(torch.bincount(others, minlength=10).numpy()).pvalue > 0.01


# Settings


@pytest.mark.parametrize("setting", [*EACH, {"mixup": 0.2}, {"cutmix": 1.0}], ids=lambda setting: next(iter(setting)))
def test_data_that_is_not_images_is_rejected_in_one_message(setting: dict[str, Any]) -> None:
    check_augmentation(Augment(**setting), ModelSpec((3, 8, 8), 10))
    check_augmentation(Augment(), ModelSpec((13,), 10))
    with pytest.raises(ConfigError, match=rf"^augment: {next(iter(setting))}: needs images .*\(13,\)\. Leave"):
        check_augmentation(Augment(**setting), ModelSpec((13,), 10))


def test_a_crop_as_large_as_the_image_is_rejected() -> None:
    check_augmentation(Augment(crop=6), ModelSpec((3, 9, 7), 10))
    with pytest.raises(ConfigError, match=r"^augment.crop: 7 pixels can crop an image of 9x7 .*allowed: at most 6$"):
        check_augmentation(Augment(crop=7), ModelSpec((3, 9, 7), 10))


def test_augmentation_is_part_of_the_identity_of_a_run() -> None:
    plain, noisy = (
        plan.run_digest(plan.base(config.Experiment(name="t", augment=augment)))
        for augment in (Augment(), Augment(noise=0.1))
    )
    assert plain != noisy

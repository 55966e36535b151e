"""Augmentation as a function of seed, epoch and sample: no generator, worker or batch can change it.

A sample's random numbers are hashes of the seed, the epoch and the sample's index in its split. So the bits of an
augmented sample do not depend on the division of a batch into micro-batches or over ranks, and a resume has nothing to
restore. This must hold on every device, so no arithmetic here rounds in a way that depends on a sample's place in the
batch: only integers, single additions and products, and tables that are computed once; no sums over pixels, no sines.

Images are [B, channels, height, width], normalised. They are moved (flipped, shifted, turned), then coloured, then made
noisy; pixels beyond the edge of an image repeat the edge. Pairs are mixed after that. Partners are known beforehand, so
that the inputs of both are read together:

    key = epoch_key(seed, epoch)
    partners = mixing_partners(section, ids, key=key, samples=len(split))
    inputs, targets = split.batch(rows if partners is None else torch.cat((rows, partners)))
    inputs, targets, mixed = augmented(section, inputs, targets, ids, partners, key=key)
    loss = objective.loss(outputs, targets) if mixed is None else objective.mixed_loss(outputs, targets, *mixed)

``ids`` are the indices of the samples or, if a sample comes more than once in an epoch, its `occurrence_ids`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from workflow_lib.config.run import Augment
from workflow_lib.config.run_checks import crop_problem
from workflow_lib.errors import ConfigError
from workflow_lib.runtime.seed import derive

if TYPE_CHECKING:
    from workflow_lib.data import Batch, ModelSpec

# The random numbers of a sample. Each is a hash of its place in this tuple, so new names are added at the end.
DRAWS = (
    "flip_horizontal",
    "flip_vertical",
    "shift_y",
    "shift_x",
    "crop_y",
    "crop_x",
    "rotation",
    "brightness",
    "contrast",
    "saturation",
    "noise",
    "partner",
    "is_cutmix",
    "weight",
    "box_y",
    "box_x",
)
GEOMETRY = ("flip_horizontal", "flip_vertical", "shift", "crop", "rotation")
COLOUR = ("brightness", "contrast", "saturation")
MIXES = ("mixup", "cutmix")

Key: TypeAlias = "int | Tensor"  # an `epoch_key`; a step that is captured as a graph reads it from an int64 tensor

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # of splitmix64, as int64
ANGLES = 1 << 12  # entries of the table of sines and cosines
QUANTILES = 1 << 16  # entries of the tables of normal and beta deviates: 16 bits choose one


@lru_cache(maxsize=4)
def epoch_key(seed: int, epoch: int) -> int:
    """Return the key of an epoch's random numbers, below 2^63."""
    return derive(seed, "augment", epoch)


def is_augmenting(section: Augment) -> bool:
    """Return True if single samples are changed."""
    return any(getattr(section, name) for name in (*GEOMETRY, *COLOUR, "noise"))


def is_mixing(section: Augment) -> bool:
    """Return True if pairs of samples are mixed."""
    return any(getattr(section, name) for name in MIXES)


def check_augmentation(section: Augment, spec: ModelSpec) -> None:
    """Raise ConfigError if the data is not images, or the images are too small for the crop."""
    if (is_augmenting(section) or is_mixing(section)) and len(spec.input_shape) != 3:
        names = ", ".join(name for name in type(section).model_fields if getattr(section, name))
        raise ConfigError(
            f"augment: {names}: needs images (channels, height, width); the data has inputs {spec.input_shape}. "
            f"Leave `augment` out"
        )
    if section.crop and (problem := crop_problem(section.crop, (spec.input_shape[1], spec.input_shape[2]))):
        raise ConfigError(f"augment.crop: {problem}")


def mixing_partners(section: Augment, ids: Tensor, *, key: Key, samples: int) -> Tensor | None:
    """Return, for each id, the index of the sample that is mixed in, below ``samples``; None if nothing is mixed."""
    if not is_mixing(section):
        return None
    place = DRAWS.index("partner")
    return _below(_hashes(ids, key, range(place, place + 1))[0], samples)


def augmented(
    section: Augment, inputs: Tensor, targets: Tensor, ids: Tensor, partners: Tensor | None, *, key: Key
) -> tuple[Tensor, Tensor, Batch | None]:
    """Return augmented inputs and targets; for mixed pairs also the partners' targets and the samples' own weights.

    With partners, ``inputs`` and ``targets`` hold those of the samples, then those of the partners: [2 B, ...].
    """
    ids = ids.to(inputs.device)
    if partners is None:
        if targets.dim() == 3:  # masks [B, height, width] move with their images
            targets = move_masks(section, targets, ids, key=key)
        return augment(section, inputs, ids, key=key), targets, None
    both = torch.cat((ids, partners.to(inputs.device)))
    own, other = augment(section, inputs, both, key=key).chunk(2)
    pairs = mixing(section, ids, key=key, size=(inputs.shape[2], inputs.shape[3]))
    targets, of_partners = targets.chunk(2)
    return mix(own, other, pairs), targets, (of_partners, pairs.weights)


def augment(section: Augment, inputs: Tensor, ids: Tensor, *, key: Key) -> Tensor:
    """Return the images, each changed by the random numbers of its id (int64 [B]); unchanged if all is off."""
    if not is_augmenting(section):
        return inputs
    drawn = _Drawn(ids, key)
    if any(getattr(section, name) for name in GEOMETRY):
        inputs = _moved(section, inputs, drawn)
    if any(getattr(section, name) for name in COLOUR):
        inputs = _coloured(section, inputs, drawn)
    return inputs + _noise(inputs, drawn) * section.noise if section.noise else inputs


def move_masks(section: Augment, masks: Tensor, ids: Tensor, *, key: Key) -> Tensor:
    """Return the masks [B, height, width] moved as `augment` moves their images; a pixel has the nearest class."""
    if not any(getattr(section, name) for name in GEOMETRY):
        return masks
    y, x = _places(section, (masks.shape[1], masks.shape[2]), _Drawn(ids, key))
    if y.is_floating_point():
        y, x = ((place + 0.5).floor().to(torch.int64) for place in (y, x))
    return _read(masks[:, None], y, x)[:, 0]


def occurrence_ids(order: Tensor, samples: int) -> Tensor:
    """Return a different id for each place in an epoch's order, in which samples may come more than once.

    The id of the first occurrence is the sample's index; each further occurrence adds ``samples``.
    """
    in_order, places = order.sort(stable=True)
    times = torch.arange(len(order), device=order.device) - torch.searchsorted(in_order, in_order)
    return order + samples * times.index_select(0, places.argsort())


@dataclass(frozen=True)
class Mixing:
    """The mixing of each sample with its partner; all tensors are on the device of the ids.

    weights   float32 [B]: the sample's share of its image and of its label; the partner has the rest
    boxes     int64 [B, 4]: top, left, bottom, right of the partner's pixels; an empty box means mixup
    """

    weights: Tensor
    boxes: Tensor


def mixing(section: Augment, ids: Tensor, *, key: Key, size: tuple[int, int]) -> Mixing:
    """Return the mixing of images of ``size`` (height, width); if both mixup and cutmix are set, half of each."""
    drawn = _Drawn(ids, key)
    share = (drawn["weight"] >> 48) & (QUANTILES - 1)
    blended = _beta_quantiles(section.mixup, ids.device)[share] if section.mixup else None
    if not section.cutmix and blended is not None:
        return Mixing(blended, torch.zeros((len(ids), 4), dtype=torch.int64, device=ids.device))
    boxes = _boxes(size, _beta_quantiles(section.cutmix, ids.device)[share], drawn)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # from the area after rounding to pixels, so that labels are mixed in the same proportion as pixels
    weights = (size[0] * size[1] - area).to(torch.float32) / (size[0] * size[1])
    if blended is not None:
        is_cutmix = drawn["is_cutmix"] < 0  # the sign bit
        weights, boxes = torch.where(is_cutmix, weights, blended), boxes * is_cutmix[:, None]
    return Mixing(weights, boxes)


def mix(inputs: Tensor, others: Tensor, pairs: Mixing) -> Tensor:
    """Return the images with their partners blended in, or pasted into the box."""
    y = torch.arange(inputs.shape[2], device=inputs.device)[:, None]
    x = torch.arange(inputs.shape[3], device=inputs.device)
    top, left, bottom, right = pairs.boxes[:, :, None, None].unbind(1)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    weights = pairs.weights.view(-1, 1, 1, 1)
    has_box = (pairs.boxes[:, 2] > pairs.boxes[:, 0]).view(-1, 1, 1, 1)
    share = torch.where(has_box, (~inside)[:, None].to(inputs.dtype), weights)
    return inputs * share + others * (1 - share)


def _boxes(size: tuple[int, int], weights: Tensor, drawn: _Drawn) -> Tensor:
    """Return boxes that cover about 1 - weight of the image, in its proportions, anywhere inside it."""
    side = (1 - weights).sqrt()
    height, width = ((side * length).round().to(torch.int64) for length in size)
    top = _below(drawn["box_y"], size[0] - height + 1)
    left = _below(drawn["box_x"], size[1] - width + 1)
    is_empty = (height == 0) | (width == 0)
    return torch.stack((top, left, top + height, left + width), 1) * ~is_empty[:, None]


# Images


def _moved(section: Augment, inputs: Tensor, drawn: _Drawn) -> Tensor:
    """Return the images flipped, shifted by whole pixels, and turned about the centre, read in a single pass."""
    y, x = _places(section, (inputs.shape[2], inputs.shape[3]), drawn)
    return _interpolated(inputs, y, x) if y.is_floating_point() else _read(inputs, y, x)


def _places(section: Augment, size: tuple[int, int], drawn: _Drawn) -> tuple[Tensor, Tensor]:
    """Return the row and the column that each pixel is read from: int64 or, if images are turned, float32."""
    height, width = size
    y = _axis(height, section.flip_vertical, drawn["flip_vertical"])
    x = _axis(width, section.flip_horizontal, drawn["flip_horizontal"])
    reaches = {"shift": (round(section.shift * height), round(section.shift * width)), "crop": (section.crop,) * 2}
    for name, (down, across) in reaches.items():
        if down or across:
            y = y + (_below(drawn[f"{name}_y"], 2 * down + 1) - down)[:, None]
            x = x + (_below(drawn[f"{name}_x"], 2 * across + 1) - across)[:, None]
    if section.rotation:
        return _turned(size, y[:, :, None], x[:, None, :], section.rotation, drawn["rotation"])
    return y[:, :, None], x[:, None, :]


def _axis(length: int, probability: float, bits: Tensor) -> Tensor:
    """Return the source of each row (or column) of each image, [B, length]: mirrored in some of them."""
    places = torch.arange(length, device=bits.device)
    if not probability:
        return places.expand(len(bits), length)
    return torch.where((_uniform(bits) < probability)[:, None], length - 1 - places, places)


def _turned(size: tuple[int, int], y: Tensor, x: Tensor, degrees: float, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates turned about the centre."""
    cosine, sine = _angles(degrees, bits.device)[:, (bits >> 40) & (ANGLES - 1), None, None]
    middle_y, middle_x = (size[0] - 1) / 2, (size[1] - 1) / 2
    across, down = x.to(torch.float32) - middle_x, y.to(torch.float32) - middle_y
    return across * sine + down * cosine + middle_y, across * cosine - down * sine + middle_x


def _interpolated(inputs: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the images at these coordinates, interpolated from the four nearest pixels."""
    above, before = y.floor(), x.floor()
    part_y, part_x = (y - above)[:, None], (x - before)[:, None]
    above, before = above.to(torch.int64), before.to(torch.int64)
    upper = _read(inputs, above, before) * (1 - part_x) + _read(inputs, above, before + 1) * part_x
    lower = _read(inputs, above + 1, before) * (1 - part_x) + _read(inputs, above + 1, before + 1) * part_x
    return upper * (1 - part_y) + lower * part_y


def _read(inputs: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the pixels at these coordinates of each image; outside of it, the nearest pixel of the edge."""
    batch, channels, height, width = inputs.shape
    places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).view(batch, 1, -1)
    return inputs.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(inputs)


def _coloured(section: Augment, inputs: Tensor, drawn: _Drawn) -> Tensor:
    """Return the images with another brightness, contrast (about the mean of the data) and saturation."""
    if section.brightness:
        inputs = inputs + _symmetric(drawn["brightness"], section.brightness)
    if section.contrast:
        inputs = inputs * (1 + _symmetric(drawn["contrast"], section.contrast))
    if section.saturation and inputs.shape[1] > 1:
        first, *rest = inputs.unbind(1)
        # added one by one: a sum over a dimension may be rounded differently in another batch
        grey = (sum(rest, first) / inputs.shape[1])[:, None]
        inputs = grey + (inputs - grey) * (1 + _symmetric(drawn["saturation"], section.saturation))
    return inputs


def _noise(inputs: Tensor, drawn: _Drawn) -> Tensor:
    """Return normal deviates of the shape of the images: every 64 bits give four."""
    values = inputs[0].numel()
    words = _mixed(drawn["noise"][:, None] + torch.arange(1, 1 + math.ceil(values / 4), device=inputs.device) * GOLDEN)
    lanes = torch.stack([(words >> shift) & (QUANTILES - 1) for shift in (0, 16, 32, 48)], 2)
    return _normal_quantiles(inputs.device)[lanes].flatten(1)[:, :values].view_as(inputs)


# Random numbers


class _Drawn:
    """The random numbers of each sample, by name: 64 bits each."""

    def __init__(self, ids: Tensor, key: Key) -> None:
        self._bits = _hashes(ids, key, range(len(DRAWS)))

    def __getitem__(self, name: str) -> Tensor:
        return self._bits[DRAWS.index(name)]


def _hashes(ids: Tensor, key: Key, draws: range) -> Tensor:
    """Return 64 bits for each draw, by its place in DRAWS, and each id, hashed by splitmix64: int64 [draws, B]."""
    words = _mixed(ids * GOLDEN + key)
    return _mixed(words + torch.arange(1 + draws.start, 1 + draws.stop, device=ids.device)[:, None] * GOLDEN)


def _mixed(bits: Tensor) -> Tensor:
    """Return the finaliser of splitmix64, in which every bit depends on every bit; int64 products wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * FIRST
    bits = (bits ^ _shifted(bits, 27)) * SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros: int64's own shift copies the sign bit."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _uniform(bits: Tensor) -> Tensor:
    """Return float32 in [0, 1): 24 bits, which float32 holds exactly."""
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24


def _symmetric(bits: Tensor, reach: float) -> Tensor:
    """Return float32 [B, 1, 1, 1] between -reach and reach."""
    return ((_uniform(bits) * 2 - 1) * reach).view(-1, 1, 1, 1)


def _below(bits: Tensor, count: int | Tensor) -> Tensor:
    """Return integers from 0 to count - 1; ``count`` is at most 2^32."""
    return (_shifted(bits, 33) * count) >> 31


@lru_cache(maxsize=4)
def _angles(degrees: float, device: torch.device) -> Tensor:
    """Return cosines and sines, [2, ANGLES], of evenly spaced angles between -degrees and degrees."""
    radians = [math.radians(degrees) * (2 * i / (ANGLES - 1) - 1) for i in range(ANGLES)]
    return _table([[math.cos(angle) for angle in radians], [math.sin(angle) for angle in radians]], device)


@cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """Return QUANTILES equally likely normal deviates."""
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return torch.special.ndtri(middles).to(torch.float32).to(device)


@lru_cache(maxsize=4)
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return QUANTILES equally likely numbers of the Beta(alpha, alpha) distribution.

    With u = x^alpha the density up to 1/2 is (1 - x)^(alpha - 1) du: smooth, also where alpha is below 1.
    """
    u = torch.linspace(0, 0.5**alpha, QUANTILES, dtype=torch.float64)
    x = u ** (1 / alpha)
    mass = torch.cumulative_trapezoid((1 - x) ** (alpha - 1), u)
    middles = (torch.arange(QUANTILES // 2, dtype=torch.float64) + 0.5) / (QUANTILES // 2) * mass[-1]
    after = torch.searchsorted(mass, middles)
    before = torch.cat((mass.new_zeros(1), mass))[after]
    part = (middles - before) / (mass[after] - before)
    lower = (u[after] + part * (u[after + 1] - u[after])) ** (1 / alpha)
    return torch.cat((lower, 1 - lower.flip(0))).to(torch.float32).to(device)


def _table(values: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).to(device)

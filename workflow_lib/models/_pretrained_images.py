"""Images for a model of Transformers: normalised as those that its weights were trained with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.data import ModelSpec

logger = logging.getLogger(__name__)

BYTES = 1 / 255
Prepared = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a forward pass, by position and by name


def image_arguments(folder: Path, spec: ModelSpec, *, is_random: bool) -> Any:
    """Return a hook that passes images [B, C, H, W], normalised as those that the weights were trained with."""
    scale, shift = (None, None) if is_random else _normalisation(folder, spec)

    def prepare(module: nn.Module, inputs: tuple[Tensor], named: dict[str, Any]) -> Prepared:
        (images,) = inputs
        if scale is not None:
            images = images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
        return (), {**named, "pixel_values": images}

    return prepare


def _normalisation(folder: Path, spec: ModelSpec) -> tuple[list[float] | None, list[float] | None]:
    """Return factor and summand of each channel, from the normalisation of the data to that of the weights.

    None if the folder does not say how images are prepared, or the statistics of the data are not known yet. Raises
    ConfigError if the weights were trained with images of another size.
    """
    file = folder / "preprocessor_config.json"
    if not file.exists():
        logger.warning("%s does not exist: images are normalised by the data's mean and deviation", file)
        return None, None
    settings = json.loads(file.read_text())
    _check_size(folder, settings, spec)
    if not spec.std:
        return None, None
    factor = settings.get("rescale_factor", BYTES)
    if settings.get("do_rescale", True) and (spec.scale == 1 or abs(factor - BYTES) > 1e-6):
        raise ConfigError(
            f"model.params: {file}: the weights are for pixels from 0 to 1 (rescale_factor 1/255), and those of the "
            f"data have another range; store the images as bytes, or use `weights: random`"
        )
    is_normalised = settings.get("do_normalize", True)
    means, deviations = (
        _by_channel(settings[name], len(spec.mean)) if is_normalised else [default] * len(spec.mean)
        for name, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    parts = list(zip(spec.mean, spec.std, means, deviations, strict=True))
    return [std / other for _, std, _, other in parts], [(mean - own) / other for mean, _, own, other in parts]


def _by_channel(value: float | list[float], channels: int) -> list[float]:
    """Return a number for each channel, from one for all or one for each."""
    numbers = value if isinstance(value, list) else [value]
    return (numbers * channels)[:channels] if len(numbers) == 1 else numbers


def _check_size(folder: Path, settings: dict[str, Any], spec: ModelSpec) -> None:
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, dict) or not settings.get("do_resize", True):
        return
    shortest = size.get("shortest_edge")
    expected = (size.get("height", shortest), size.get("width", shortest))
    if None not in expected and spec.input_shape[1:] != expected:
        given = "x".join(map(str, spec.input_shape[1:]))
        raise ConfigError(
            f"model.params: {folder}: its weights are for images of {expected[0]}x{expected[1]} "
            f"(preprocessor_config.json), and those of the data have {given}; change the size of the data"
        )

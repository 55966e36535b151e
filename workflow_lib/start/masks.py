"""Settings for a folder of images and a folder of their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.datasets._folder import split_folders
from workflow_lib.datasets._masks import paired
from workflow_lib.errors import DataError
from workflow_lib.start.guess import LOOKED_AT, Guess, of_images
from workflow_lib.text import count

IGNORED = 255  # the number that masks usually have where nothing is known
MOST_CLASSES = 64


def of_masks(images: Path, masks: Path) -> Guess:
    """Return settings for the images and their masks of the same names. Raises DataError if they do not fit."""
    from PIL import Image

    folders = split_folders(images)
    pairs = [pair for folder in folders.values() for pair in paired(folder, masks / folder.relative_to(images))]
    if not pairs:
        raise DataError(f"--data {images.parent}: {images} has no images")
    made = of_images(images, {str(image): image for image, _ in pairs})
    values, modes = Counter[Any](), Counter[str]()
    for _, mask in pairs[:: max(1, len(pairs) // LOOKED_AT)]:
        try:
            with Image.open(mask) as opened:
                modes[opened.mode] += 1
                pixels = np.asarray(opened)
        except Exception as error:  # decoders do not document what they raise on damage
            raise DataError(f"--data {images.parent}: {mask}: cannot be read as an image ({error})") from error
        flat = pixels.reshape(-1, pixels.shape[2]) if pixels.ndim == 3 else pixels.reshape(-1, 1)
        found, counts = np.unique(flat, axis=0, return_counts=True)
        values.update({tuple(map(int, value)): int(n) for value, n in zip(found, counts, strict=True)})
    made.data = {
        "name": "image_masks",
        "params": made.data["params"] | {"masks": str(masks), **_classes(values, masks, is_grey=set(modes) <= {"L"})},
    }
    made.settings["model"] = {"name": "unet"}
    made.fit_batches(len(pairs))
    made.found = [f"{count(len(pairs), 'image')} with masks"]
    made.found += [f"folders of splits: {', '.join(folders)}"] if len(folders) > 1 else []
    shown = [(", ".join(map(str, value)), n / values.total()) for value, n in sorted(values.items())]
    made.found.append("pixels: " + ", ".join(f"({value}) {share:.1%}" for value, share in shown[:8]))
    made.odd.append("the names of the classes are made up: give them yours")
    if len(modes) > 1:
        made.odd.append(f"masks of several kinds: {', '.join(f'{n} {mode}' for mode, n in modes.items())}")
    return made


def _classes(values: Counter[Any], masks: Path, *, is_grey: bool) -> dict[str, Any]:
    """Return the setting of the classes for the numbers or colours that masks have."""
    if len(values) > MOST_CLASSES:
        raise DataError(
            f"--data {masks.parent}: the masks in {masks} have at least {len(values)} different values; allowed: the "
            f"number or the colour of a class in each pixel, as in a PNG (docs/data.md)"
        )
    if any(len(value) > 1 for value in values):
        return _colours({value[:3] for value in values})
    numbers = {value for (value,) in values}
    ignored = {"ignore": IGNORED} if IGNORED in numbers and numbers != {0, IGNORED} else {}
    top = max(numbers - ({IGNORED} if ignored else set()), default=0)
    if is_grey and top > 2 * len(numbers):  # such as black and white, 0 and 255
        return _colours({(value, value, value) for value in numbers})
    return {"classes": [f"class_{number}" for number in range(max(2, top + 1))], **ignored}


def _colours(found: Set[tuple[int, ...]]) -> dict[str, Any]:
    return {
        "colours": {"colour_" + "".join(f"{part:02x}" for part in colour): list(colour) for colour in sorted(found)}
    }

"""Images and masks as PNG files in data URIs, for the report."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Manifest

LARGEST = 192  # pixels of the longer side; a larger picture is thinned out
SMALLEST = 96  # a smaller picture is enlarged by a whole number
THUMBNAIL = 64  # pixels of the longer side
MOST_PNG_BYTES = 3000  # of a thumbnail; a larger one becomes a JPEG
IGNORED_COLOUR = (0, 0, 0)
GOLDEN_ANGLE = 0.381966  # of the circle: hues of consecutive numbers are far apart


def colour(number: int) -> str:
    """Return the colour of a class in masks, as in CSS: light grey for class 0, which is often the background."""
    return "#{:02x}{:02x}{:02x}".format(*_rgb(number))


def image(inputs: np.ndarray, manifest: Manifest) -> str:
    """Return a normalised input [channels, height, width] as a picture; the first channel if there are not 1 or 3."""
    return _png(pixels(inputs, manifest))


def thumbnail(inputs: np.ndarray, manifest: Manifest) -> str:
    """Return a small picture of a normalised input, as `image` does: a PNG, or a JPEG if that is smaller."""
    from PIL import Image

    picture = Image.fromarray(pixels(inputs, manifest))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    kind, file = "png", io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    if file.tell() > MOST_PNG_BYTES:
        kind, file = "jpeg", io.BytesIO()
        picture.save(file, "JPEG", quality=80)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def pixels(inputs: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Return a normalised input [channels, height, width] as uint8 [height, width, 3]."""
    import numpy as np

    shape = (-1, 1, 1)
    values = inputs * np.array(manifest.std).reshape(shape) + np.array(manifest.mean).reshape(shape)
    values = values if len(values) == 3 else values[:1]
    low, high = (0.0, 1.0) if manifest.scale != 1.0 else (float(values.min()), float(values.max()))
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    shown: np.ndarray = np.moveaxis(scaled.round().astype(np.uint8), 0, 2).repeat(3 // len(values), axis=2)
    return shown


def mask(numbers: np.ndarray) -> str:
    """Return a mask [height, width] as a picture in the colours of the classes; pixels to ignore are black."""
    return _png(coloured(numbers))


def coloured(numbers: np.ndarray) -> np.ndarray:
    """Return a mask [height, width] in the colours of the classes, uint8 [height, width, 3]."""
    import numpy as np

    palette = np.array([_rgb(number) for number in range(255)] + [IGNORED_COLOUR], np.uint8)
    shown: np.ndarray = palette[numbers]
    return shown


def _rgb(number: int) -> tuple[int, ...]:
    import colorsys

    if number == 0:
        return 229, 224, 216
    lightness = (0.45, 0.6, 0.3)[number // 12 % 3]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(number * GOLDEN_ANGLE % 1, lightness, 0.7))


def _png(pixels: np.ndarray) -> str:
    """Return the pixels [height, width, 3] as a data URI."""
    from PIL import Image

    step = math.ceil(max(pixels.shape[:2]) / LARGEST)
    pixels = pixels[::step, ::step]
    times = max(1, SMALLEST // max(pixels.shape[:2]))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

"""Several pictures as one PNG file, with a caption below each column."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LARGEST = 128  # pixels of the longer side of a picture; a larger one is thinned out
SMALLEST = 96  # a smaller one is enlarged by a whole number
GAP, LINE = 4, 12  # pixels
WHITE, BLACK, GREEN, RED = (255,) * 3, (0,) * 3, (0, 110, 0), (190, 0, 0)
LETTER = 6  # pixels

Caption = tuple[Sequence[str], bool | None]  # its lines, and whether it tells of something right


def sheet(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Caption] = ()) -> bytes:
    """Return a PNG file of rows of pictures, uint8 [height, width, 3] of one size; lines that are too long are cut."""
    import numpy as np
    from PIL import Image, ImageDraw

    tiles = [[_fitted(tile) for tile in row] for row in rows]
    height, width = tiles[0][0].shape[0] + GAP, tiles[0][0].shape[1] + GAP
    lines = max((len(texts) for texts, _ in captions), default=0)
    made = Image.new("RGB", (width * len(tiles[0]) + GAP, height * len(tiles) + GAP + lines * LINE), WHITE)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            made.paste(Image.fromarray(np.ascontiguousarray(tile)), (GAP + x * width, GAP + y * height))
    draw = ImageDraw.Draw(made)
    for x, (texts, is_right) in enumerate(captions):
        colour = BLACK if is_right is None else GREEN if is_right else RED
        for number, text in enumerate(texts):
            # the font of Pillow has no letters beyond Latin-1
            shown = text.encode("latin-1", "replace").decode("latin-1")[: width // LETTER]
            draw.text((GAP + x * width, GAP + height * len(tiles) + number * LINE - 2), shown, fill=colour)
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return file.getvalue()


def _fitted(pixels: np.ndarray) -> np.ndarray:
    every = math.ceil(max(pixels.shape[:2]) / LARGEST)
    pixels = pixels[::every, ::every]
    times = max(1, SMALLEST // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)

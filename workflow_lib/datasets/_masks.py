"""Masks in PNG files: the class of each pixel, as numbers or colours."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.data import IGNORED
from workflow_lib.datasets._folder import files_below
from workflow_lib.datasets._images import MAX_PIXELS, Size
from workflow_lib.datasets.image_folder import SUFFIXES, content_of
from workflow_lib.errors import DataError

if TYPE_CHECKING:
    from workflow_lib.datasets.image_masks import Params


def paired(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return each image of a folder with the mask of its name in another; names count without their endings."""
    _check_folders(images, masks)
    mask_of = _by_name(masks, (".png",), "a PNG, which keeps the value of each pixel")
    image_of = _by_name(images, SUFFIXES, f"an image ({', '.join(SUFFIXES)})")
    if not image_of:
        raise DataError(f"{images}: has no images ({', '.join(SUFFIXES)})")
    for names, others, what in ((image_of, mask_of, "no mask"), (mask_of, image_of, "no image")):
        if missing := sorted(names.keys() - others.keys()):
            where = masks if names is image_of else images
            raise DataError(f"{names[missing[0]]}: has {what} {missing[0]} in {where}; add it, or move the file away")
    return [(path, mask_of[name]) for name, path in image_of.items()]


def mask_beside(image: Path, images: Path, masks: Path) -> Path:
    """Return the mask of an image of a folder, without a look at the others. Raises DataError if there is none."""
    _check_folders(images, masks)
    name = image.relative_to(images).with_suffix("").as_posix()
    found = next((masks / f"{name}{end}" for end in (".png", ".PNG") if (masks / f"{name}{end}").is_file()), None)
    if found is None:
        raise DataError(f"{image}: has no mask {name} in {masks}; add it, or move the file away")
    return found


def _check_folders(images: Path, masks: Path) -> None:
    if not masks.is_dir():
        raise DataError(f"{masks}: there is no such folder (data.params.masks)")
    if images.resolve() == masks.resolve():
        raise DataError(f"{masks}: is the folder of the images; put the masks into a folder of their own")


def _by_name(folder: Path, suffixes: tuple[str, ...], kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() not in suffixes:
            raise DataError(f"{path}: is not {kind}; convert it, or move it away")
        name = path.relative_to(folder).with_suffix("").as_posix()
        if (other := found.setdefault(name, path)) != path:
            raise DataError(f"{path}: has the name of {other}; rename one of them")
    return found


def read_mask(path: Path, params: Params, shape: Size | None = None) -> np.ndarray:
    """Return the class of each pixel, uint8 [height, width], IGNORED for pixels that do not count.

    It is scaled to the shape as the image is, but by the nearest pixel; the margins of `resize: pad` are ignored.
    """
    from PIL import Image, ImageOps

    numbers = _class_numbers(_decoded(path, params), path, params)
    if shape is None or numbers.shape == shape:
        return numbers
    image, size, nearest = Image.fromarray(numbers), (shape[1], shape[0]), Image.Resampling.NEAREST
    fit = {
        "stretch": lambda: image.resize(size, nearest),
        "crop": lambda: ImageOps.fit(image, size, nearest),
        "pad": lambda: ImageOps.pad(image, size, nearest, color=IGNORED),
    }
    return np.asarray(fit[params.resize]())


def _decoded(path: Path, params: Params) -> np.ndarray:
    """Return the numbers [height, width] or the colours [height, width, 3] in a file."""
    from PIL import Image

    content = content_of(path)
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            if content[24] > 8:
                raise ValueError(f"has {content[24]} bits a value, more than 8; convert it to 8 bits")
            if not params.colours:
                if image.mode not in ("L", "P", "1"):
                    raise ValueError(f"has colours ({image.mode}), not numbers; name them in data.params.colours")
                return np.asarray(image).astype(np.uint8)
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("has transparent pixels; give them a colour")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders do not document what they raise on damage
        raise DataError(f"{path}: not a readable mask ({error or type(error).__name__})") from error


def _class_numbers(values: np.ndarray, path: Path, params: Params) -> np.ndarray:
    if params.colours:
        values = values.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        given = [_code(params.colours[name]) for name in params.names]
    else:
        given = list(range(len(params.names)))
    table = dict(zip(given, range(len(given)), strict=True))
    if params.ignore is not None:
        table[_code(params.ignore)] = IGNORED
    known = np.array(sorted(table))
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    if (bad := known[places] != values).any():
        row, column = np.argwhere(bad)[0].tolist()
        value = int(values[row, column])
        shown = f"colour {[value >> 16, value >> 8 & 255, value & 255]}" if params.colours else f"value {value}"
        allowed = "those of data.params.colours" if params.colours else f"0 to {len(given) - 1}"
        raise DataError(
            f"{path}: has the {shown} in row {row}, column {column}; allowed: {allowed}, and data.params.ignore, "
            f"which is {'not set' if params.ignore is None else params.ignore}"
        )
    numbers: np.ndarray = np.array([table[code] for code in known.tolist()], np.uint8)[places]
    return numbers


def _code(value: Any) -> int:
    """Return a number for a colour; numbers are returned as they are."""
    if isinstance(value, int):
        return value
    red, green, blue = value
    return int(red << 16 | green << 8 | blue)

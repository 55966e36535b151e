"""PNG and JPEG images, a folder for each class, or folders train, val and test which have a folder for each class.

flowers/rose/1.jpg, flowers/tulip/x/2.png           the splits are drawn
flowers/train/rose/1.jpg, flowers/test/rose/7.jpg   splits as they lie; a missing one is drawn from train

Classes are the folders' names, sorted; files lie at any depth. Every image is decoded once before the first shard is
written, so that a damaged one is named at once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from workflow_lib.checksums import Checksums
from workflow_lib.errors import DataError
from workflow_lib.plugins import Known

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.shards import Source, SourceFile

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 90_000_000  # pixels; a small file can promise so many that decoding them takes all memory
Side = Annotated[int, Field(ge=1, le=8192)]
Size = tuple[int, int]  # height, width


class Params(Checksums):
    """The folder, and what size and colours its images get."""

    path: Path = Field(description="the folder, relative to the project's root")
    size: Side | tuple[Side, Side] | None = Field(
        None,
        description="height and width of the inputs, or one number for both; null: the images have one size already",
    )
    channels: Literal["grey", "rgb"] = Field("rgb", description="colours; transparent parts lie on black")
    resize: Literal["stretch", "crop", "pad"] = Field(
        "crop",
        description="how an image of another size gets to it: stretched, its middle cut out, or black added around it",
    )

    @property
    def shape(self) -> Size | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def known(params: Params) -> Known:
    """Images, of the size that they get."""
    return Known("images", size=params.shape)


def open_source(params: Params, root: Path) -> Source:
    """The images of the folder, each decoded once already."""
    import numpy as np

    from workflow_lib.data._folder import each, splits_of
    from workflow_lib.shards import SPLITS, Source, content_digest

    params.verify(root / params.path)
    found = {split: _classes(folder) for split, folder in splits_of(root / params.path).items()}
    classes = tuple(found["train"])
    for split, folders in found.items():
        _refuse_other_classes(root / params.path / split, tuple(folders), classes)
    images = {split: [path for paths in folders.values() for path in paths] for split, folders in found.items()}
    checked = each(lambda path: _checked(path, params), [path for paths in images.values() for path in paths])
    shape = params.shape or _common_size(checked)
    files = tuple(file for file, _ in checked)
    digests = {file.path: file.digest for file in files}
    _tell_of_copies(digests, images)
    channels = 3 if params.channels == "rgb" else 1

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), *shape, channels), np.uint8)
        for place, row in enumerate(rows):
            inputs[place] = _pixels(images[split][row], params, shape)
        return np.moveaxis(inputs, 3, 1)

    return Source(
        targets={
            split: np.repeat(np.arange(len(classes)), [len(paths) for paths in found[split].values()]).astype(np.int64)
            for split in SPLITS
            if split in found
        },
        read=read,
        is_thread_safe=True,
        classes=classes,
        scale=255.0,
        files=files,
        content=content_digest(np.array([file.digest for file in files])),  # a file that swaps its place counts
        row_digests={split: [digests[path] for path in paths] for split, paths in images.items()},
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class of a split, by name."""
    from workflow_lib.data._folder import entries, files_below

    for path in entries(folder):
        if path.suffix.lower() in SUFFIXES:
            raise DataError(f"{path}: lies beside the folders of classes; move it into the folder of its class")
    classes = {path.name: list(files_below(path, (folder.resolve(),))) for path in entries(folder) if path.is_dir()}
    if len(classes) < 2:
        listing = f"only {', '.join(classes)}" if classes else "none"
        raise DataError(f"{folder}: needs a folder for each class, and at least two; it has {listing}")
    for name, paths in classes.items():
        if not paths:
            raise DataError(f"{folder / name}: the folder of this class has no images; fill it, or remove it")
        for path in paths:
            if path.suffix.lower() not in SUFFIXES:
                raise DataError(f"{path}: is not a PNG or JPEG ({', '.join(SUFFIXES)}); convert it, or move it away")
    return classes


def _refuse_other_classes(folder: Path, here: tuple[str, ...], classes: tuple[str, ...]) -> None:
    for name in sorted(set(here) ^ set(classes)):
        where = "is not a class of train" if name in here else "is missing: train has this class"
        raise DataError(f"{folder / name}: the folder {where}; all splits have the same classes")


def _tell_of_copies(digests: dict[Path, str], images: dict[str, list[Path]]) -> None:
    """A warning where a file of train is in another split too: a test on what was learnt by heart."""
    learnt = {digests[path]: path for path in images["train"]}
    copies = [path for split, paths in images.items() if split != "train" for path in paths if digests[path] in learnt]
    if copies:
        first = learnt[digests[copies[0]]]
        log.warning(
            "%d images of other splits are copies of some in train, the first: %s = %s", len(copies), copies[0], first
        )


def _checked(path: Path, params: Params) -> tuple[SourceFile, Size]:
    """The file's digest, and height and width of the image in it."""
    from workflow_lib.shards import SourceFile

    file = SourceFile.of(path)
    image = _decoded(path, params)
    return file, (image.height, image.width)


def _common_size(checked: list[tuple[SourceFile, Size]]) -> Size:
    first, size = checked[0]
    for file, other in checked:
        if other != size:
            raise DataError(
                f"{file.path}: is {other[0]} x {other[1]} (height x width), but {first.path} is {size[0]} x {size[1]}; "
                "give all images one size with data.params.size"
            )
    return size


def _pixels(path: Path, params: Params, shape: Size) -> np.ndarray:
    """The image as uint8 [height, width, channels]."""
    import numpy as np
    from PIL import Image, ImageOps

    image, size = _decoded(path, params), (shape[1], shape[0])
    if image.size != size:
        fit = {
            "stretch": lambda: image.resize(size, Image.Resampling.BILINEAR),
            "crop": lambda: ImageOps.fit(image, size, Image.Resampling.BILINEAR),
            "pad": lambda: ImageOps.pad(image, size, Image.Resampling.BILINEAR),
        }
        image = fit[params.resize]()
    return np.asarray(image).reshape(*shape, -1)


def _decoded(path: Path, params: Params) -> Any:
    """The image, upright, in grey or colours of 8 bits; damage of any kind is an error that names the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"promises {image.width} x {image.height} pixels, more than {LARGEST:,}")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"has more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                black = Image.new("RGBA", upright.size, "black")
                upright = Image.alpha_composite(black, upright.convert("RGBA"))
            return upright.convert("RGB" if params.channels == "rgb" else "L")
    except Exception as error:  # what a decoder raises on damage is not listed anywhere
        raise DataError(f"{path}: not a readable PNG or JPEG image ({error or type(error).__name__})") from error

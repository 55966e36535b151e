"""PNG and JPEG images, a folder for each class, or folders train, val and test which have a folder for each class.

flowers/rose/1.jpg, flowers/tulip/x/2.png           the splits are drawn
flowers/train/rose/1.jpg, flowers/test/rose/7.jpg   splits as they lie; a missing one is drawn from train

Classes are the folders' names, sorted; files lie at any depth. Every image is decoded once before the first shard is
written, so that a damaged one is named at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Source, SourceFile

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
LIKE_IMAGES = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "data", "input", "inputs")
)
LIKE_ANNOTATIONS = frozenset(
    ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentations", "groundtruth",
     "gt", "target", "targets", "bbox", "bboxes", "boxes", "trimaps", "xmls", "metadata")
)  # fmt: skip
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
    channels: Literal["grey", "rgb"] = Field("rgb", description="colours that the inputs have")
    background: Literal["black", "white"] = Field(
        "black", description="what transparent parts lie on, and what `resize: pad` adds"
    )
    resize: Literal["stretch", "crop", "pad"] = Field(
        "crop",
        description="how an image of another size gets to it: stretched, its middle cut out, or padded",
    )

    @property
    def shape(self) -> Size | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def known(params: Params) -> DatasetFacts:
    """Images, of the size that they get."""
    return DatasetFacts("images", size=params.shape, channels=3 if params.channels == "rgb" else 1)


def open_source(params: Params, root: Path) -> Source:
    """The images of the folder, each decoded once already."""
    import numpy as np

    from workflow_lib.data import SPLITS, Source, content_digest
    from workflow_lib.datasets._folder import each, splits_of

    params.verify(root / params.path)
    found = {split: _classes(folder, split) for split, folder in splits_of(root / params.path).items()}
    classes = tuple(found["train"])
    number_of = {name: number for number, name in enumerate(classes)}
    for split, folders in found.items():
        _refuse_other_classes(root / params.path / split, tuple(folders), classes)
    images = {split: [path for paths in folders.values() for path in paths] for split, folders in found.items()}
    checked = each(lambda path: _checked(path, params), [path for paths in images.values() for path in paths])
    shape = params.shape or _common_size(checked)
    files = tuple(file for file, _ in checked)
    digests = {file.path: file.digest for file in files}
    channels = 3 if params.channels == "rgb" else 1

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), *shape, channels), np.uint8)
        for place, row in enumerate(rows):
            inputs[place] = _pixels(images[split][row], params, shape)
        return np.moveaxis(inputs, 3, 1)

    return Source(
        targets={
            split: np.array([number_of[name] for name, paths in found[split].items() for _ in paths], np.int64)
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
        row_name=lambda split, row: str(images[split][row]),
    )


def _classes(folder: Path, split: str) -> dict[str, list[Path]]:
    """The images of each class of a split, by name; only train must have all of them."""
    from workflow_lib.datasets._folder import entries, files_below
    from workflow_lib.datasets._notation import folded

    for path in entries(folder):
        if path.suffix.lower() in SUFFIXES:
            raise DataError(f"{path}: lies beside the folders of classes; move it into the folder of its class")
    classes = {path.name: list(files_below(path, (folder.resolve(),))) for path in entries(folder) if path.is_dir()}
    _refuse_annotations(folder, classes)
    if split != "train":
        classes = {name: paths for name, paths in classes.items() if paths}
    if len(classes) < (2 if split == "train" else 1):
        listing = f"only {', '.join(classes)}" if classes else "none"
        raise DataError(f"{folder}: needs a folder for each class, and at least two; it has {listing}")
    for name, paths in classes.items():
        if not paths:
            raise DataError(f"{folder / name}: the folder of this class has no images; fill it, or remove it")
        for path in paths:
            if path.suffix.lower() not in SUFFIXES:
                raise DataError(f"{path}: is not a PNG or JPEG ({', '.join(SUFFIXES)}); convert it, or move it away")
    _tell_of_equal_folders(folder, classes)
    by_fold: dict[str, str] = {}
    for name in classes:
        if (other := by_fold.setdefault(folded(name), name)) != name:
            log.warning("%s: `%s` and `%s` are two classes; put them together if they are one", folder, other, name)
    return classes


def _refuse_annotations(folder: Path, names: Iterable[str]) -> None:
    """A folder of images beside one of their annotations would make two classes of them."""
    words = {re.sub(r"[^a-z]", "", name.casefold()): name for name in names}
    images, annotations = (sorted(words.keys() & known) for known in (LIKE_IMAGES, LIKE_ANNOTATIONS))
    if images and annotations:
        raise DataError(
            f"{folder}: `{words[images[0]]}` and `{words[annotations[0]]}` are images and what is said of them, not "
            "classes; give the images a folder for each class, and move the annotations away"
        )


def _tell_of_equal_folders(folder: Path, classes: dict[str, list[Path]]) -> None:
    """A warning where each class has the same sub-folders and no image of its own: the levels may be the wrong way."""
    below = [{path.relative_to(folder / name).parts[:-1][:1] for path in paths} for name, paths in classes.items()]
    if len(below[0]) > 1 and () not in below[0] and all(one == below[0] for one in below):
        inner = ", ".join(sorted(name for (name,) in below[0])[:5])
        log.warning(
            "%s: its classes (%s) have the same sub-folders (%s), and no image of their own: are these the classes?",
            folder, ", ".join(list(classes)[:5]), inner,
        )  # fmt: skip


def _refuse_other_classes(folder: Path, here: tuple[str, ...], classes: tuple[str, ...]) -> None:
    for name in sorted(set(here) - set(classes)):
        raise DataError(f"{folder / name}: the folder is not a class of train, which must have all of them")


def _checked(path: Path, params: Params) -> tuple[SourceFile, Size]:
    """The file's digest, and height and width of the image in it."""
    from workflow_lib.data import SourceFile

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
            "pad": lambda: ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=params.background),
        }
        image = fit[params.resize]()  # type: ignore[no-untyped-call]
    return np.asarray(image).reshape(*shape, -1)


def _decoded(path: Path, params: Params) -> Any:
    """The image, upright, in grey or colours of 8 bits; damage of any kind is an error that names the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"promises {image.width} x {image.height} pixels, more than {LARGEST:,}")
            bits = _bits(path) if image.format == "PNG" else 8
            if bits > 8 or image.mode.startswith(("I", "F")):  # of a 16-bit PNG in colour Pillow drops the lower byte
                raise ValueError(f"has {max(bits, 16)} bits a value, more than 8 bits a pixel; convert it to 8 bits")
            frames = getattr(image, "n_frames", 1)
            if image.format == "PNG" and frames > 1:
                raise ValueError(f"has {frames} pictures, an animation; save the one that is meant")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                ground = Image.new("RGBA", upright.size, params.background)
                upright = Image.alpha_composite(ground, upright.convert("RGBA"))
            return upright.convert("RGB" if params.channels == "rgb" else "L")
    except Exception as error:  # what a decoder raises on damage is not listed anywhere
        raise DataError(f"{path}: not a readable PNG or JPEG image ({error or type(error).__name__})") from error


def _bits(path: Path) -> int:
    """Bits of each value of a PNG, as its header says."""
    with path.open("rb") as file:
        return file.read(25)[24]

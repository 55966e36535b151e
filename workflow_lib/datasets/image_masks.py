"""Images with a mask for each: the class of each pixel, as numbers or colours in a PNG file of the same name.

photos/1.jpg, photos/a/2.png            masks/1.png, masks/a/2.png              the splits are drawn
photos/train/1.jpg, photos/test/7.jpg   masks/train/1.png, masks/test/7.png     the folders are the splits

Every image and every mask is decoded once before the first shard is written, so that damage is found early.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationInfo, field_validator

from workflow_lib.datasets import image_folder
from workflow_lib.datasets._images import ImageSettings, decode, pixels, size_of
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source, SourceFile
    from workflow_lib.datasets._images import Size

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]


class Params(ImageSettings, Checksums):
    """Settings of the folders, of the masks, and size and colours of the inputs."""

    path: Path = Field(description="folder of the images, relative to the project's root")
    masks: Path = Field(description="folder of the masks: PNG files with the names of the images")
    classes: tuple[str, ...] = Field(
        (), description="names of the classes 0, 1, ... of masks of numbers; empty: masks of colours"
    )
    colours: dict[str, Colour] = Field(
        {}, description="masks of colours: red, green and blue of each class, by its name; 0 to 255"
    )
    ignore: Byte | Colour | None = Field(None, description="number or colour of pixels that do not count; null: none")

    @field_validator("colours", mode="after")
    @classmethod
    def _are_classes(cls, colours: dict[str, Colour], info: ValidationInfo) -> dict[str, Colour]:
        names = info.data.get("classes", ())
        if bool(names) == bool(colours):
            raise ValueError("set either data.params.classes, for masks of numbers, or data.params.colours")
        if not 2 <= len(names or colours) <= 255:
            raise ValueError(f"{len(names or colours)} classes are named; allowed: 2 to 255")
        if len(set(colours.values())) < len(colours):
            raise ValueError("two classes have one colour; give each its own")
        return colours

    @field_validator("ignore", mode="after")
    @classmethod
    def _is_no_class(cls, ignore: int | Colour | None, info: ValidationInfo) -> int | Colour | None:
        classes, colours = info.data.get("classes", ()), info.data.get("colours", {})
        if ignore is None:
            return None
        if isinstance(ignore, int) is bool(colours):
            raise ValueError(f"give {'a colour, as in data.params.colours' if colours else 'a number'}")
        if ignore in colours.values() or (isinstance(ignore, int) and ignore < len(classes)):
            raise ValueError("is a class; remove it from the classes, or ignore another value")
        return ignore

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers; those of colours are sorted."""
        return self.classes or tuple(sorted(self.colours))


def task(params: Params) -> Task:
    """Return `segmentation`."""
    return "segmentation"


def known(params: Params) -> DatasetFacts:
    """Return the kind, size and channels of the inputs, and the number of classes."""
    channels = 3 if params.channels == "rgb" else 1
    return DatasetFacts("images", size=params.shape, channels=channels, classes=len(params.names))


def look(params: Params, root: Path) -> DatasetFacts:
    """Return the known facts and the size of the first image. Raises DataError if it or its mask does not fit."""
    from workflow_lib.datasets._folder import files_below, split_folders
    from workflow_lib.datasets._masks import mask_beside

    size = params.shape
    for folder in split_folders(root / params.path).values():
        masks = root / params.masks / folder.relative_to(root / params.path)
        if (image := next(files_below(folder), None)) is not None:
            *_, found, _ = _check(image, mask_beside(image, folder, masks), params)
            size = size or found
    return replace(known(params), size=size)


def open_source(params: Params, root: Path) -> Source:
    """Return the images and masks of the folders, each of which was decoded once."""
    import numpy as np

    from workflow_lib.data import Source, content_digest
    from workflow_lib.datasets._folder import map_files, split_folders
    from workflow_lib.datasets._masks import paired, read_mask

    params.verify(root / params.path)
    folders = split_folders(root / params.path)
    pairs = {
        split: paired(folder, root / params.masks / folder.relative_to(root / params.path))
        for split, folder in folders.items()
    }
    images = {split: [image for image, _ in of_split] for split, of_split in pairs.items()}
    masks = dict(pair for of_split in pairs.values() for pair in of_split)
    checked = map_files(lambda image: _check(image, masks[image], params), list(masks))
    image_folder.warn_of_several([(image.path, number) for image, _, _, number in checked])
    shape = params.shape or image_folder.common_size([(image, size) for image, _, size, _ in checked])
    digests = {image.path: f"{image.digest} {mask.digest}" for image, mask, *_ in checked}
    channels = 3 if params.channels == "rgb" else 1

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), *shape, channels), np.uint8)
        for place, row in enumerate(rows):
            path = images[split][row]
            inputs[place] = pixels(image_folder.content_of(path), str(path), params, shape)
        return np.moveaxis(inputs, 3, 1)

    def read_masks(split: str, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *shape), np.uint8)
        for place, row in enumerate(rows):
            found[place] = read_mask(masks[images[split][row]], params, shape)
        return found

    return Source(
        task="segmentation",
        targets={split: np.empty((len(of_split), 0), np.int64) for split, of_split in images.items()},
        read=read,
        read_targets=read_masks,
        is_thread_safe=True,
        classes=params.names,
        scale=255.0,
        files=tuple(file for image, mask, *_ in checked for file in (image, mask)),
        content=content_digest(np.array(list(digests.values()))),  # the order of the files counts
        row_digests={split: [digests[path] for path in paths] for split, paths in images.items()},
        row_name=lambda split, row: str(images[split][row]),
        sample_names=lambda split, rows: {
            "file": [images[split][row].relative_to(root / params.path).as_posix() for row in rows.tolist()]
        },
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return an image, or the images of a folder at any depth, as `image_folder` does."""
    return image_folder.open_inputs(params, path, manifest)


def _check(image: Path, mask: Path, params: Params) -> tuple[SourceFile, SourceFile, Size, int]:
    """Decode an image and its mask; return both files, height and width of the image, and the images in its file."""
    from workflow_lib.data import SourceFile
    from workflow_lib.datasets._masks import read_mask

    files = SourceFile.of(image), SourceFile.of(mask)
    decoded = decode(image_folder.content_of(image), str(image), params)
    size = size_of(decoded)
    if (other := read_mask(mask, params).shape) != size:
        raise DataError(
            f"{mask}: is {other[0]} x {other[1]} (height x width), but its image {image} is {size[0]} x {size[1]}; "
            "give the mask the size of the image"
        )
    return *files, size, decoded.info["images"]

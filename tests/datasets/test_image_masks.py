"""Images with masks of numbers or colours: content, sizes, and files that are rejected."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from tests.datasets.contract import ChecksumContract
from workflow_lib import plugins
from workflow_lib.data import IGNORED, Source
from workflow_lib.errors import DataError

COLOURS = {"ink": (200, 10, 10), "dark": (0, 0, 90), "paper": (255, 255, 255)}
NAMES = ("dark", "ink", "paper")  # sorted
NUMBERS = {"path": "photos", "masks": "masks", "classes": NAMES, "ignore": 255, "channels": "grey"}


def number_mask(image: np.ndarray) -> np.ndarray:
    """Return 0 for dark, 1 for some ink and 2 for much ink; the first pixel is ignored."""
    mask = np.digitize(image, (5, 11)).astype(np.uint8)
    mask[0, 0] = IGNORED
    return mask


def written(folder: Path, *splits: str, colours: bool = False) -> Path:
    """Write 30 digits and their masks for each split."""
    palette = np.array([*(COLOURS[name] for name in NAMES), (7, 7, 7)], np.uint8)
    for place, split in enumerate(splits or ("",)):
        for number, image in enumerate(load_digits().images[30 * place : 30 * place + 30]):
            path, mask = folder / "photos" / split / f"{number:02}.png", folder / "masks" / split / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype(np.uint8)).save(path)
            numbers = number_mask(image)
            Image.fromarray(palette[np.minimum(numbers, 3)] if colours else numbers).save(mask)
    return folder


def opened(folder: Path, **params: Any) -> Source:
    plugin = plugins.load("data", "image_masks")
    with closing(plugin.open_source(plugin.Params.model_validate(NUMBERS | params), folder)) as source:
        return source


def masks(source: Source, split: str = "train") -> np.ndarray:
    assert source.read_targets is not None
    return source.read_targets(split, np.arange(len(source.targets[split])))


class TestNumbers(ChecksumContract):
    name = "image_masks"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        written(tmp_path)
        return NUMBERS

    def change(self, folder: Path) -> None:
        path = folder / "photos" / "07.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


class TestSplitsInColour(TestNumbers):
    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        written(tmp_path, "train", "val", "test", colours=True)
        more = {"classes": (), "colours": COLOURS, "ignore": (7, 7, 7)}
        return NUMBERS | more | {"size": [6, 7], "resize": "pad"}

    def change(self, folder: Path) -> None:
        path = folder / "photos" / "test" / "07.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def test_masks_of_numbers_and_of_colours_are_the_classes_of_the_pixels(tmp_path: Path) -> None:
    expected = np.array([number_mask(image) for image in load_digits().images[:30]])
    np.testing.assert_array_equal(masks(opened(written(tmp_path / "a"))), expected)
    colours = {"classes": (), "colours": COLOURS, "ignore": (7, 7, 7)}
    source = opened(written(tmp_path / "b", colours=True), **colours)
    assert source.classes == NAMES
    np.testing.assert_array_equal(masks(source), expected)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_masks_are_scaled_with_their_images_to_classes_that_they_have(tmp_path: Path, resize: str) -> None:
    """A mask that is 2 where the image is white stays so: both are moved alike."""
    for name, value in (("photos", 255), ("masks", 2)):
        (tmp_path / name).mkdir()
        pixels = np.zeros((40, 60), np.uint8)
        pixels[10:30, 20:50] = value
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    source = opened(tmp_path, size=[20, 20], resize=resize)
    mask, image = masks(source)[0], source.read("train", np.arange(1))[0, 0]
    assert set(mask.ravel()) == {0, 2} | ({IGNORED} if resize == "pad" else set())
    assert (mask[image > 140] == 2).all()
    assert (mask[image < 110] != 2).all()


def test_a_changed_mask_is_other_data(tmp_path: Path) -> None:
    before = opened(written(tmp_path))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks" / "03.png")
    after = opened(tmp_path)
    assert before.content != after.content
    assert sum(a != b for a, b in zip(before.row_digests["train"], after.row_digests["train"], strict=True)) == 1


def save(folder: Path, name: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(folder / name)


BAD: dict[str, tuple[Any, str]] = {
    "a missing mask": (lambda f: (f / "masks/03.png").unlink(), "photos/03.png: has no mask 03 in .*masks; add it"),
    "a missing image": (lambda f: (f / "photos/03.png").unlink(), "masks/03.png: has no image 03 in .*photos; add it"),
    "no masks": (lambda f: shutil.rmtree(f / "masks"), r"masks: there is no such folder \(data.params.masks\)"),
    "a JPEG": (lambda f: save(f, "masks/03.jpg", np.zeros((8, 8), np.uint8)), "03.jpg: is not a PNG, which keeps"),
    "another size": (
        lambda f: save(f, "masks/03.png", np.zeros((8, 9), np.uint8)),
        r"masks/03.png: is 8 x 9 \(height x width\), but its image .*03.png is 8 x 8",
    ),
    "another value": (
        lambda f: save(f, "masks/03.png", np.eye(8, dtype=np.uint8) * 7),
        "masks/03.png: has the value 7 in row 0, column 0; allowed: 0 to 2, and data.params.ignore, which is 255",
    ),
    "colours": (
        lambda f: save(f, "masks/03.png", np.zeros((8, 8, 3), np.uint8)),
        r"masks/03.png: not a readable mask \(has colours \(RGB\), not numbers; name them in data.params.colours",
    ),
    "damage": (lambda f: (f / "masks/03.png").write_bytes(b"PNG"), "masks/03.png: not a readable mask"),
    "two images": (lambda f: save(f, "photos/03.jpg", np.zeros((8, 8), np.uint8)), "has the name of .*03.jpg; rename"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_masks_that_do_not_fit_are_rejected_with_the_file(tmp_path: Path, change: Any, said: str) -> None:
    written(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"classes": ()}, "set either data.params.classes, for masks of numbers, or data.params.colours"),
        ({"colours": COLOURS}, "set either data.params.classes, for masks of numbers, or data.params.colours"),
        ({"classes": ("a",)}, "1 classes are named; allowed: 2 to 255"),
        ({"ignore": 1}, "is a class"),
        ({"ignore": (1, 2, 3)}, "give a number"),
        ({"classes": (), "colours": {"a": (1, 1, 1), "b": (1, 1, 1)}}, "two classes have one colour"),
        ({"classes": (), "colours": COLOURS, "ignore": 3}, "give a colour"),
    ],
)
def test_settings_of_masks_that_contradict_each_other_are_rejected(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        plugins.load("data", "image_masks").Params.model_validate(NUMBERS | params)

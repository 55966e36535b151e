"""Images in folders: content, splits, sizes, and files that are rejected."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_image

from tests.datasets.contract import ChecksumContract
from workflow_lib import plugins
from workflow_lib.data import Source, prepare
from workflow_lib.datasets import _images
from workflow_lib.datasets.image_folder import SUFFIXES
from workflow_lib.errors import DataError

PER_CLASS = {"": 30, "train": 20, "val": 5, "test": 6}


def digits(split: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield class, number and pixels of real digits; different ones for each split."""
    data = load_digits()
    begin = {"": 0, "train": 0, "val": 20, "test": 25}[split]
    for digit in range(3):
        for number, image in enumerate(data.images[data.target == digit][begin : begin + PER_CLASS[split]]):
            yield f"digit {digit}", number, (image * 15.9).astype(np.uint8)


def folder_of_digits(folder: Path, *splits: str, suffix: str = ".png") -> Path:
    for split in splits or ("",):
        for name, number, pixels in digits(split):
            path = folder / split / name / f"{number:02d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder_of_digits(tmp_path / "images")


@contextmanager
def opened(path: Path, **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", "image_folder")
    params = {"channels": "grey"} | params
    with closing(plugin.open_source(plugin.Params(path=path, **params), path.parent)) as source:
        yield source


def one_image(folder: Path, image: Image.Image, suffix: str = ".png", **params: Any) -> np.ndarray:
    """Return the input [channels, height, width] that the data set makes of an image."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        image.save(folder / name / f"1{suffix}", **({"exif": image.getexif()} if image.getexif() else {}))
    with opened(folder, **params) as source:
        return source.read("train", np.arange(1))[0]


class ImageContract(ChecksumContract):
    name = "image_folder"
    splits: tuple[str, ...] = ()
    suffix = ".png"
    settings_of_images: dict[str, Any] = {"channels": "grey"}

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        folder_of_digits(tmp_path / "images", *self.splits, suffix=self.suffix)
        return {"path": "images"} | self.settings_of_images

    def change(self, folder: Path) -> None:
        path = folder / "images" / (self.splits or ("",))[0] / f"digit 1/07{self.suffix}"
        with Image.open(path) as image:
            other = ImageOps.invert(image)
        other.save(path)


class TestGrey(ImageContract):
    pass


class TestSplitFolders(ImageContract):
    splits = ("train", "val", "test")


class TestWithoutValidation(ImageContract):
    splits = ("train", "test")


class TestJpegResizedInColour(ImageContract):
    suffix = ".JPG"
    settings_of_images = {"size": [6, 5], "channels": "rgb", "resize": "pad"}


def test_the_images_are_those_in_the_files(images: Path) -> None:
    with opened(images) as source:
        assert source.classes == ("digit 0", "digit 1", "digit 2")
        assert source.targets["train"].tolist() == [0] * 30 + [1] * 30 + [2] * 30
        pixels = source.read("train", np.arange(90))
    np.testing.assert_array_equal(pixels[:, 0], [pixels for *_, pixels in digits("")])
    assert (pixels.dtype, source.scale) == (np.uint8, 255)


def test_folders_of_splits_are_the_splits(tmp_path: Path) -> None:
    folder = folder_of_digits(tmp_path / "images", "train", "val", "test")
    with opened(folder) as source:
        for split in ("train", "val", "test"):
            pixels = source.read(split, np.arange(len(source.targets[split])))
            np.testing.assert_array_equal(pixels[:, 0], [pixels for *_, pixels in digits(split)])


def test_hidden_files_are_ignored_and_folders_are_searched(images: Path) -> None:
    (images / ".cache").mkdir()
    (images / "digit 0" / ".DS_Store").write_bytes(b"x")
    (images / "digit 0" / "Thumbs.db").write_bytes(b"x")
    (images / "README.txt").write_text("about these images")
    deep = images / "digit 2" / "more" / "still"
    deep.mkdir(parents=True)
    (images / "digit 2" / "00.png").rename(deep / "x.PNG")
    with opened(images) as source:
        assert len(source.files) == 90
        assert source.files[-1].path == deep / "x.PNG"


def test_files_that_swap_their_names_are_new_data(images: Path, tmp_path: Path) -> None:
    """Otherwise the shards would verify, although a fresh preparation would give another order."""
    settings = {"name": "image_folder", "params": {"path": "images", "channels": "grey"}}
    before = prepare(settings, tmp_path, tmp_path / "work")
    first, second = images / "digit 0" / "01.png", images / "digit 0" / "02.png"
    first.rename(images / "x.tmp")
    second.rename(first)
    (images / "x.tmp").rename(second)
    assert prepare(settings, tmp_path, tmp_path / "work").digest != before.digest


@pytest.mark.parametrize("number", ["00", "05", "09"])  # the first, one within, and the last of a shard
def test_only_the_shard_with_a_changed_image_is_written_again(number: str, tmp_path: Path) -> None:
    """The others are linked from the earlier data, unless they are damaged."""
    image = folder_of_digits(tmp_path / "images", "train", "val", "test") / "train" / "digit 0" / f"{number}.png"
    settings = {"name": "image_folder", "params": {"path": "images", "channels": "grey"}, "shard_samples": 10}

    def prepared(work: str = "work", **changed: Any) -> dict[str, Path]:
        manifest = prepare(settings | changed, tmp_path, tmp_path / work)
        return {shard.name: tmp_path / work / "data" / manifest.store / shard.name for shard in manifest.shards}

    before = prepared()
    with Image.open(image) as read:
        ImageOps.invert(read).save(image)
    after = prepared()
    (new,) = after.keys() - before.keys()
    assert new.startswith("train-000000000000-000000000010-")
    assert len(after) == len(before) == 10
    assert all(after[name].samefile(before[name]) for name in after.keys() - {new})
    fresh = prepared("fresh")
    assert [path.read_bytes() for path in after.values()] == [path.read_bytes() for path in fresh.values()]
    assert not prepared(params={"path": "images"}).keys() & after.keys()

    shutil.rmtree(after[new].parent)
    damaged = before[max(before)]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    again = prepared()
    assert [path.read_bytes() for path in again.values()] == [path.read_bytes() for path in fresh.values()]
    assert [name for name in again.keys() & before.keys() if not again[name].samefile(before[name])] == [damaged.name]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """A camera stores the pixels as the sensor has them, and its orientation in EXIF."""
    upright = Image.fromarray(load_sample_image("flower.jpg")).resize((12, 8))
    held = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = upright
    for transpose in held[orientation]:
        stored = stored.transpose(transpose)
    stored.getexif()[0x0112] = orientation
    given = one_image(tmp_path / "x", stored, channels="rgb")
    np.testing.assert_array_equal(given.transpose(1, 2, 0), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", ["grey", "rgb"])
def test_images_of_every_mode_get_the_channels_of_the_setting(tmp_path: Path, mode: str, channels: str) -> None:
    image = Image.fromarray(load_sample_image("china.jpg")).resize((9, 7)).convert(mode.replace("PA", "P"))
    if mode == "PA":
        image.info["transparency"] = 0
    given = one_image(tmp_path / "x", image, channels=channels)
    assert given.shape == (1 if channels == "grey" else 3, 7, 9)
    assert given.std() > 0


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(load_sample_image("china.jpg")).resize((64, 48))
    given = one_image(tmp_path / "x", image.convert("CMYK"), ".jpg", channels="rgb", size=(6, 8))
    assert np.abs(given.transpose(1, 2, 0) - np.asarray(image.resize((8, 6))).astype(int)).mean() < 12


def test_transparent_parts_become_black(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[:2, :, 3] = 0
    pixels[2:, :, 3] = 255
    given = one_image(tmp_path / "x", Image.fromarray(pixels), channels="rgb")
    assert (given[:, :2] == 0).all()
    assert (given[:, 2:] == 200).all()


def test_an_image_is_fitted_to_its_size_by_the_setting(tmp_path: Path) -> None:
    """A grey image with white edges: stretch keeps the edges, crop removes them, pad adds black."""
    pixels = np.full((8, 32), 100, np.uint8)
    pixels[:, :8] = pixels[:, -8:] = 255
    given = {
        resize: one_image(tmp_path / resize, Image.fromarray(pixels), size=8, resize=resize)[0]
        for resize in ("stretch", "crop", "pad")
    }
    assert given["stretch"][4, 0] == 255
    assert given["stretch"][4, 4] == 100
    assert (given["crop"] == 100).all()
    assert (given["pad"][[0, -1]] == 0).all()
    assert given["pad"][4, 0] == 255


def bomb(folder: Path) -> None:
    """Write a small PNG with 20,000 x 20,000 pixels."""
    path = folder / "digit 1" / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 100_000


def other_bytes(name: str, content: bytes) -> Any:
    return lambda folder: (folder / "digit 1" / name).write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "digit 1" / "07.png"
    path.write_bytes(path.read_bytes()[:-40])


def cut_short_jpeg(folder: Path) -> None:
    path = folder / "digit 1" / "x.jpg"
    Image.fromarray(load_sample_image("flower.jpg")).convert("L").resize((8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:-12])


def other_size(folder: Path) -> None:
    Image.new("L", (9, 8)).save(folder / "digit 1" / "07.png")


def deep_pixels(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "digit 1" / "07.png")


def deep_colours(folder: Path) -> None:
    """Write a TIFF of one pixel in colour with 16 bits a value, which Pillow cannot write."""
    tags = [(256, 1, 1), (257, 1, 1), (258, 3, 8), (259, 1, 1), (262, 1, 2), (273, 1, 200), (277, 1, 3)]
    tags += [(278, 1, 1), (279, 1, 6)]
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, count, value) for tag, count, value in tags if tag != 258)
    bits = struct.pack("<HHII", 258, 3, 3, 190)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries[:24] + bits + entries[24:] + bytes(4)
    content = head.ljust(190, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(4) + b"\x34\x12" * 3
    (folder / "digit 1" / "x.tif").write_bytes(content)


def several(name: str) -> Any:
    first, second = (Image.new("L", (8, 8), colour) for colour in (0, 200))
    return lambda folder: first.save(folder / "digit 1" / name, save_all=True, append_images=[second])


def circle(folder: Path) -> None:
    (folder / "digit 1" / "again").symlink_to(folder)


def only_one(folder: Path) -> None:
    for name in ("digit 1", "digit 2"):
        (folder / name).rename(folder / f".{name}")


BAD: dict[str, tuple[Any, str]] = {
    "cut short": (cut_short, r"digit 1/07.png: not a readable PNG, .* image \(image file is truncated"),
    "JPEG cut short": (cut_short_jpeg, r"digit 1/x.jpg: not a readable PNG, .* image \(image file is truncated"),
    "empty": (other_bytes("07.png", b""), "digit 1/07.png: not a readable PNG, .* image"),
    "a page": (other_bytes("x.jpg", b"<html>"), "digit 1/x.jpg: not a readable PNG, .* image"),
    "a GIF with another name": (other_bytes("x.png", b"GIF89a" + bytes(99)), "digit 1/x.png: not a readable PNG"),
    "a bomb": (bomb, "digit 1/bomb.png: not a readable PNG, .* image .*pixels"),
    "another size": (other_size, r"1/07.png: is 8 x 9 \(height x width\), but .*00.png is 8 x 8; .*data.params.size"),
    "16 bits": (deep_pixels, "digit 1/07.png: .* more than 8; convert"),
    "16 bits in colour": (deep_colours, "digit 1/x.tif: .*has 16 bits a value, more than 8; convert"),
    "two pages": (several("x.tif"), "digit 1/x.tif: .*has 2 images; save one"),
    "an animation": (several("x.webp"), "digit 1/x.webp: .*is an animation of 2 images; save one"),
    "another kind of file": (other_bytes("x.gif", b""), r"digit 1/x.gif: is not an image \(.png, .jpg, .jpeg, .webp"),
    "not an image": (other_bytes("notes.txt", b""), "digit 1/notes.txt: is not an image"),
    "an empty class": (lambda f: (f / "none").mkdir(), "images/none: the folder of this class has no images"),
    "one class": (only_one, "images: needs folders for at least two classes; it has only digit 0"),
    "an image beside": (lambda f: (f / "digit 1" / "07.png").rename(f / "x.png"), "x.png: is beside the folders of"),
    "a broken link": (lambda f: (f / "digit 1" / "x.png").symlink_to("nowhere"), "x.png: is a broken link"),
    "a circle of links": (circle, "digit 1/again: a link to a folder that contains it"),
    "a pipe": (lambda f: os.mkfifo(f / "digit 1" / "x.png"), "x.png: is neither a file nor a folder"),
    "a name in no alphabet": (
        lambda f: (f / "digit 1" / "07.png").rename(os.fsdecode(os.fsencode(f) + b"/digit 1/\xff.png")),
        "its name is not UTF-8",
    ),
    "half of a split": (lambda f: (f / "train").mkdir(), "digit 0: is not a split, but beside folders of splits"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_an_unusable_file_is_rejected_by_name(images: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(images)
    settings = {"name": "image_folder", "params": {"path": "images", "channels": "grey"}}
    with pytest.raises(DataError, match=message):
        prepare(settings, tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_all_damaged_images_are_named_up_to_ten(images: Path, tmp_path: Path) -> None:
    settings = {"name": "image_folder", "params": {"path": "images", "channels": "grey"}}
    damaged = [images / f"digit {n % 2}" / f"{n:02}.png" for n in range(12)]
    for number, path in enumerate(sorted(damaged)[:11], 1):
        path.write_bytes(b"")
        if number in (2, 11):
            with pytest.raises(DataError, match=r"digit 0/00.png: not a readable") as rejected:
                prepare(settings, tmp_path, tmp_path / "work")
            shown = str(rejected.value)
            assert f"; {number} of 90 files cannot be used, also " in shown
            assert shown.count(".png") == min(number, 10)


def test_the_first_image_of_an_mpo_file_is_read_with_a_warning(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Image.new("L", (8, 8), colour) for colour in (40, 200))
    for name in ("phone.jpg", "phone2.jpg"):
        first.save(images / "digit 1" / name, "MPO", save_all=True, append_images=[second])
    with opened(images) as source:
        names = source.names_of("train", np.arange(92))["file"]
        rows = np.flatnonzero(np.char.find(np.array(names), "phone") >= 0)
        assert (source.read("train", rows) == 40).all()
    (line,) = (line for line in caplog.messages if "MPO" in line)
    assert line.startswith("2 of 92 files contain several images")
    assert "digit 1/phone.jpg: the first is used" in line


def test_a_split_may_lack_a_class_but_not_have_another(tmp_path: Path) -> None:
    folder = folder_of_digits(tmp_path / "images", "train", "test")
    (folder / "test" / "digit 0").rename(tmp_path / "digit 0")
    with opened(folder) as source:
        assert source.classes == ("digit 0", "digit 1", "digit 2")
        assert source.targets["test"].tolist() == [1] * 6 + [2] * 6
    (tmp_path / "digit 0").rename(folder / "test" / "digit 9")
    with pytest.raises(DataError, match="test/digit 9: is not a class of train"), opened(folder):
        pass


def test_a_folder_train_is_required(tmp_path: Path) -> None:
    folder = folder_of_digits(tmp_path / "images", "val", "test")
    with pytest.raises(DataError, match="images: has a folder test, but no folder train"), opened(folder):
        pass


@pytest.mark.parametrize(("make", "message"), [(Path.touch, "is a file, not a folder"), (None, "no such folder")])
def test_a_missing_folder_and_a_file_are_rejected(tmp_path: Path, make: Any, message: str) -> None:
    if make:
        make(tmp_path / "images")
    with pytest.raises(DataError, match=message), opened(tmp_path / "images"):
        pass


def test_damaged_images_are_rejected_or_decoded_but_never_crash(tmp_path: Path) -> None:
    """Each of 500 damaged files gives an image or an error that names the file."""
    random = np.random.default_rng(0)
    photograph = Image.fromarray(load_sample_image("flower.jpg")).resize((32, 24))
    rejected = 0
    for suffix in (".png", ".jpg"):
        folder = tmp_path / suffix
        good = one_image(folder, photograph, suffix, channels="rgb")
        path = folder / "b" / f"1{suffix}"
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(250):
            damaged = content.copy()
            damaged[random.integers(0, len(content), 3)] = random.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                with opened(folder, channels="rgb", size=(24, 32)) as source:
                    assert source.read("train", np.array([1]))[0].shape == good.shape
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017 (not every byte makes it raise)
                rejected += 1
    assert rejected > 200


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "tiff"])
def test_other_formats_without_loss_give_the_pixels_of_a_png(tmp_path: Path, suffix: str) -> None:
    colours = load_sample_image("flower.jpg")[:32, :40]
    for name in ("a.png", f"b.{suffix}"):
        Image.fromarray(colours).save(tmp_path / name, **({"lossless": True} if suffix == "webp" else {}))
    read = [
        _images.pixels((tmp_path / name).read_bytes(), name, _images.ImageSettings(), None)
        for name in ("a.png", f"b.{suffix}")
    ]
    assert (read[0] == colours).all()
    assert (read[1] == colours).all()
    assert f".{suffix}" in SUFFIXES

"""Folders and files that could be misread are rejected or reported."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.made import (
    opened,
)
from workflow_lib.errors import DataError


def picture_in(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("Train", "Test"), ("training_set", "test_set"), ("TRAIN", "VALID", "TEST"),
              ("trainset", "validation"), ("train2017", "val2017"), ("dev", "Training-Data")]
)  # fmt: skip
def test_folders_of_splits_with_other_names_are_rejected(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        for kind in ("cat", "dog"):
            picture_in(tmp_path / "x" / name / kind / "1.png", number)
    with pytest.raises(DataError, match="x: .* look like splits; rename them to train, val, test"):
        with opened("image_folder", tmp_path / "x"):
            pass
    for path in (tmp_path / "x").rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match="look like splits"), opened("text", tmp_path / "x"):
        pass


@pytest.mark.parametrize("names", [("images", "annotations"), ("Images", "masks"), ("img", "GT"), ("images", "labels")])
@pytest.mark.parametrize("split", ["", "train"])
def test_folders_of_annotations_are_rejected(tmp_path: Path, names: tuple[str, ...], split: str) -> None:
    for number, name in enumerate(names):
        picture_in(tmp_path / "x" / split / name / "1.png", number)
    with pytest.raises(DataError, match="look like images and their annotations, not like classes"):
        with opened("image_folder", tmp_path / "x"):
            pass


def test_classes_that_have_the_same_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("fold1", "fold2")):
        for kind in ("cat", "dog"):
            picture_in(tmp_path / "x" / name / kind / "1.png", number)
    with opened("image_folder", tmp_path / "x") as source:
        assert source.classes == ("fold1", "fold2")
    assert "have the same sub-folders (cat, dog) and no images directly in them" in caplog.text
    caplog.clear()
    picture_in(tmp_path / "x" / "fold1" / "2.png", 5)
    with opened("image_folder", tmp_path / "x"):
        assert caplog.text == ""


def test_folders_of_classes_that_differ_only_in_case_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("Cat", "cat", "dog")):
        picture_in(tmp_path / "x" / name / "1.png", number)
    with opened("image_folder", tmp_path / "x") as source:
        assert len(source.classes) == 3
    assert "`Cat` and `cat` are two classes" in caplog.text


def png(path: Path, bits: int, colours: int) -> None:
    """Write a PNG of 8 x 8 pixels: grey (0), RGB (2), grey with alpha (4) or RGB with alpha (6)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(range(8 * {0: 1, 2: 3, 4: 2, 6: 4}[colours] * bits // 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colours, 0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(8 * row)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("colours", [0, 2, 4, 6])
def test_a_png_of_16_bits_is_rejected_whatever_its_colours(tmp_path: Path, colours: int) -> None:
    for bits in (8, 16):
        for kind in "ab":
            png(tmp_path / str(bits) / kind / "1.png", bits, colours)
    with opened("image_folder", tmp_path / "8") as source:
        assert source.read("train", np.arange(2)).shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match="a/1.png: .*has 16 bits a value"), opened("image_folder", tmp_path / "16"):
        pass


def test_an_animation_is_rejected(tmp_path: Path) -> None:
    picture_in(tmp_path / "x" / "a" / "1.png", 1)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "x" / "b").mkdir()
    frames[0].save(tmp_path / "x" / "b" / "1.png", save_all=True, append_images=frames[1:])
    with (
        pytest.raises(DataError, match="b/1.png: .*an animation of 2 ima"),
        opened("image_folder", tmp_path / "x"),
    ):
        pass


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_byte_0xff_in_a_text_is_not_the_end_token(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x").mkdir()
    texts = [f"{number} L'Ha\u00ff-les-Roses ".encode(encoding) * 40 for number in range(8)]
    for number, text in enumerate(texts):
        (tmp_path / "x" / f"{number}.txt").write_bytes(text)
    with opened("text", tmp_path / "x", context=16) as source:
        windows = source.read("train", np.arange(len(source.targets["train"])))
    end = source.vocabulary.index("<end>")
    assert len(source.vocabulary) == 257
    assert end == 256
    assert (windows == end).any(axis=1).sum() == pytest.approx(8, abs=8)
    assert (windows == 255).any()
    stream = b"".join(texts)
    first = windows[:10, :-1].reshape(-1).tolist()
    assert bytes(first) == stream[: len(first)]

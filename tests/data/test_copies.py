"""Copies across splits and equal inputs with different targets are reported; constant inputs are rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.datasets.made import (
    inputs_of,
    prepared,
)
from workflow_lib import config
from workflow_lib.data import from_arrays, prepare
from workflow_lib.data.source import check_source
from workflow_lib.data.splits import assign
from workflow_lib.errors import DataError


def arrays(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    np.savez(folder / "x.npz", train_images=inputs, train_labels=labels)
    return "npz", {"path": "x.npz"}


def rows(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    lines = [
        ",".join(map(str, [*line.reshape(-1).tolist(), label])) for line, label in zip(inputs, labels, strict=True)
    ]
    names = [f"p{number}" for number in range(inputs[0].size)]
    (folder / "x.csv").write_text("\n".join([",".join([*names, "y"]), *lines]) + "\n")
    return "table", {"path": "x.csv", "target": "y"}


def files(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, Any]]:
    for number, (pixels, label) in enumerate(zip(inputs, labels, strict=True)):
        (folder / "x" / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "x" / f"class {label}" / f"{number:03d}.png")
    return "image_folder", {"path": "x"}


WRITERS = pytest.mark.parametrize("write", [arrays, rows, files])


Writer = Callable[[Path, np.ndarray, np.ndarray], tuple[str, dict[str, Any]]]


@WRITERS
def test_copies_in_drawn_splits_are_reported(tmp_path: Path, write: Writer, caplog: pytest.LogCaptureFixture) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    name, params = write(tmp_path, np.repeat(pictures[:10], 6, axis=0), np.repeat(np.arange(10) % 2, 6))
    prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    logged = [message for message in caplog.messages if "copies of samples of train" in message]
    assert [message.split(" copies")[0] for message in logged] == [
        "9 of 9 samples of val are",
        "12 of 12 samples of test are",
    ]
    first, other = logged[0].split("the first: ")[1].split("): ")[0].split(" = ")
    assert first != other
    if write is files:
        assert Path(first).read_bytes() == Path(other).read_bytes()
    caplog.clear()
    (tmp_path / "other").mkdir()
    name, params = write(tmp_path / "other", pictures, np.arange(60) % 2)
    prepare({"name": name, "params": params}, tmp_path / "other", tmp_path / "other" / "work")
    assert not [message for message in caplog.messages if "copies" in message or "different targets" in message]


@WRITERS
def test_equal_inputs_with_two_labels_are_reported(
    tmp_path: Path, write: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    pictures[41] = pictures[10]
    name, params = write(tmp_path, pictures, np.arange(60) % 2)
    prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    (logged,) = [message for message in caplog.messages if "different targets" in message]
    assert logged.startswith(
        "2 of 60 samples have inputs that occur with different targets (1 different input; the first: "
    )


def test_copies_of_texts_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        text = bytes(np.random.default_rng(number % 10).integers(97, 123, 600, np.uint8))
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{number:02d}.txt").write_bytes(text)
    prepared(tmp_path, "text", "x", params={"context": 16, "split_by": "file"})
    assert [message for message in caplog.messages if "samples of test are copies of samples of train" in message]


@WRITERS
def test_inputs_that_are_all_the_same_are_rejected(tmp_path: Path, write: Writer) -> None:
    name, params = write(tmp_path, np.full((60, 4, 4), 9, np.uint8), np.arange(60) % 2)
    with pytest.raises(DataError, match="all .* inputs of train are the same|every row has the same value"):
        prepare({"name": name, "params": params}, tmp_path, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("manifest.json"))


def test_a_constant_channel_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), np.uint8)
    images[..., 1] = 7
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(60) % 2)
    prepared(tmp_path, "npz", "x.npz")
    assert "channels 1 of the inputs never vary in train" in caplog.text


def test_targets_that_never_vary_are_rejected() -> None:
    source = from_arrays(np.arange(60, dtype=np.float32)[:, None], np.full(60, 3.5))
    with pytest.raises(DataError, match=r"every target of train is 3.5: nothing to learn"):
        assign(source, config.Data())


def test_two_classes_of_one_name_are_rejected() -> None:
    source = from_arrays(np.arange(60, dtype=np.float32)[:, None], np.arange(60) % 3, classes=["a", "b", "a"])
    with pytest.raises(DataError, match="Source.classes has `a` more than once"):
        check_source(source)


def test_the_background_decides_if_transparent_images_differ(tmp_path: Path) -> None:
    for kind in range(2):
        for number in range(12):
            pixels = np.zeros((16, 16, 4), np.uint8)
            pixels[2:5, 2 : 5 + number % 3, 3] = 255
            pixels[8:14, 8:14, 3] = 255 * kind
            (tmp_path / "x" / "ab"[kind]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "x" / "ab"[kind] / f"{number}.png")
    with pytest.raises(DataError, match="all 15 inputs of train are the same"):
        prepared(tmp_path, "image_folder", "x")
    manifest = prepared(tmp_path, "image_folder", "x", params={"background": "white"})
    assert len(np.unique(inputs_of(manifest, tmp_path), axis=0)) == 6

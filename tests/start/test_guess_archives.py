"""Guesses for masks, Arrow, Parquet and tar files: each must pass the checks of `everstep validate`."""

import io
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workflow_lib import config, plan
from workflow_lib.errors import DataError
from workflow_lib.plan import preview
from workflow_lib.start import first_experiment, guess

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, (40, 48)).astype(np.uint8)
UNKNOWN = np.where(np.arange(40)[:, None] == 0, 255, CLASSES).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def looked_at(path: Path, folder: Path) -> tuple[config.Experiment, list[str]]:
    """Return the guessed experiment after its data set has looked at the files, and what is odd."""
    found = guess(path)
    (folder / "Snakefile").touch()
    file = folder / "guessed.yaml"
    file.write_text(first_experiment("guessed", found))
    assert len(file.read_text().splitlines()) <= 30
    experiment = config.load([file])
    assert preview.look([run.config for run in plan.expand(experiment)], experiment.runtime, folder).problems == {}
    return experiment, found.odd


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (CLASSES, {"classes": ["class_0", "class_1", "class_2"]}),
        (UNKNOWN, {"classes": ["class_0", "class_1", "class_2"], "ignore": 255}),
        ((CLASSES > 0).astype(np.uint8) * 255, {"colours": {"colour_000000": [0] * 3, "colour_ffffff": [255] * 3}}),
        (
            np.stack([CLASSES // 2 * 60, CLASSES // 2 * 10, CLASSES * 0], 2),
            {"colours": {"colour_000000": [0] * 3, "colour_3c0a00": [60, 10, 0]}},
        ),
    ],
)
def test_masks_beside_images_are_numbers_or_colours(tmp_path: Path, mask: np.ndarray, expected: dict[str, Any]) -> None:
    for folder, pixels in (("photos", np.zeros((40, 48, 3), np.uint8)), ("masks", mask)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "data" / folder / f"{number}.png").write_bytes(png(pixels))
    experiment, odd = looked_at(tmp_path / "data", tmp_path)
    params = {key: experiment.data.params[key] for key in ("classes", "colours", "ignore")}
    assert params == {"classes": [], "colours": {}, "ignore": None} | expected
    assert experiment.model.name == "unet"
    assert odd == ["the names of the classes are made up: give them yours"]
    (tmp_path / "data" / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3.png"):
        guess(tmp_path / "data")


def images() -> pa.Table:
    contents = [{"bytes": png(np.zeros((28, 28), np.uint8)), "path": None}] * 40
    return pa.table({"image": contents, "label": [row % 3 for row in range(40)]})


def numbers() -> pa.Table:
    values = np.arange(40) / 7
    return pa.table({"a": values, "name": ["x"] * 40, "price": values, "b": values})


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (images, {"image": "image", "target": "label", "kind": "classification", "channels": "grey", "size": 24}),
        (numbers, {"numbers": ["a", "b"], "target": "price", "kind": "regression"}),
        (
            lambda: pa.table({"id": [1] * 40, "input_ids": [[1, 2, 299]] * 40}),
            {"tokens": "input_ids", "vocabulary": 300},
        ),
        (lambda: pa.table({"url": ["x"] * 40, "text": ["once upon a time"] * 40}), {"text": "text"}),
    ],
)
def test_columns_say_what_a_folder_of_parquet_files_holds(
    tmp_path: Path, table: Callable[[], pa.Table], expected: dict[str, Any]
) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(table(), tmp_path / "data" / f"{split}-0.parquet")
    experiment, odd = looked_at(tmp_path / "data", tmp_path)
    assert experiment.data.name == "arrow"
    assert {key: experiment.data.params[key] for key in expected} == expected
    assert bool(odd) == (table is not images)


def test_an_arrow_stream_and_a_parquet_file_of_images_are_read_alone(tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, images().schema) as stream:
        stream.write_table(images())
    pq.write_table(images(), tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        experiment, _ = looked_at(tmp_path / name, tmp_path)
        assert (experiment.data.name, experiment.data.params["image"]) == ("arrow", "image")
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 or not")
    with pytest.raises(DataError, match=r"a.arrow: cannot be read"):
        guess(tmp_path / "a.arrow")


def write_tar(path: Path, target: str, content: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(30):
            for ending, written in (("png", png(np.zeros((30, 30, 3), np.uint8))), (target, content)):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(written)
                tar.addfile(member, io.BytesIO(written))


@pytest.mark.parametrize(("target", "content"), [("cls", b"1"), ("txt", b"rose\n"), ("json", b'{"label": 1}')])
def test_tar_files_of_samples_are_images_with_a_target(tmp_path: Path, target: str, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    for part in range(2):
        write_tar(tmp_path / "data" / f"train-{part}.tar", target, content)
    if target == "json":
        assert "set data.params.key to the name of the target in the json files" in guess(tmp_path / "data").odd
        return
    experiment, _ = looked_at(tmp_path / "data", tmp_path)
    assert (experiment.data.name, experiment.data.params["target"]) == ("tar", target)
    assert (experiment.data.params["size"], experiment.training.batch_size) == (24, 4)


def test_tar_files_without_a_target_give_one_message(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", "json5", b"1")
    with pytest.raises(DataError, match=r"its samples have json5, png; needed: an image and its class"):
        guess(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"no tar file")
    with pytest.raises(DataError, match=r"b.tar: is not an uncompressed tar file"):
        guess(tmp_path / "b.tar")


def write_sparse(path: Path) -> None:
    (path.parent / "1.jpg").touch()
    os.truncate(path.parent / "1.jpg", 2**33)
    subprocess.run(["tar", "--sparse", "-cf", path, "-C", path.parent, "1.jpg"], check=True)


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in {"images": np.zeros((300, 1000, 1000), np.uint8), "labels": np.zeros(300, int)}.items():
            with archive.open(f"train_{name}.npy", "w") as file:
                np.lib.format.write_array(file, values)


def write_huge_image(path: Path) -> None:
    content = bytearray(png(np.zeros((30, 30), np.uint8)))
    content[16:24] = struct.pack(">II", 100_000, 100_000)  # width and height in the header
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        (path / name / "1.png").write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.tar", write_sparse, "`1.jpg` is no plain file"),
        ("a.npz", write_bomb, "more than 100 times its size"),
        ("images", write_huge_image, "none of its images can be read"),
        ("a.csv", os.mkfifo, "is neither a file nor a folder"),
        ("b.csv", lambda path: path.write_text("a,b\n" + "x" * 200_000), "is not a table of text"),
        ("b.npz", lambda path: path.write_bytes(b"PK\x03\x04 no"), "not an npz file"),
    ],
)
def test_a_look_at_hostile_files_ends_with_one_message(
    tmp_path: Path, name: str, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError) as rejected:
        guess(tmp_path / name)
    assert said in str(rejected.value)

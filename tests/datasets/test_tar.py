"""WebDataset tar files: images and targets by name, read at their places, and files that are rejected."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.datasets.in_place_contract import InPlaceContract
from workflow_lib import data, plugins
from workflow_lib.data import Source
from workflow_lib.errors import DataError

RANDOM = np.random.default_rng(0)


def picture(value: int, size: tuple[int, int] = (9, 8)) -> bytes:
    pixels = (RANDOM.integers(0, 40, (*size, 3)) + value).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, last: int) -> list[tuple[str, bytes]]:
    parts = [
        [(f"x/{n:04}.png", picture(90 * (n % 3))), (f"x/{n:04}.cls", str(n % 3).encode())] for n in range(first, last)
    ]
    return [member for part in parts for member in part]


def opened(path: Path, **params: Any) -> Source:
    plugin = plugins.load("data", "tar")
    with closing(plugin.open_source(plugin.Params(path=path, **({"size": 6} | params)), path.parent)) as source:
        return source


class TestTar(InPlaceContract):
    name = "tar"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        packed(tmp_path / "images" / "0.tar", *samples(0, 60))
        packed(tmp_path / "images" / "1.tar", *samples(60, 99))
        return {"path": "images", "size": [6, 7]}

    def change(self, folder: Path) -> None:
        packed(folder / "images" / "1.tar", *samples(60, 99))


class TestNumbersInJson(InPlaceContract):
    name = "tar"

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        for split, first in (("train", 0), ("val", 40), ("test", 60)):
            packed(tmp_path / "images" / f"{split}-0.tar", *self.members(first))
        return {
            "path": "images",
            "size": 6,
            "target": "json",
            "key": "height",
            "kind": "regression",
            "channels": "grey",
        }

    def members(self, first: int) -> list[tuple[str, bytes]]:
        found = []
        for n in range(first, first + 20):
            found += [(f"{n}.meta.png", b""), (f"{n}.json", json.dumps({"height": n / 2}).encode())]
            found[-2] = (f"{n}.png", picture(n))
        return found

    def change(self, folder: Path) -> None:
        packed(folder / "images" / "train-0.tar", *self.members(100))


def test_targets_are_names_or_numbers(tmp_path: Path) -> None:
    named = packed(
        tmp_path / "a.tar", ("1.png", picture(0)), ("1.txt", b"cat"), ("2.png", picture(0)), ("2.txt", b"ant\n")
    )
    source = opened(named, target="txt")
    assert (source.classes, source.targets["train"].tolist()) == (("ant", "cat"), [1, 0])
    numbered = packed(
        tmp_path / "b.tar", ("1.png", picture(0)), ("1.cls", b"2"), ("2.png", picture(0)), ("2.cls", b"0")
    )
    source = opened(numbered)
    assert (source.classes, source.targets["train"].tolist()) == (("0", "1", "2"), [2, 0])
    source = opened(numbered, classes=("red", "green", "blue"))
    assert (source.classes, source.targets["train"].tolist()) == (("red", "green", "blue"), [2, 0])


@pytest.mark.parametrize(
    ("members", "params", "message"),
    [
        ([("1.png", b"x")], {}, "the sample `1` has the files png; allowed: one image"),
        ([("1.cls", b"1"), ("1.png", b"x"), ("1.jpg", b"x")], {}, "the sample `1` has the files cls, jpg, png"),
        ([("1.png", b"x"), ("1.png", b"x")], {}, "the sample `1` occurs twice"),
        (
            [*[("1.png", b"x"), ("1.cls", b"0")], ("2.cls", b"0"), ("2.png", b""), ("1.txt", b"")],
            {},
            "`1` occurs twice",
        ),
        ([("1.png", b"x"), ("1.json", b"{")], {"target": "json", "key": "a"}, "1.json: cannot be read"),
        ([("1.png", b"x"), ("1.json", b'{"b": 1}')], {"target": "json", "key": "a"}, "has b; `a` is missing"),
        ([("1.png", b"x"), ("1.json", b"[1]")], {"target": "json"}, "allowed: a number or a text"),
        ([("1.png", b"x"), ("1.cls", b"3")], {"classes": ("a", "b")}, "x.tar: 1: the target is 3; allowed: a, b"),
        ([("1.png", b"x"), ("1.txt", b"tall")], {"target": "txt", "kind": "regression"}, "is 'tall', not a number"),
        ([("1.png", b"x"), ("1.cls", b"3")], {"size": None}, "data.params.size is missing"),
    ],
)
def test_samples_that_cannot_be_used_are_rejected(
    tmp_path: Path, members: list[tuple[str, bytes]], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(packed(tmp_path / "x.tar", *members), **params)


def test_files_that_are_not_plain_tars_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="is not an uncompressed tar file"):
        opened(tmp_path / "x.tar")
    path = packed(tmp_path / "z.tar", *samples(0, 3))
    path.write_bytes(path.read_bytes()[: 4 * 1024])  # two whole samples
    with pytest.raises(DataError, match=r"z.tar: has no mark of its end at byte 4096: it is incomplete"):
        opened(path)
    packed(tmp_path / "gz" / "a.tar", *samples(0, 3))
    (tmp_path / "gz" / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b.tar.gz: is compressed and cannot be read in place"):
        opened(tmp_path / "gz")
    path = packed(tmp_path / "y.tar", *samples(0, 3))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"y.tar: ends before `x/0000.png` does|damaged"):
        opened(path)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    source = opened(packed(tmp_path / "x.tar", ("1.png", b"no image"), ("1.cls", b"1")))
    with pytest.raises(DataError, match=r"x.tar, image at byte 512: not a readable PNG, .* image"):
        source.read("train", np.arange(1))


def test_the_first_sample_of_a_split_is_checked_before_the_data_is_read(tmp_path: Path) -> None:
    def look(**params: Any) -> plugins.DatasetFacts:
        return plugins.facts_in_headers("tar", {"path": "images", **params}, tmp_path)

    packed(tmp_path / "images" / "train-0.tar", *samples(0, 6))
    assert look(size=[6, 7], classes=["a", "b", "c"]) == plugins.DatasetFacts("images", (6, 7), 3, 3)
    with pytest.raises(DataError, match="data.params.size is missing"):
        look()
    with pytest.raises(DataError, match=r"train-0.tar: the sample `x/0000` has the files cls, png; .* target, txt"):
        look(size=6, target="txt")
    packed(tmp_path / "images" / "val-0.tar")
    with pytest.raises(DataError, match="val-0.tar: has no sample"):
        look(size=6)
    (tmp_path / "images" / "val-0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="val-0.tar: is not an uncompressed tar file"):
        look(size=6)


def test_images_without_targets_are_read_to_predict_for_them(tmp_path: Path) -> None:
    packed(tmp_path / "images" / "train.tar", *samples(0, 40))
    settings = {"name": "tar", "params": {"path": "images", "size": 6}}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    plugin = plugins.load("data", "tar")
    params = plugin.Params.model_validate(settings["params"])
    packed(tmp_path / "new" / "a.tar", *[(f"{n}.png", picture(n)) for n in range(5)])
    read = list(plugin.open_inputs(params, tmp_path / "new", manifest).read(2))
    assert [row for names, _ in read for row in zip(names["file"], names["key"], strict=True)] == [
        ("a.tar", str(n)) for n in range(5)
    ]
    assert [inputs.shape for _, inputs in read] == [(2, 3, 6, 6), (2, 3, 6, 6), (1, 3, 6, 6)]
    packed(tmp_path / "two.tar", ("0.png", picture(0)), ("0.jpg", picture(0)))
    with pytest.raises(DataError, match="two.tar: the sample `0` has more than one image; allowed: one"):
        list(plugin.open_inputs(params, tmp_path / "two.tar", manifest).read(2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no file to predict for; allowed: files named .tar"):
        plugin.open_inputs(params, tmp_path / "empty", manifest)

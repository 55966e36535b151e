"""Images in an npz file: content, types, and files that are rejected."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.contract import DataContract
from tests.support.repository import ROOT
from workflow_lib import config, data, plugins
from workflow_lib.data import Manifest, Source
from workflow_lib.errors import DataError

Arrays = dict[str, np.ndarray]


def medmnist(
    *shape: int, dtype: type = np.uint8, train: int = 60, val: int = 12, test: int = 15, classes: int = 3
) -> Arrays:
    """Return random images and labels (n, 1), each class in each split; a split without samples is left out."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for split, samples in {"train": train, "val": val, "test": test}.items():
        if samples:
            arrays[f"{split}_images"] = random.integers(0, 256, (samples, *shape)).astype(dtype)
            arrays[f"{split}_labels"] = (np.arange(samples) % classes).astype(np.uint8)[:, np.newaxis]
    return arrays


@contextmanager
def opened(path: Path, **params: Any) -> Iterator[Source]:
    plugin = plugins.load("data", "npz")
    with closing(plugin.open_source(plugin.Params(path=path.name, **params), path.parent)) as source:
        yield source


def saved(folder: Path, arrays: Arrays, save: Callable[..., None] = np.savez_compressed) -> Path:
    path = folder / "data.npz"
    save(path, **arrays)
    return path


class NpzContract(DataContract):
    name = "npz"
    arrays: Arrays
    save: Callable[..., None] = staticmethod(np.savez_compressed)

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": saved(tmp_path, self.arrays, self.save).name}


class TestGrey(NpzContract):
    arrays = medmnist(28, 28)


class TestColour(NpzContract):
    arrays = medmnist(28, 28, 3)
    save = staticmethod(np.savez)


class TestOneChannelOfFloats(NpzContract):
    arrays = medmnist(9, 7, 1, dtype=np.float64)


class TestTrainOnly(NpzContract):
    arrays = medmnist(8, 8, train=200, val=0, test=0)


class TestWithoutValidation(NpzContract):
    arrays = medmnist(8, 8, train=100, val=0)


class TestColumnsFirst(NpzContract):
    arrays = {key: np.asfortranarray(array) for key, array in medmnist(8, 8, 3).items()}


def with_masks() -> Arrays:
    """Return images and their masks: 0 for dark, 1 for bright, 255 for a few pixels to ignore."""
    arrays = medmnist(8, 8)
    for split in ("train", "val", "test"):
        images = arrays[f"{split}_images"]
        del arrays[f"{split}_labels"]
        arrays[f"{split}_masks"] = np.where(images < 20, 255, images > 127).astype(np.uint8)
    return arrays


class TestMasks(NpzContract):
    arrays = with_masks()

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": saved(tmp_path, self.arrays).name, "task": "segmentation"}


class TestLabels(NpzContract):
    arrays = medmnist(8, 8) | {
        f"{split}_labels": np.arange(samples)[:, np.newaxis] // (1, 2, 3) % 2
        for split, samples in {"train": 60, "val": 12, "test": 15}.items()
    }

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": saved(tmp_path, self.arrays).name, "task": "multilabel"}


class TestManyBlocks(NpzContract):
    arrays = medmnist(8, 8, train=200, val=0, test=0)

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workflow_lib.datasets._archive.BLOCK_BYTES", 1000)


@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
def test_the_images_are_those_in_the_file(tmp_path: Path, order: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = {key: order(array) for key, array in medmnist(28, 28, 3).items()}
    with opened(saved(tmp_path, arrays)) as source:
        images = source.read("val", np.arange(12))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), arrays["val_images"])
    np.testing.assert_array_equal(source.targets["val"], arrays["val_labels"][:, 0])
    assert (images.dtype, source.scale, source.classes) == (np.uint8, 255, ("0", "1", "2"))


@pytest.mark.parametrize("dtype", [np.bool_, np.int16, np.uint16, np.int64, np.float16, ">f4", "<f8"])
def test_numbers_of_any_type_are_kept(tmp_path: Path, dtype: Any) -> None:
    arrays = medmnist(4, 4)
    arrays |= {key: (arrays[key] % 2).astype(dtype) for key in arrays if key.endswith("images")}
    with opened(saved(tmp_path, arrays)) as source:
        images = source.read("train", np.arange(60))
    np.testing.assert_array_equal(images[:, 0], arrays["train_images"].astype(float))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.bool_])
def test_labels_are_flat_or_a_column_of_whole_numbers(tmp_path: Path, dtype: Any) -> None:
    arrays = medmnist(4, 4, classes=2)
    arrays["val_labels"] = arrays["val_labels"].reshape(-1).astype(dtype)
    with opened(saved(tmp_path, arrays)) as source:
        assert source.targets["val"].tolist() == [0, 1] * 6


def test_classes_have_the_names_given(tmp_path: Path) -> None:
    with opened(saved(tmp_path, medmnist(4, 4)), classes=("a", "b", "c")) as source:
        assert source.classes == ("a", "b", "c")


def test_the_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    def digest(name: str, arrays: Arrays, save: Callable[..., None]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        path = saved(folder, arrays, save).name
        return data.prepare({"name": "npz", "params": {"path": path}}, folder, tmp_path / "work").digest

    arrays = medmnist(4, 4)
    flat = {key: array[:, 0] if key.endswith("labels") else array[..., np.newaxis] for key, array in arrays.items()}
    other = arrays | {"val_images": arrays["val_images"] ^ 1}
    assert digest("one", arrays, np.savez) == digest("two", flat, np.savez_compressed)
    assert digest("three", other, np.savez) != digest("four", arrays, np.savez)


def _with(key: str, change: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[key] = change(arrays[key])

    return apply


def _set(key: str, row: Any, value: Any, dtype: Any = None) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[key] = arrays[key].astype(dtype or arrays[key].dtype)
        arrays[key][row] = value

    return apply


def _drop(arrays: Arrays, key: str) -> None:
    del arrays[key]


BAD: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "no train images": (lambda a: _drop(a, "train_images"), "`train_images` is missing; there are: train_labels, val_"),
    "no train labels": (lambda a: _drop(a, "train_labels"), "`train_labels` is missing"),
    "val without labels": (lambda a: _drop(a, "val_labels"), "`val_labels` is missing"),
    "test without images": (lambda a: _drop(a, "test_images"), "`test_images` is missing"),
    "too few labels": (_with("val_labels", lambda v: v[:-1]), "`val_labels`: has 11 labels for 12 images"),
    "NaN label": (_set("train_labels", 7, np.nan, np.float32), "`train_labels`, row 7: label nan is not finite"),
    "infinite label": (_set("train_labels", 7, np.inf, np.float32), "`train_labels`, row 7: label inf is not finite"),
    "half a class": (_set("test_labels", 3, 0.5, np.float32), "`test_labels`, row 3: label 0.5 is not whole"),
    "huge label": (_set("test_labels", 3, 1e300, np.float64), "`test_labels`, row 3: label 1e\\+300 is out of range"),
    "negative label": (_set("train_labels", 5, -1, np.int32), "`train_labels`, row 5: label -1 is out of range"),
    "label of no class": (
        _set("val_labels", 4, 3),
        "`val_labels`, row 4: label 3 is out of range; allowed: 0 to 2",
    ),
    "gap in the classes": (_set("train_labels", 9, 200), "`train_labels`, row 9: the largest label is 200"),
    "one class": (_with("train_labels", np.zeros_like), "at least two"),
    "many labels an image": (_with("val_labels", lambda v: np.hstack([v, v])), r"`val_labels`: shape \(12, 2\)"),
    "words as labels": (_with("val_labels", lambda v: v.astype(str)), "`val_labels`: has type <U3; allowed: numbers"),
    "pickled labels": (_with("val_labels", lambda v: v.astype(object)), "`val_labels`: has pickled Python objects"),
    "pickled images": (_with("train_images", lambda v: v.astype(object)), "`train_images`: has pickled"),
    "complex images": (_with("train_images", lambda v: v * 1j), "`train_images`: has type complex128"),
    "NaN pixel": (_set("test_images", (6, 2, 1), np.nan, np.float32), "`test_images`, row 6: the image has NaN"),
    "infinite pixel": (_set("test_images", (6, 2, 1), -np.inf, np.float32), "`test_images`, row 6: the image has"),
    "pixel beyond float32": (_set("test_images", (6, 2, 1), 1e300, np.float64), "`test_images`, row 6: the image has"),
    "rows of numbers": (_with("train_images", lambda v: v.reshape(60, -1)), r"`train_images`: shape \(60, 64\)"),
    "a number": (_with("train_images", lambda v: np.array(1)), r"`train_images`: shape \(\)"),
    "volumes": (
        _with("train_images", lambda v: v.reshape(60, 8, 2, 2, 2)),
        r"`train_images`: shape \(60, 8, 2, 2, 2\)",
    ),
    "channels first": (_with("train_images", lambda v: v[:, np.newaxis]), "the channels come last"),
    "no pixels": (_with("train_images", lambda v: v[:, :0]), r"`train_images`: shape \(60, 0, 8\)"),
    "empty split": (
        lambda a: a.update({k: a[k][:0] for k in ("val_images", "val_labels")}),
        "`val_images`: has no images",
    ),
    "other size": (
        _with("val_images", lambda v: v[:, 1:]),
        r"`val_images`: images are uint8 \(7, 8\), but those of train",
    ),
    "other type": (_with("val_images", lambda v: v.astype(float)), "`val_images`: images are float64"),
}


def _float_images(arrays: Arrays) -> None:
    for key in ("train_images", "val_images", "test_images"):
        arrays[key] = arrays[key].astype(arrays["test_images"].dtype)


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_content_is_rejected_with_its_place(
    spoil: Callable[[Arrays], None], message: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arrays = medmnist(8, 8)
    spoil(arrays)
    if "pixel" in request.node.callspec.id:
        _float_images(arrays)
    path = saved(tmp_path, arrays)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as error:
        data.prepare({"name": "npz", "params": {"path": path.name}}, tmp_path, tmp_path / "work")
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert not (tmp_path / "work").exists()


def test_a_small_file_cannot_take_gigabytes(tmp_path: Path) -> None:
    """Zeros, compressed to a thousandth of their size, are rejected before they are decompressed."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train_images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": True, "shape": (300, 1024, 1024)})
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"bytes and contains 314,57.*more than 100 times its size"), opened(path):
        pass


def test_a_bad_row_is_numbered_from_the_start_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflow_lib.datasets._archive.BLOCK_BYTES", 1000)
    arrays = medmnist(8, 8, dtype=np.float32)
    arrays["train_images"][41, 3, 3] = np.nan
    with pytest.raises(DataError, match="`train_images`, row 41:"), opened(saved(tmp_path, arrays)):
        pass


def test_a_split_without_a_class_is_reported_with_the_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = medmnist(4, 4)
    arrays["val_labels"][:] = 1
    path = saved(tmp_path, arrays)
    manifest = data.prepare({"name": "npz", "params": {"path": path.name}}, tmp_path, tmp_path / "work")
    assert manifest.splits["val"].per_class == (0, 12, 0)
    (logged,) = [message for message in caplog.messages if "has no sample" in message]
    assert "the val split has no sample of class `0`, `2` (0: 0, 1: 12, 2: 0)" in logged


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = medmnist(8, 8)
    hidden = np.empty(60, dtype=object)
    hidden[:] = [Bomb() for _ in range(60)]
    inside = saved(tmp_path, arrays | {"train_labels": hidden})
    raw = tmp_path / "raw.npz"
    raw.write_bytes(pickle.dumps(Bomb()))
    disguised = tmp_path / "disguised.npz"
    with zipfile.ZipFile(disguised, "w") as file:
        file.writestr("train_images.npy", pickle.dumps(Bomb()))
    for path in (inside, raw, disguised):
        with pytest.raises(DataError), opened(path):
            pass
    assert not (tmp_path / "exploded").exists()
    np.load(inside, allow_pickle=True)["train_labels"]  # the pickle does run code if it is loaded
    assert (tmp_path / "exploded").exists()


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.npz: there is no such file"), opened(tmp_path / "data.npz"):
        pass
    (tmp_path / "data.npz").mkdir()
    with pytest.raises(DataError, match="data.npz: is a folder"), opened(tmp_path / "data.npz"):
        pass


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_rejected(tmp_path: Path, save: Callable[..., None]) -> None:
    path = saved(tmp_path, medmnist(8, 8), save)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [good[: len(good) * part // 7] for part in range(7)] + [rng.bytes(len(good))]
    with zipfile.ZipFile(path) as archive:
        places = [info.header_offset + 60 + info.compress_size // 2 for info in archive.infolist()]
    damaged += [good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :] for place in places]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match="data.npz"), opened(path):
            pass
    path.write_bytes(good)
    with opened(path) as source:
        assert len(source.targets["train"]) == 60


def test_a_header_that_claims_more_than_the_file_has_is_rejected(tmp_path: Path) -> None:
    arrays = medmnist(8, 8)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 8, 8)})
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train_images.npy", buffer.getvalue() + bytes(640))
        for key in ("train_labels",):
            buffer = io.BytesIO()
            np.save(buffer, arrays[key])
            file.writestr(f"{key}.npy", buffer.getvalue())
    with pytest.raises(DataError, match="`train_images`: damaged: shape .* but it has 640"), opened(path):
        pass


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, medmnist(8, 8), np.savez)
    settings = {"name": "npz", "params": {"path": path.name}, "shard_samples": 50}
    plugin = plugins.load("data", "npz")
    opened_before = plugin.open_source

    def open_and_append(params: Any, root: Path) -> Source:
        source = opened_before(params, root)
        with path.open("ab") as file:
            file.write(b"more")
        return source

    monkeypatch.setattr(plugin, "open_source", open_and_append)
    with pytest.raises(DataError, match="changed while it was being read"):
        data.prepare(settings, tmp_path, tmp_path / "work")
    monkeypatch.undo()
    assert list((tmp_path / "work").rglob("*.safetensors")) == []
    path.write_bytes(path.read_bytes()[:-4])
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    assert manifest.sources == {"data.npz": data.SourceFile.of(path).digest}
    assert isinstance(manifest, Manifest)


def test_a_wrong_checksum_is_rejected_before_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"half a download")
    settings = {"name": "npz", "params": {"path": "data.npz", "sha256": "0" * 64}}
    with pytest.raises(DataError, match="data.npz: its sha256 is .*, but data.params.sha256 is 0000"):
        data.prepare(settings, tmp_path, tmp_path / "work")


def test_the_example_of_the_documentation_is_for_masks_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    for task in ("segmentation", "multilabel"):
        experiment = config.load([ROOT / "config" / f"{task}.yaml"])
        manifest = data.prepare(experiment.data.model_dump(), tmp_path, tmp_path / "work")
        assert (manifest.spec.task, manifest.spec.input_shape) == (task, (1, 16, 16))
        samples = {name: split.samples for name, split in manifest.splits.items()}
        assert samples == {"train": 2000, "val": 300, "test": 400}

"""The requirements for a data set, as tests. A new data set inherits them, also outside of this repository:

from tests.datasets.contract import DataContract

class TestMine(DataContract):
    name = "mypackage.mine"

    @pytest.fixture
    def params(self, tmp_path):
        return {"path": str(write_a_small_file(tmp_path))}

A data set that reads files inherits `FileContract` and defines `change`; one that reads them in place inherits
`InPlaceContract` of `in_place_contract.py`. If its `Params` inherit `Checksums`, it inherits `ChecksumContract`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from workflow_lib import data, plugins
from workflow_lib.data import IGNORED, SPLITS, Manifest, Source
from workflow_lib.data.shard_writer import with_safe_read
from workflow_lib.errors import DataError
from workflow_lib.plugins import Section
from workflow_lib.plugins.checksums import checksums


class DataContract:
    """Tests for the data set `name` with the settings of the fixture `params`."""

    name: str

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def source(self, params: dict[str, Any], tmp_path: Path) -> Iterator[Source]:
        with self.opened(params, tmp_path) as source:
            yield source

    @contextmanager
    def opened(self, params: dict[str, Any], root: Path) -> Iterator[Source]:
        plugin = plugins.load("data", self.name)
        with closing(plugin.open_source(plugin.Params.model_validate(params), root)) as source:
            yield source

    @pytest.fixture
    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "params": params, "shard_samples": 50}

    def prepared(self, settings: dict[str, Any], tmp_path: Path, store: str = "work", **changed: Any) -> Manifest:
        return data.prepare(settings | changed, tmp_path, tmp_path / store)

    def test_unknown_settings_are_rejected(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="surely_unknown"):
            plugins.load("data", self.name).Params.model_validate(params | {"surely_unknown": 1})

    def test_threads_read_the_same_as_one_thread(self, source: Source) -> None:
        """Threads read at the same time if `is_thread_safe`, otherwise in turn."""
        shared = with_safe_read(source)
        rows = np.arange(len(source.targets["train"]))
        parts = [part for part in np.array_split(rows, 8) if len(part)] * 4
        expected = [np.array(source.read("train", part)) for part in parts]
        with ThreadPoolExecutor(8) as threads:
            for inputs, of_part in zip(
                threads.map(lambda part: shared.read("train", part), parts), expected, strict=True
            ):
                np.testing.assert_array_equal(inputs, of_part)

    def test_every_setting_is_described(self) -> None:
        settings: type[Section] = plugins.load("data", self.name).Params
        assert [name for name, field in settings.model_fields.items() if not field.description] == []

    def test_the_module_imports_nothing_heavy(self) -> None:
        module = plugins.load("data", self.name).__name__
        heavy = {"torch", "numpy", "pandas", "sklearn", "PIL", "pyarrow"}
        code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert loaded.stdout.split() == []

    def test_the_task_is_known_before_the_data_is_read(self, params: dict[str, Any], source: Source) -> None:
        assert plugins.task(self.name, params) == source.task

    def test_facts_known_before_the_data_is_read_are_right(self, settings: dict[str, Any], tmp_path: Path) -> None:
        known, manifest = plugins.facts(self.name, settings["params"]), self.prepared(settings, tmp_path)
        inputs = "texts" if manifest.has_tokens else "images" if len(manifest.input_shape) == 3 else "tables"
        assert known.inputs in (None, inputs)
        assert known.size in (None, manifest.input_shape[1:])
        assert known.classes in (None, len(manifest.classes))
        assert known.samples in (None, sum(split.samples for split in manifest.splits.values()))

    def test_targets_fit_the_task(self, source: Source) -> None:
        assert "train" in source.targets
        assert set(source.targets) <= set(SPLITS)
        for targets in source.targets.values():
            if source.kind == "classes":
                assert targets.dtype == np.int64
                assert targets.ndim == 1
                assert targets.min() >= 0
                assert targets.max() < len(source.classes)
            elif source.kind == "labels":
                assert targets.shape == (len(targets), len(source.classes))
                assert np.isin(targets, (0, 1)).all()
            elif source.kind == "numbers":
                assert targets.dtype == np.float32
                assert np.isfinite(targets).all()
                assert source.classes == ()
            else:
                assert targets.shape == (len(targets), 0)
                assert (source.classes == ()) is (source.kind == "tokens")

    def test_masks_fit_the_inputs_and_the_classes(self, source: Source) -> None:
        assert (source.read_targets is not None) is (source.kind == "masks")
        for split, targets in source.targets.items() if source.read_targets is not None else ():
            rows = np.arange(len(targets))
            masks = source.read_targets(split, rows)
            assert masks.shape == (len(rows), *source.read(split, rows[:1]).shape[2:])
            assert ((masks < len(source.classes)) | (masks == IGNORED)).all()
            for part in (rows[-1:], rows[1:4], rows[::3]):
                np.testing.assert_array_equal(source.read_targets(split, part), masks[part])

    def test_names_are_unique(self, source: Source) -> None:
        names = [source.classes, source.vocabulary, [feature.name for feature in source.features]]
        names += [feature.categories for feature in source.features]
        assert all(len(set(group)) == len(group) for group in names)

    def test_inputs_fit_the_task(self, source: Source) -> None:
        for split, targets in source.targets.items():
            inputs = source.read(split, np.arange(len(targets)))
            assert inputs.ndim >= 2
            assert len(inputs) == len(targets)
            if source.has_tokens:
                assert inputs.dtype in (np.uint8, np.int32)
                assert inputs.min() >= 0
                assert inputs.max() < len(source.vocabulary)
            else:
                assert inputs.dtype in (np.uint8, np.float32)
                assert np.isfinite(inputs).all() or source.features
            if source.features:
                assert inputs.shape[1:] == (len(source.features),)

    def test_all_rows_have_a_digest_or_none(self, source: Source) -> None:
        assert all(len(digests) == len(source.targets[split]) for split, digests in source.row_digests.items())

    def test_any_rows_read_the_same_as_within_all_rows(self, source: Source) -> None:
        for split, targets in source.targets.items():
            rows = np.arange(len(targets))
            whole = np.array(source.read(split, rows))
            for part in (rows[-1:], rows[1:4], rows[::3], rows, rows[:1], rows[len(rows) // 2 :]):
                np.testing.assert_array_equal(source.read(split, part), whole[part])

    def test_every_sample_has_a_name_of_its_own(self, source: Source) -> None:
        for split, targets in source.targets.items():
            rows = np.arange(len(targets))
            names = {name: np.asarray(values) for name, values in source.names_of(split, rows).items()}
            assert not {"split", "sample", "target", "predicted"} & set(names)
            assert len(set(zip(*(values.tolist() for values in names.values()), strict=True))) == len(rows)
            for name, values in source.names_of(split, rows[::3]).items():
                np.testing.assert_array_equal(values, names[name][::3])

    def test_every_open_gives_the_same_source(self, source: Source, params: dict[str, Any], tmp_path: Path) -> None:
        with self.opened(params, tmp_path) as again:
            for name in ("task", "classes", "features", "vocabulary", "scale", "files", "content", "row_digests"):
                assert getattr(again, name) == getattr(source, name)
            for split, targets in source.targets.items():
                np.testing.assert_array_equal(again.targets[split], targets)
                rows = np.arange(len(targets))
                np.testing.assert_array_equal(again.read(split, rows), source.read(split, rows))

    def test_every_split_has_samples_of_every_class(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        assert tuple(manifest.splits) == SPLITS
        for split in manifest.splits.values():
            assert split.samples > 0
            assert all(split.per_class)
            if manifest.kind not in ("labels", "masks"):  # which count labels and pixels
                assert sum(split.per_class) == (split.samples if manifest.kind == "classes" else 0)

    def test_the_digest_does_not_depend_on_the_size_of_shards(self, settings: dict[str, Any], tmp_path: Path) -> None:
        large = self.prepared(settings, tmp_path, "large")
        small = self.prepared(settings, tmp_path, "small", shard_samples=settings["shard_samples"] // 7)
        assert large.digest == small.digest
        assert len(large.shards) < len(small.shards) or large.in_place is not None

    def test_a_second_preparation_writes_no_shard(self, settings: dict[str, Any], tmp_path: Path) -> None:
        def state() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}

        manifest = self.prepared(settings, tmp_path)
        before = state()
        assert self.prepared(settings, tmp_path) == manifest
        assert state() == before
        assert len(before) == len(manifest.shards) + (manifest.in_place is not None)

    def test_the_split_seed_matters_only_if_a_split_is_drawn(
        self, settings: dict[str, Any], source: Source, tmp_path: Path
    ) -> None:
        first, second = (self.prepared(settings, tmp_path, split_seed=seed) for seed in (1, 2))
        assert (first.digest == second.digest) == (set(source.targets) == set(SPLITS))

    def test_batches_fit_the_manifest(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        split = data.load_split(manifest, "train", tmp_path / "work", root=tmp_path)
        inputs, targets = split.batch(slice(0, 3))
        if manifest.has_tokens:
            assert tuple(inputs.shape) == (3, manifest.spec.input_shape[0] + (manifest.kind == "tokens"))
            assert not inputs.is_floating_point()
        else:
            assert tuple(inputs.shape) == (3, *manifest.spec.input_shape)
            assert inputs.isfinite().all()
        for feature, categories in enumerate(manifest.spec.categories):
            if categories:
                codes = split.batch(slice(None))[0][:, feature]
                assert (codes == codes.round()).all()
                assert codes.min() >= 0
                assert codes.max() < categories
        if manifest.kind == "classes":
            assert targets.max() < manifest.spec.outputs

    def test_the_training_split_is_normalised(self, settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
        if source.has_tokens:
            return  # tokens are not normalised
        stored = np.asarray(source.read("train", np.arange(len(source.targets["train"]))))
        manifest = self.prepared(settings, tmp_path)
        inputs, targets = data.load_split(manifest, "train", tmp_path / "work", root=tmp_path).batch(slice(None))
        by_channel = inputs.transpose(0, 1).flatten(1).double()
        for channel, values in enumerate(by_channel):
            if not (manifest.features and manifest.features[channel].categories):
                is_incomplete = np.isnan(stored[:, channel]).any()
                is_constant = values.std() == 0
                assert values.mean().abs() < 1e-4
                assert is_constant or is_incomplete or (values.std(correction=0) - 1).abs() < 1e-4
        if manifest.kind == "numbers":
            assert targets.mean().abs() < 1e-4
            assert (targets.std(correction=0) - 1).abs() < 1e-4


class FileContract(DataContract, ABC):
    """Further tests for a data set that reads the user's files."""

    @abstractmethod
    def change(self, folder: Path) -> None:
        """Give one or more of the files in the folder other valid content."""

    def test_every_file_is_listed(self, source: Source) -> None:
        assert all(path.is_file() for path in paths_of(source))
        assert paths_of(source)
        assert all(file.digest == data.SourceFile.of(file.path).digest for file in source.files)

    def test_the_users_files_are_not_changed(self, settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
        def state() -> list[tuple[Any, ...]]:
            paths = paths_of(source)
            states = [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in paths]
            return [*states, *(sorted(path.parent.iterdir()) for path in paths)]

        (tmp_path / "work").mkdir()
        before = state()
        self.prepared(settings, tmp_path)
        assert state() == before

    def test_changed_content_is_new_data(self, settings: dict[str, Any], tmp_path: Path) -> None:
        before = self.prepared(settings, tmp_path)
        self.change(tmp_path)
        after = self.prepared(settings, tmp_path)
        assert after.digest != before.digest
        assert after.store != before.store
        assert after == self.prepared(settings, tmp_path, "fresh")

    def test_the_time_of_a_file_is_not_content(self, settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
        before = self.prepared(settings, tmp_path)
        for path in paths_of(source):
            os.utime(path, ns=(0, 0))
        assert self.prepared(settings, tmp_path) == before

    def test_a_file_that_changes_while_it_is_read_is_rejected(
        self, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugin = plugins.load("data", self.name)
        open_source = plugin.open_source

        def opened_and_changed(params: Section, root: Path) -> Source:
            source: Source = open_source(params, root)
            os.utime(paths_of(source)[-1], ns=(0, 0))
            return source

        monkeypatch.setattr(plugin, "open_source", opened_and_changed)
        with pytest.raises(DataError, match="changed while it was being read"):
            self.prepared(settings, tmp_path)
        assert list((tmp_path / "work").rglob("*.safetensors")) == []

    def test_close_closes_every_file(self, params: dict[str, Any], tmp_path: Path) -> None:
        def held() -> list[str]:
            links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
            return sorted(link for link in links if link.startswith(str(tmp_path)))

        with self.opened(params, tmp_path) as source:
            source.read("train", np.arange(3))
        assert held() == []

    def test_samples_to_predict_for_are_read_as_in_the_training(
        self, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # files that are read in place are found from here
        module, manifest = plugins.load("data", self.name), self.prepared(settings, tmp_path)
        if not hasattr(module, "open_inputs") or manifest.kind == "tokens":
            return  # windows of a text depend on the files beside it
        stored = [data.map_split(manifest, split, tmp_path / "work").stored(slice(None)) for split in SPLITS]
        params = module.Params.model_validate(settings["params"])
        with closing(module.open_inputs(params, tmp_path / settings["params"]["path"], manifest)) as inputs:
            read = list(inputs.read(7))
        names = [tuple(row) for columns, _ in read for row in zip(*columns.values(), strict=True)]
        assert len(set(names)) == len(names)
        given = np.concatenate([part for _, part in read])
        assert inputs.samples in (None, len(given))
        assert given.dtype.name == manifest.dtype
        assert sorted(row.tobytes() for row in given) == sorted(row.tobytes() for row in np.concatenate(stored))


def paths_of(source: Source) -> list[Path]:
    """Return the files of the user that the source reads."""
    return [*(file.path for file in source.files), *(() if source.mapped is None else source.mapped.paths)]


class ChecksumContract(FileContract, ABC):
    """A further test for a data set whose `Params` inherit `Checksums`, for the data at `path`."""

    def test_data_with_another_checksum_is_rejected(self, settings: dict[str, Any], tmp_path: Path) -> None:
        right = checksums(tmp_path / settings["params"]["path"], "sha256")
        self.prepared(settings | {"params": settings["params"] | right}, tmp_path)
        self.change(tmp_path)
        with pytest.raises(DataError, match="its sha256 is"):
            self.prepared(settings | {"params": settings["params"] | right}, tmp_path)


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")

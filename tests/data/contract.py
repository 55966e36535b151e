"""The laws of a data set. A new one, also one outside this repository, inherits them:

from tests.data.contract import DataContract

class TestMine(DataContract):
    name = "mypackage.mine"

    @pytest.fixture
    def params(self, tmp_path):
        return {"path": str(write_a_small_file(tmp_path))}
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from workflow_lib import plugins, shards
from workflow_lib.plugins import Section
from workflow_lib.shards import SPLITS, Manifest, Source


class DataContract:
    """Every test here must hold for the data set `name` with the settings of the fixture `params`."""

    name: str

    @pytest.fixture
    def params(self, tmp_path: Path) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def source(self, params: dict[str, Any], tmp_path: Path) -> Iterator[Source]:
        plugin = plugins.load("data", self.name)
        with closing(plugin.open_source(plugin.Params.model_validate(params), tmp_path)) as source:
            yield source

    @pytest.fixture
    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "params": params, "shard_samples": 50}

    def prepared(self, settings: dict[str, Any], tmp_path: Path, store: str = "work", **changed: Any) -> Manifest:
        return shards.prepare(settings | changed, tmp_path, tmp_path / store)

    def test_unknown_settings_are_refused(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="surely_unknown"):
            plugins.load("data", self.name).Params.model_validate(params | {"surely_unknown": 1})

    def test_every_setting_is_described(self) -> None:
        settings: type[Section] = plugins.load("data", self.name).Params
        assert [name for name, field in settings.model_fields.items() if not field.description] == []

    def test_the_module_imports_nothing_heavy(self) -> None:
        module = plugins.load("data", self.name).__name__
        code = f"import sys, {module}; print(*{{'torch', 'numpy', 'pandas', 'sklearn', 'PIL'}} & set(sys.modules))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert loaded.stdout.split() == []

    def test_targets_are_class_numbers(self, source: Source) -> None:
        assert "train" in source.targets and set(source.targets) <= set(SPLITS)
        for targets in source.targets.values():
            assert targets.dtype == np.int64 and targets.ndim == 1
            assert targets.min() >= 0 and targets.max() < len(source.classes)

    def test_any_part_reads_as_in_the_whole(self, source: Source) -> None:
        for split, targets in source.targets.items():
            rows = np.arange(len(targets))
            whole = np.array(source.read(split, rows))
            assert whole.dtype in (np.uint8, np.float32) and whole.ndim >= 2 and len(whole) == len(rows)
            for part in (rows[1:4], rows[::3], rows[-1:], rows[:1]):
                np.testing.assert_array_equal(source.read(split, part), whole[part])

    def test_every_split_has_every_class(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        assert tuple(manifest.splits) == SPLITS
        for split in manifest.splits.values():
            assert all(split.per_class) and sum(split.per_class) == split.samples

    def test_equal_data_has_equal_digests_however_it_is_cut(self, settings: dict[str, Any], tmp_path: Path) -> None:
        one = self.prepared(settings, tmp_path, "one")
        two = self.prepared(settings, tmp_path, "two", shard_samples=7)
        assert one.digest == two.digest
        assert len(one.shards) < len(two.shards)

    def test_the_split_seed_counts_where_a_split_is_drawn(
        self, settings: dict[str, Any], source: Source, tmp_path: Path
    ) -> None:
        one, two = (self.prepared(settings, tmp_path, split_seed=seed) for seed in (1, 2))
        assert (one.digest == two.digest) == (set(source.targets) == set(SPLITS))

    def test_the_training_split_is_normalised(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        inputs = shards.load_split(manifest, "train", tmp_path / "work").inputs
        by_channel = inputs.transpose(0, 1).flatten(1).double()
        is_constant = by_channel.std(dim=1) == 0
        assert by_channel.mean(dim=1).abs().max() < 1e-4
        assert ((by_channel.std(dim=1, correction=0) - 1).abs() < 1e-4).logical_or(is_constant).all()

    def test_the_persons_files_stay_as_they_are(self, settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
        def state() -> list[tuple[Any, ...]]:
            return [(f.path.read_bytes(), f.path.stat().st_mtime_ns, f.path.stat().st_mode) for f in source.files]

        before = state()
        self.prepared(settings, tmp_path)
        assert state() == before

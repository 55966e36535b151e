"""The requirements for a data set that is read in place, as tests; inherited as those in `contract.py`."""

from __future__ import annotations

import os
from abc import ABC
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets.contract import FileContract, paths_of
from workflow_lib import data, plugins
from workflow_lib.data import SPLITS, Manifest, Source
from workflow_lib.errors import DataError


class InPlaceContract(FileContract, ABC):
    """Further tests for a data set whose `Source` has `mapped`: its files are read in place."""

    def batches(self, manifest: Manifest, tmp_path: Path, store: str = "work", **loading: Any) -> list[Any]:
        """Return all samples of all splits, read in another order than that of the rows."""
        found = []
        for name in SPLITS:
            split = data.load_split(manifest, name, tmp_path / store, root=tmp_path, **loading)
            order = torch.from_numpy(np.random.default_rng(0).permutation(len(split)))
            found.append([*split.batch(order), *split.batch(torch.zeros(2, dtype=torch.int64))])
        return found

    def test_the_data_is_not_copied(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        assert manifest.shards == ()
        assert manifest.in_place is not None

    def test_batches_in_place_are_those_from_memory_and_from_shards(
        self, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = self.prepared(settings, tmp_path)
        in_place = self.batches(manifest, tmp_path, in_memory=False)
        in_memory = self.batches(manifest, tmp_path, in_memory=True)
        plugin = plugins.load("data", self.name)
        open_source = plugin.open_source
        copied = {"mapped": None, "index": {}}
        monkeypatch.setattr(plugin, "open_source", lambda *given: replace(open_source(*given), **copied))
        from_shards = self.batches(self.prepared(settings, tmp_path, "copied"), tmp_path, "copied")
        for one, other, third in zip(in_place, in_memory, from_shards, strict=True):
            for a, b, c in zip(one, other, third, strict=True):
                assert torch.equal(a, b)
                assert torch.equal(a, c)

    def test_a_changed_byte_is_found_before_it_is_used(self, settings: dict[str, Any], tmp_path: Path) -> None:
        """Also if size and time of the file are as before."""
        with self.opened(settings["params"], tmp_path) as source:
            paths = paths_of(source)
        manifest = self.prepared(settings, tmp_path)
        for path in paths:
            content, state = path.read_bytes(), path.stat()
            place = len(content) // 2
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
            with pytest.raises(DataError, match="are not those that preprocess read"):
                self.batches(manifest, tmp_path, in_memory=False)
            path.write_bytes(content)
        self.batches(manifest, tmp_path, in_memory=False)

    def test_a_truncated_file_is_rejected(self, settings: dict[str, Any], tmp_path: Path) -> None:
        with self.opened(settings["params"], tmp_path) as source:
            path = paths_of(source)[-1]
        manifest = self.prepared(settings, tmp_path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(DataError, match=path.name):
            self.batches(manifest, tmp_path, in_memory=False)

    @pytest.mark.parametrize("how", ["replaced", "rewritten", "truncated", "removed"])
    def test_a_file_that_changes_during_a_training_is_rejected(
        self, settings: dict[str, Any], tmp_path: Path, how: str
    ) -> None:
        with self.opened(settings["params"], tmp_path) as source:
            paths = paths_of(source)
        split = data.load_split(
            self.prepared(settings, tmp_path), "train", tmp_path / "work", in_memory=False, root=tmp_path
        )
        before = split.batch(slice(None))[0]
        for path in paths:
            if how == "replaced":
                other = path.with_name("other")
                other.write_bytes(path.read_bytes()[::-1])
                other.replace(path)
            elif how == "rewritten":
                path.write_bytes(path.read_bytes()[::-1])
            elif how == "truncated":
                os.truncate(path, 1)
            else:
                path.unlink()
        assert len(before) == len(split)
        with pytest.raises(DataError, match="changed while it was being read|cannot be read"):
            split.batch(slice(None))

    def test_another_list_of_files_is_rejected(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        other = manifest.in_place.model_copy(update={"files": (*manifest.in_place.files, "more")})  # type: ignore[union-attr]
        with pytest.raises(DataError, match="more: the files are not those that were prepared"):
            self.batches(manifest.model_copy(update={"in_place": other}), tmp_path)

    def test_values_that_are_decoded_differently_are_rejected(
        self, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest, plugin = self.prepared(settings, tmp_path), plugins.load("data", self.name)
        open_source = plugin.open_source

        def decoded_differently(*given: Any) -> Source:
            source: Source = open_source(*given)
            return replace(source, read=lambda split, rows: np.roll(source.read(split, rows), 1, -1))

        monkeypatch.setattr(plugin, "open_source", decoded_differently)
        with pytest.raises(DataError, match="reads other values than when the data was prepared"):
            self.batches(manifest, tmp_path)

    def test_a_damaged_index_is_rejected_and_written_again(self, settings: dict[str, Any], tmp_path: Path) -> None:
        manifest = self.prepared(settings, tmp_path)
        (path,) = (tmp_path / "work" / "data" / manifest.store).glob("index.safetensors")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match="the index is damaged or missing"):
            self.batches(manifest, tmp_path)
        assert self.prepared(settings, tmp_path) == manifest
        assert path.read_bytes() == content

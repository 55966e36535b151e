"""Shards hold the content of the source; damaged shards are never trained on, and are written again."""

from __future__ import annotations

import ast
import errno
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.crash import SURVIVED, fork, wait
from tests.support.damage import cut_off, flip, swap
from tests.support.repository import ROOT
from workflow_lib import config, data, plan
from workflow_lib.data import SPLITS, Manifest, Source, preparation
from workflow_lib.data.normalisation import normalise
from workflow_lib.data.splits import assign
from workflow_lib.errors import ConfigError, DataError

SETTINGS: dict[str, Any] = {"name": "digits", "shard_samples": 200}


def prepare(folder: Path, **changed: Any) -> Manifest:
    return data.prepare(SETTINGS | changed, folder, folder / "work")


def files(manifest: Manifest, folder: Path) -> list[Path]:
    return [folder / "work" / "data" / manifest.store / shard.name for shard in manifest.shards]


# Arrays


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ([0, 1], "4 inputs and 2 targets"),
        ([0, 1, 2, 0], "the target in row 2 of `train` is 2; allowed with 2 classes"),
        ([0, -1, 1, 0], "the target in row 1 of `train` is -1"),
        ([0, 0.5, 1, 0], "the target in row 1 of `train` is 0.5"),
        ([0, np.nan, 1, 0], "the target in row 1 of `train` is nan"),
        ([[0], [1], [0], [1]], r"shape \(4, 1\); allowed with 2 classes"),
        (["a", "b", "a", "b"], r"are <U1 of shape \(4,\); allowed with 2 classes"),
    ],
)
def test_targets_that_are_not_class_numbers_are_rejected(targets: list[Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        data.from_arrays(np.zeros((4, 2), np.float32), np.array(targets), classes=["a", "b"])


# Preparing


def test_loaded_samples_are_the_normalised_source(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    manifest = prepare(tmp_path)
    digits = load_digits()
    source = data.from_arrays(digits.images[:, None].astype(np.uint8), digits.target, classes=manifest.classes)
    parts = assign(source, config.Data.model_validate(SETTINGS))
    for name in SPLITS:
        split = data.load_split(manifest, name, tmp_path / "work")
        images = digits.images[parts[name].rows][:, np.newaxis]
        expected = (images / 16 - manifest.mean[0]) / manifest.std[0]
        np.testing.assert_allclose(split.inputs.numpy(), expected, atol=1e-6)
        assert split.targets.tolist() == digits.target[parts[name].rows].tolist()
        assert (len(split.targets), split.targets.bincount().tolist()) == (
            manifest.splits[name].samples,
            list(manifest.splits[name].per_class),
        )


def test_a_part_is_normalised_to_the_same_bits_as_the_whole(tmp_path: Path) -> None:
    import torch

    manifest = prepare(tmp_path)
    stored = torch.randint(0, 17, (101, 1, 8, 8), dtype=torch.uint8)
    whole = normalise(manifest, stored)
    assert torch.equal(whole, torch.cat([normalise(manifest, part) for part in stored.split(7)]))


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    manifest.save(tmp_path / "copy.json")
    assert Manifest.load(tmp_path / "copy.json") == manifest
    assert Manifest.load(tmp_path / "work" / "data" / manifest.store / "manifest.json") == manifest
    assert (manifest.spec.input_shape, manifest.spec.outputs, manifest.dtype) == ((1, 8, 8), 10, "uint8")


def unsigned(text: str) -> dict[str, Any]:
    """Return the content of a file without its checksum."""
    content: dict[str, Any] = json.loads(text)
    del content["checksum"]
    return content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "", "not a JSON file"),
        (lambda text: text[:-100], "not a JSON file"),
        (lambda text: "{}", "not a manifest"),
        (lambda text: text.replace('"scale": 16.0', '"scale": 17.0'), "damaged: its checksum is not"),
        (lambda text: text.replace('"classes": [\n    "0"', '"classes": [\n    "8"'), "damaged: its checksum is not"),
        (lambda text: json.dumps(unsigned(text) | {"mean": [0.5]}), "its digest does not match"),
    ],
)
def test_a_manifest_that_was_changed_is_rejected(spoil: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.json"
    prepare(tmp_path).save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=message):
        Manifest.load(path)


def test_a_lost_manifest_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest; run preprocess again"):
        Manifest.load(tmp_path / "none.json")


DAMAGE = [Path.unlink, cut_off, flip, swap, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_never_trained_on(damage: Callable[[Path], None], tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    path = files(manifest, tmp_path)[1]
    damage(path)
    with pytest.raises(DataError, match=f"{path.name}: the shard is damaged or missing; run preprocess again"):
        data.load_split(manifest, "train", tmp_path / "work")
    data.load_split(manifest, "test", tmp_path / "work")


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_missing_or_damaged_shards_are_written_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    paths = files(manifest, tmp_path)
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in paths}
    damage(paths[1])
    assert prepare(tmp_path) == manifest
    after = {path: (path.stat().st_ino, path.read_bytes()) for path in paths}
    assert [path for path in paths if before[path][1] != after[path][1]] == []
    assert [path for path in paths if before[path][0] != after[path][0]] in ([paths[1]], [])
    assert all(before[path][0] == after[path][0] for path in paths if path != paths[1])
    data.load_split(manifest, "train", tmp_path / "work")


def test_an_interrupted_preparation_with_another_shard_size_leaves_nothing(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, shard_samples=90)
    (tmp_path / "work" / "data" / manifest.store / "manifest.json").unlink()
    again = prepare(tmp_path)
    assert (again.digest, again.store) == (manifest.digest, manifest.store)
    assert sorted(files(again, tmp_path)) == sorted((tmp_path / "work").rglob("*.safetensors"))


def test_experiments_with_other_shard_sizes_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    first, second = prepare(tmp_path), prepare(tmp_path, shard_samples=400)
    assert first.shards == second.shards
    first_train = data.load_split(first, "train", work).inputs

    shutil.rmtree(work / "data" / first.store)
    smaller = prepare(tmp_path, shard_samples=90)
    assert smaller.shards != first.shards
    again = data.load_split(data.ensure(first, work), "train", work).inputs
    assert torch.equal(again, first_train)


def test_a_shard_of_large_samples_holds_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(tmp_path / "whole")
    monkeypatch.setattr(preparation, "SHARD_BYTES", 30 * 64)
    manifest = prepare(tmp_path / "cut")
    assert max(shard.stop - shard.start for shard in manifest.shards) == 30
    assert manifest.digest == whole.digest


def test_the_store_is_keyed_by_all_that_can_change_the_shards(tmp_path: Path) -> None:
    same = [prepare(tmp_path), prepare(tmp_path, shard_samples=300)]
    other = [prepare(tmp_path, split_seed=1), prepare(tmp_path, test_fraction=0.3)]
    assert len({manifest.store for manifest in same}) == 1
    assert len({manifest.store for manifest in same + other}) == 3
    assert len({manifest.digest for manifest in same + other}) == 3


def test_fractions_that_leave_nothing_to_train_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation_fraction and data.test_fraction are 1.1 together"):
        prepare(tmp_path, validation_fraction=0.6, test_fraction=0.5)


def test_a_fraction_that_gives_a_split_no_sample_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the val split has no sample; .*fractions in `data`"):
        prepare(tmp_path, validation_fraction=0.0001)
    assert not (tmp_path / "work").exists()


def test_progress_is_plain_lines_without_a_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workflow_lib.data")
    manifest = prepare(tmp_path)
    prepare(tmp_path)
    first = f"digits: train samples 0 to 200 written (1 of {len(manifest.shards)} shards)"
    assert [record.message for record in caplog.records].count(first) == 1
    assert f"0 of {len(manifest.shards)} shards written" in caplog.records[-1].message


def test_processes_that_prepare_the_same_data_agree(tmp_path: Path) -> None:
    settings = SETTINGS | {"shard_samples": 100}
    code = (
        "import logging, pathlib, sys, workflow_lib.data as s; logging.basicConfig(level='INFO', stream=sys.stderr); "
        "print('ready', flush=True); sys.stdin.readline(); "
        f"print(s.prepare({settings}, pathlib.Path(), pathlib.Path('work')).model_dump_json())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        workers = [stack.enter_context(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)) for _ in "12"]
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    (manifest,) = (Manifest.model_validate_json(text) for text in {output for output, _ in outputs})
    assert sum(log.count("samples") for _, log in outputs) == len(manifest.shards)
    assert sorted(files(manifest, tmp_path)) == sorted((tmp_path / "work").rglob("*.safetensors"))
    assert [path for path in (tmp_path / "work").rglob("*") if path.name.endswith(".tmp")] == []


def test_a_folder_that_is_being_filled_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state in which another process leaves the folder between its first shard and its manifest."""
    monkeypatch.chdir(tmp_path)
    manifest = prepare(tmp_path)
    shards = files(manifest, tmp_path)
    for path in (shards[0].with_name("manifest.json"), shards[-1]):
        path.unlink()
    assert data.ensure(manifest, tmp_path / "work") == manifest
    assert all(path.is_file() for path in shards)


def test_shards_of_other_data_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest, other = prepare(tmp_path), prepare(tmp_path, split_seed=1)
    stored, foreign = (files(each, tmp_path)[0].with_name("manifest.json") for each in (manifest, other))
    stored.write_bytes(foreign.read_bytes())
    assert data.ensure(manifest, tmp_path / "work") == manifest


# The verb


def test_preprocess_writes_the_manifest_of_a_planned_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("name: one\nsweep: {grid: {data.split_seed: [0, 1]}}\n")
    experiment = config.load([Path("one.yaml")])
    first, second = (run.data_id for run in plan.expand(experiment))
    for data_id in (first, second):
        data.preprocess(experiment, data_id, Path("work"), Path(f"{data_id}.json"))
    assert Manifest.load(Path(f"{first}.json")).data["split_seed"] == 0
    assert Manifest.load(Path(f"{second}.json")).data["split_seed"] == 1
    with pytest.raises(ConfigError, match=f"has no data digits-0; it has .*{first}"):
        data.preprocess(experiment, "digits-0", Path("work"), Path("none.json"))


def test_the_source_is_closed_after_its_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_lib import plugins

    plugin, events = plugins.load("data", "digits"), []
    opened = plugin.open_source

    def watched(params: Any, root: Path) -> Source:
        source = opened(params, root)
        read = source.read
        return replace(
            source, read=lambda s, rows: (events.append("read"), read(s, rows))[1], close=lambda: events.append("close")
        )

    monkeypatch.setattr(plugin, "open_source", watched)
    prepare(tmp_path)
    assert events.count("close") == 1
    assert events[-1] == "close"
    assert events.count("read") > math.ceil(1797 / 200)


def _example(package: str) -> str:
    """Return the code in the docstring of a package."""
    lines = (ast.get_docstring(ast.parse(Path(package).read_text())) or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def test_the_examples_in_the_docstrings_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from workflow_lib import datasets, models, plugins

    package = tmp_path / f"examples_{tmp_path.name}"
    package.mkdir()
    for name, module in (("data", datasets), ("models", models)):
        (package / f"{name}.py").write_text(_example(str(module.__file__)))
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"name": f"{package.name}.data", "params": {"noise": 0.2}}
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    plugin = plugins.load("models", f"{package.name}.models")
    network = plugin.build(plugin.Params(width=8), manifest.spec)
    assert network(data.load_split(manifest, "val", tmp_path / "work").inputs).shape == (135, 3)
    assert isinstance(network, torch.nn.Module)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"store": "', '"store": "../'),
        ('"split": "train"', '"split": "../train"'),
        ('"made_from": "', '"made_from": "/../../x'),
        ('"start": 0', '"start": -1'),
    ],
)
def test_a_manifest_names_nothing_outside_the_store(old: str, new: str, tmp_path: Path) -> None:
    prepare(tmp_path).save(tmp_path / "changed.json")
    content = json.loads((tmp_path / "changed.json").read_text())
    content.pop("checksum", None)  # whoever can write there can leave it out
    text = json.dumps(content)
    assert old in text
    (tmp_path / "changed.json").write_text(text.replace(old, new))
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.load(tmp_path / "changed.json")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_shard_that_is_not_a_regular_file_is_written_again(kind: str, tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    path = files(manifest, tmp_path)[0]
    path.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")

    def work() -> None:
        with pytest.raises(DataError, match="damaged or missing"):
            data.load_split(manifest, manifest.shards[0].split, tmp_path / "work")
        assert prepare(tmp_path) == manifest

    assert wait(fork(work), timeout_s=60) == SURVIVED
    assert path.is_file()
    assert not path.is_symlink()


def test_a_stale_lock_of_another_kind_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preparation was killed on a disk without locks."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    manifest = prepare(tmp_path)
    (files(manifest, tmp_path)[0].parent / ".lock").write_text("1\nelsewhere\n")
    monkeypatch.setattr("fcntl.flock", fail)
    assert wait(fork(lambda: prepare(tmp_path)), timeout_s=60) == SURVIVED

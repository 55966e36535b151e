from __future__ import annotations

import ast
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workflow_lib import config, plan, shards
from workflow_lib.errors import ConfigError, DataError, UserError
from workflow_lib.shards import SPLITS, Manifest, Source, preparation, statistics

ROOT = str(Path(shards.__file__).parents[2])
SETTINGS: dict[str, Any] = {"name": "digits", "shard_samples": 200}


def prepare(folder: Path, **changed: Any) -> Manifest:
    return shards.prepare(SETTINGS | changed, folder, folder / "work")


def files(manifest: Manifest, folder: Path) -> list[Path]:
    return [folder / "work" / "data" / manifest.store / shard.name for shard in manifest.shards]


unhurried = settings(deadline=None, max_examples=50)  # other work may share the machine

# Splits

FRACTIONS = st.lists(st.floats(0.01, 0.45), min_size=1, max_size=2)
TARGETS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_every_sample_is_in_exactly_one_split(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    parts = shards.stratified_split(targets, fractions, seed)
    assert len(parts) == 1 + len(fractions)
    assert sorted(np.concatenate(parts)) == list(range(len(targets)))
    for part in parts:
        assert list(part) == sorted(part)


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_classes_are_in_proportion_in_every_split(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    _, *taken = shards.stratified_split(targets, fractions, seed)
    for rows, fraction in zip(taken, fractions, strict=True):
        for number in set(targets):
            assert abs((targets[rows] == number).sum() - (targets == number).sum() * fraction) < 1


@unhurried
@given(TARGETS, FRACTIONS, st.integers(0, 2**32 - 1))
def test_a_split_is_a_function_of_its_seed(targets: np.ndarray, fractions: list[float], seed: int) -> None:
    one, two = (shards.stratified_split(targets, fractions, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_split_is_the_same_for_ever() -> None:
    left, taken = shards.stratified_split(np.array([0, 1] * 8), [0.25], 7)
    assert taken.tolist() == [1, 3, 4, 8]


def test_seeds_give_different_splits() -> None:
    targets = np.arange(300) % 3
    splits = {tuple(shards.stratified_split(targets, [0.2], seed)[1].tolist()) for seed in range(50)}
    assert len(splits) == 50


@unhurried
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    fractions=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_of_a_group_go_into_one_split(sizes: list[int], fractions: list[float], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 10, sizes))
    parts = shards.grouped_split(groups, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sum(len(set(groups[part].tolist())) for part in parts) == len(sizes)
    for part, fraction in zip(parts[1:], fractions, strict=True):
        assert len(part) <= fraction * len(groups) + max(sizes) / 2
    again = shards.grouped_split(groups, fractions, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


def test_groups_of_a_row_meet_the_fractions_by_another_draw_for_each_seed() -> None:
    drawn = [shards.grouped_split(np.arange(1000), [0.15, 0.2], seed) for seed in range(5)]
    assert all(list(map(len, parts)) == [650, 150, 200] for parts in drawn)
    assert len({tuple(val.tolist()) for _, val, _ in drawn}) == 5


def test_a_group_larger_than_a_fraction_is_left_to_train() -> None:
    groups = np.array([0] * 800 + list(range(1, 201)))
    for seed in range(20):
        left, val, test = shards.grouped_split(groups, [0.05, 0.1], seed)
        assert set(range(800)) <= set(left.tolist()) and (len(val), len(test)) == (50, 100)


def test_fractions_that_leave_nothing_to_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation_fraction and data.test_fraction are 1.1 together"):
        prepare(tmp_path, validation_fraction=0.6, test_fraction=0.5)


def test_a_class_too_rare_for_a_split_is_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the val split has no sample of class .*0: 0, .*fractions in `data`"):
        prepare(tmp_path, validation_fraction=0.001)
    assert not (tmp_path / "work").exists()


# Statistics


@unhurried
@given(arrays.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e297, 1e297)))
def test_sums_are_exact(values: np.ndarray) -> None:
    assert shards.exact_sum(values) == sum(map(Fraction, values.tolist()), Fraction(0))


@unhurried
@given(arrays.arrays(np.float32, (12, 2, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.randoms())
def test_statistics_do_not_depend_on_order_or_parts(inputs: np.ndarray, random: Any) -> None:
    order = random.sample(range(12), 12)
    whole, parts = shards.Moments(2), shards.Moments(2)
    whole.add(inputs)
    for part in np.array_split(inputs[order], random.randint(1, 12)):
        parts.add(part)
    assert whole.mean_and_std(1.0) == parts.mean_and_std(1.0)


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(5, 3, (500, 3, 7, 5)).astype(np.float32)
    moments = shards.Moments(3)
    moments.add(inputs)
    mean, std = moments.mean_and_std(2.0)
    np.testing.assert_allclose(mean, inputs.mean(axis=(0, 2, 3), dtype=np.float64) / 2, rtol=1e-12)
    np.testing.assert_allclose(std, inputs.std(axis=(0, 2, 3), dtype=np.float64) / 2, rtol=1e-12)


def test_bytes_have_the_statistics_of_the_same_floats() -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4)).astype(np.uint8)
    as_bytes, as_floats = shards.Moments(2), shards.Moments(2)
    as_bytes.add(inputs)
    as_floats.add(inputs.astype(np.float32))
    assert as_bytes.mean_and_std(255.0) == as_floats.mean_and_std(255.0)


def test_blocks_of_any_size_give_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4)).astype(np.uint8)
    results = set()
    for block in (1, 100, 1 << 22):
        monkeypatch.setattr(statistics, "BLOCK", block)
        moments = shards.Moments(2)
        moments.add(inputs)
        results.add(moments.mean_and_std(255.0))
    assert len(results) == 1


# Arrays


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ([0, 1], "4 inputs and 2 targets"),
        ([0, 1, 2, 0], "the target in row 2 of `train` is 2; with 2 names"),
        ([0, -1, 1, 0], "the target in row 1 of `train` is -1"),
        ([0, 0.5, 1, 0], "the target in row 1 of `train` is 0.5"),
        ([0, np.nan, 1, 0], "the target in row 1 of `train` is nan"),
        ([[0], [1], [0], [1]], r"shape \(4, 1\); with 2 names"),
        (["a", "b", "a", "b"], r"are <U1 of shape \(4,\); with 2 names"),
    ],
)
def test_targets_that_are_no_numbers_of_classes_are_refused(targets: list[Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        shards.from_arrays(np.zeros((4, 2), np.float32), np.array(targets), classes=["a", "b"])


# Preparing


def test_what_is_loaded_is_what_was_given_normalised(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    manifest = prepare(tmp_path)
    digits = load_digits()
    source = shards.from_arrays(digits.images[:, None].astype(np.uint8), digits.target, classes=manifest.classes)
    parts = shards.assign(source, config.Data.model_validate(SETTINGS))
    for name in SPLITS:
        split = shards.load_split(manifest, name, tmp_path / "work")
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
    whole = shards.normalise(manifest, stored)
    assert torch.equal(whole, torch.cat([shards.normalise(manifest, part) for part in stored.split(7)]))


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    manifest.save(tmp_path / "copy.json")
    assert Manifest.load(tmp_path / "copy.json") == manifest
    assert Manifest.load(tmp_path / "work" / "data" / manifest.store / "manifest.json") == manifest
    assert (manifest.spec.input_shape, manifest.spec.outputs, manifest.dtype) == ((1, 8, 8), 10, "uint8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "", "not a manifest"),
        (lambda text: text[:-100], "not a manifest"),
        (lambda text: text.replace('"scale": 16.0', '"scale": 17.0'), "its digest is not"),
        (lambda text: json.dumps(json.loads(text) | {"mean": [0.5]}), "its digest is not"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(spoil: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.json"
    prepare(tmp_path).save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=message):
        Manifest.load(path)


def test_a_lost_manifest_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest; run preprocess again"):
        Manifest.load(tmp_path / "none.json")


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def _swap(path: Path) -> None:
    path.write_bytes(next(p for p in sorted(path.parent.glob("*.safetensors")) if p != path).read_bytes())


DAMAGE = [Path.unlink, _cut_off, _flip, _swap, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_never_trained_on(damage: Callable[[Path], None], tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    path = files(manifest, tmp_path)[1]
    damage(path)
    with pytest.raises(DataError, match=f"{path.name}: the shard is damaged or missing; run preprocess again"):
        shards.load_split(manifest, "train", tmp_path / "work")
    shards.load_split(manifest, "test", tmp_path / "work")


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_what_is_missing_or_damaged_is_made_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    manifest = prepare(tmp_path)
    paths = files(manifest, tmp_path)
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in paths}
    damage(paths[1])
    assert prepare(tmp_path) == manifest
    after = {path: (path.stat().st_ino, path.read_bytes()) for path in paths}
    assert [path for path in paths if before[path][1] != after[path][1]] == []
    assert [path for path in paths if before[path][0] != after[path][0]] in ([paths[1]], [])
    assert all(before[path][0] == after[path][0] for path in paths if path != paths[1])
    shards.load_split(manifest, "train", tmp_path / "work")


def test_an_interrupted_preparation_with_another_shard_size_leaves_nothing(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, shard_samples=90)
    (tmp_path / "work" / "data" / manifest.store / "manifest.json").unlink()
    again = prepare(tmp_path)
    assert (again.digest, again.store) == (manifest.digest, manifest.store)
    assert sorted(files(again, tmp_path)) == sorted((tmp_path / "work").rglob("*.safetensors"))


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


def test_progress_is_plain_lines_where_nobody_watches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "workflow_lib.shards")
    manifest = prepare(tmp_path)
    prepare(tmp_path)
    first = f"digits: train samples 0 to 200 written (1 of {len(manifest.shards)} shards)"
    assert [record.message for record in caplog.records].count(first) == 1
    assert f"0 of {len(manifest.shards)} shards written" in caplog.records[-1].message


# A data set outside the package, whose reading can be watched


USERS = """
from pathlib import Path

from workflow_lib.plugins import Section


class Params(Section):
    pass


def note(text):
    with Path("asked").open("a") as file:
        file.write(f"{text} ")


def open_source(params, root):
    import numpy as np
    from workflow_lib import shards

    def read(split, rows):
        READING

    return shards.Source(
        targets={"train": np.arange(90) % 3}, read=read, classes=("a", "b", "c"), scale=2.0, content="v1"
    )
"""
FLOATS = "return (rows[:, None] * [[0.1, 0.2]]).astype('float32')"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Writes a person's data set, whose `read` has this body; gives its settings."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{tmp_path.name}"
    (tmp_path / name).mkdir()

    def write(reading: str, text: str = USERS) -> dict[str, Any]:
        (tmp_path / name / "data.py").write_text(text.replace("READING", reading))
        sys.modules.pop(f"{name}.data", None)
        return {"name": f"{name}.data", "shard_samples": 20}

    return write


def test_a_persons_data_set_is_one_file(mine: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    manifest = shards.prepare(mine(FLOATS), tmp_path, tmp_path / "work")
    assert (manifest.spec.input_shape, manifest.dtype, manifest.classes) == ((2,), "float32", ("a", "b", "c"))
    inputs = shards.load_split(manifest, "train", tmp_path / "work").inputs
    assert inputs.mean(dim=0).abs().max() < 1e-6
    assert (inputs.std(dim=0, correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ("return rows[:, None]", "gave int64 of shape"),
        ("return rows.astype('uint8')", "gave uint8 of shape"),
        ("return np.zeros((3, 2), 'uint8')", r"inputs are uint8 or float32 of shape \(1, channels"),
        ("return np.zeros((len(rows), 2 + (rows[0] > 0)), 'uint8')", "all inputs have one shape"),
        ("return np.where(rows == 33, np.nan, 0)[:, None].astype('float32')", "row 33 of `train` has NaN"),
        ("return np.zeros((len(rows), 0), 'uint8')", r"gave uint8 of shape \(1, 0\); inputs are"),
        ("return rows[:, None].astype(object)", r"gave object of shape \(1, 1\); inputs are"),
        ("return rows[:, None].astype('>f4')", r"gave >f4 of shape \(1, 1\); inputs are"),
        ("return [[1.0], [1.0, 2.0]]", "gave a list; inputs are uint8 or float32"),
        ("return None", "gave None; inputs are uint8 or float32"),
        ("return {}['x']", r"read\(\) failed: KeyError: 'x' \(.*data.py:\d+\)"),
    ],
)
def test_a_data_set_that_reads_nonsense_is_refused(
    reading: str, message: str, mine: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine(reading)
    with pytest.raises(UserError, match=f"data set `{settings['name']}`: .*{message}"):
        shards.prepare(settings, tmp_path, tmp_path / "work", threads=2)
    assert list((tmp_path / "work").rglob("manifest.json")) == []


FAULTY = """
from workflow_lib.plugins import Section


class Params(Section):
    pass


def open_source(params, root):
    import numpy as np
    from workflow_lib.shards import Source, from_arrays

    inputs, targets = np.zeros((90, 2), "float32"), np.arange(90) % 3

    def source(**fields):
        good = {"targets": {"train": targets}, "read": lambda split, rows: inputs[rows], "classes": ("a", "b", "c")}
        return Source(**(good | fields))

    READING
"""


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        ("return source()", ""),
        ("pass", "open_source() gave None; it is to give a Source of workflow_lib.shards"),
        ("return inputs", "open_source() gave float32 of shape (90, 2); it is to give a Source"),
        ("raise ValueError('no such\\n  ward')", "open_source() failed: ValueError: no such ward ("),
        ("return source(targets=None)", "Source.targets is given for None; it has `train`"),
        ("return source(targets={'val': targets})", "Source.targets is given for ['val']; it has `train`"),
        ("return source(targets={'train': targets, 'tune': targets})", "Source.targets is given for ['train', 'tune']"),
        ("return source(targets={'train': targets.tolist()})", "the targets of `train` are a list; allowed: an array"),
        ("return source(targets={'train': targets.astype(str)})", "the targets of `train` are <U21 of shape (90,)"),
        ("return source(targets={'train': targets.astype(object)})", "the targets of `train` are object of shape"),
        ("return source(targets={'train': targets * 1j})", "the targets of `train` are complex128 of shape (90,)"),
        (
            "return source(targets={'train': targets[:, None]})",
            "the targets of `train` are int64 of shape (90, 1); with 3",
        ),
        ("return source(targets={'train': targets, 'val': targets + 1})", "the target in row 2 of `val` is 3; with 3"),
        ("return source(targets={'train': targets[:0]})", "the train split has no sample of class `a`, `b`, `c`"),
        ("return source(classes=range(3))", "Source.classes is range(0, 3); allowed: a tuple of str"),
        ("return source(classes=('a',))", "Source.classes is ('a',); a classification needs the names of at least two"),
        ("return source(files=['x.csv'])", "Source.files is ['x.csv']; allowed: a tuple of SourceFile"),
        ("return source(content=b'x')", "Source.content is b'x'; allowed: a str"),
        ("return source(scale=0)", "Source.scale is 0; allowed: a number above 0"),
        ("return source(groups=targets[:5])", "Source.groups is int64 of shape (5,); it has a number for each of 90"),
        ("return source(read=None)", "read() failed: TypeError: 'NoneType' object is not callable ("),
        ("return source(close=lambda: 1 / 0)", "close() failed: ZeroDivisionError: division by zero ("),
        ("return from_arrays(inputs.tolist(), targets, classes='abc')", "from_arrays got a list; inputs are uint8 or"),
        ("return from_arrays(inputs * 1j, targets, classes='abc')", "from_arrays got complex64 of shape (90, 2); inp"),
        ("return from_arrays(inputs[:, :0], targets, classes='abc')", "from_arrays got float32 of shape (90, 0); inp"),
    ],
)
def test_a_data_set_that_gives_nonsense_is_refused(
    opening: str, message: str, mine: Callable[[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine(opening, FAULTY)
    with pytest.raises(UserError) if message else nullcontext() as refused:
        shards.prepare(settings, tmp_path, tmp_path / "work")
    if message:
        said = str(refused.value)
        assert f"data set `{settings['name']}`: {message}" in said and len(said.splitlines()) == 1


def test_the_log_ends_with_what_a_data_set_raised_and_where(
    mine: Callable[[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine("return {}['ward']", FAULTY)
    (tmp_path / "one.yaml").write_text(f"name: one\ndata: {{name: {settings['name']}}}\n")
    data_id = plan.data_id(config.Data(name=settings["name"]))
    command = ["preprocess", "--experiment", "one.yaml", "--data", data_id, "--output", "data.json"]
    failed = subprocess.run(
        [sys.executable, "-m", "workflow_lib", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    file = tmp_path / settings["name"].replace(".", "/")
    line = 1 + (lines := file.with_suffix(".py").read_text().splitlines()).index("    return {}['ward']")
    assert len(lines) >= line and failed.returncode == UserError.exit_code
    said = f"data set `{settings['name']}`: open_source() failed: KeyError: 'ward' ({file}.py:{line})"
    assert failed.stderr.splitlines()[-1] == f"everstep preprocess: {said}"
    assert "Traceback (most recent call last)" in failed.stderr


def test_a_constant_channel_is_only_shifted(mine: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    settings = mine("return np.full((len(rows), 1), 7, 'uint8')")
    manifest = shards.prepare(settings, tmp_path, tmp_path / "work")
    assert (manifest.mean, manifest.std) == ((3.5,), (1.0,))
    assert shards.load_split(manifest, "val", tmp_path / "work").inputs.unique().tolist() == [0]


def test_other_code_of_a_data_set_never_gets_its_old_shards(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    one = shards.prepare(mine(FLOATS), tmp_path, tmp_path / "work")
    two = shards.prepare(mine(FLOATS.replace("0.1", "0.3")), tmp_path, tmp_path / "work")
    three = shards.prepare(mine(FLOATS + "  # as before"), tmp_path, tmp_path / "work")
    assert len({one.store, two.store, three.store}) == 3
    assert one.digest == three.digest != two.digest


def test_other_code_of_what_a_data_set_imports_never_gets_its_old_shards(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine("from .helper import values; return values(rows)")
    helper = tmp_path / settings["name"].partition(".")[0] / "helper.py"
    manifests = []
    for factor in ("0.1", "0.3"):
        helper.write_text(f"def values(rows):\n    {FLOATS.replace('0.1', factor)}\n")
        sys.modules.pop(f"{helper.parent.name}.helper", None)
        manifests.append(shards.prepare(settings, tmp_path, tmp_path / "work"))
        assert shards.prepare(settings, tmp_path, tmp_path / "work") == manifests[-1]
    assert manifests[0].store != manifests[1].store and manifests[0].digest != manifests[1].digest


def test_only_the_rows_of_a_shard_are_in_memory(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards.prepare(mine(f"note(len(rows)); {FLOATS}"), Path(), Path("work"))
    assert max(map(int, Path("asked").read_text().split())) == 20


DEADLY = """import os, signal
        if rows[0] > 40 and not Path('asked').exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if Path('asked').exists():
            note('read')
        """


def test_a_killed_preparation_costs_one_shard(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = mine(DEADLY + FLOATS)
    code = f"import pathlib, workflow_lib.shards as s; s.prepare({settings}, pathlib.Path(), pathlib.Path('work'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, "-c", code], env=environment)
    assert died.returncode == -signal.SIGKILL
    done = len(list(Path("work").rglob("*.safetensors")))
    assert done >= 1 and not list(Path("work").rglob("manifest.json"))

    Path("asked").touch()
    manifest = shards.prepare(settings, Path(), Path("work"))
    probe, *made = Path("asked").read_text().split()
    assert len(made) == len(manifest.shards) - done


def test_processes_that_prepare_the_same_data_agree(tmp_path: Path) -> None:
    settings = SETTINGS | {"shard_samples": 100}
    code = (
        "import logging, pathlib, sys, workflow_lib.shards as s; logging.basicConfig(level='INFO', stream=sys.stderr); "
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
        told = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    (manifest,) = (Manifest.model_validate_json(text) for text in {output for output, _ in told})
    assert sum(log.count("samples") for _, log in told) == len(manifest.shards)
    assert sorted(files(manifest, tmp_path)) == sorted((tmp_path / "work").rglob("*.safetensors"))
    assert [path for path in (tmp_path / "work").rglob("*") if path.name.endswith(".tmp")] == []


# The verb


def test_preprocess_writes_the_manifest_of_a_planned_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("name: one\nsweep: {grid: {data.split_seed: [0, 1]}}\n")
    experiment = config.load([Path("one.yaml")])
    first, second = (run.data_id for run in plan.expand(experiment))
    for data_id in (first, second):
        shards.preprocess(experiment, data_id, Path("work"), Path(f"{data_id}.json"))
    assert Manifest.load(Path(f"{first}.json")).data["split_seed"] == 0
    assert Manifest.load(Path(f"{second}.json")).data["split_seed"] == 1
    with pytest.raises(ConfigError, match=f"has no data digits-0; it has .*{first}"):
        shards.preprocess(experiment, "digits-0", Path("work"), Path("none.json"))


def test_a_closed_source_was_used_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert events.count("close") == 1 and events[-1] == "close" and events.count("read") > math.ceil(1797 / 200)


def _example(package: str) -> str:
    """The code in the docstring of a package."""
    lines = (ast.get_docstring(ast.parse(Path(package).read_text())) or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def test_the_examples_in_the_docstrings_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from workflow_lib import data, models, plugins

    package = tmp_path / f"examples_{tmp_path.name}"
    package.mkdir()
    for name, module in (("data", data), ("models", models)):
        (package / f"{name}.py").write_text(_example(str(module.__file__)))
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"name": f"{package.name}.data", "params": {"noise": 0.2}}
    manifest = shards.prepare(settings, tmp_path, tmp_path / "work")
    plugin = plugins.load("models", f"{package.name}.models")
    network = plugin.build(plugin.Params(width=8), manifest.spec)
    assert network(shards.load_split(manifest, "val", tmp_path / "work").inputs).shape == (135, 3)
    assert isinstance(network, torch.nn.Module)

"""Experiments and runs are frozen under their digest, found again by name, and never changed."""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.plan.conftest import experiment
from tests.support.repository import ROOT
from workflow_lib import config, files, plan
from workflow_lib.errors import ConfigError

pytestmark = pytest.mark.usefixtures("folder")


def test_a_frozen_experiment_loads_to_the_same_experiment(folder: Path) -> None:
    experiment = config.load([ROOT / "config" / "config.yaml"], ["labels.who='Zoë 漢'"])
    path = plan.freeze_experiment(experiment, folder / "work")
    assert config.load([path]) == experiment
    assert path.parent == folder / "work" / "experiments"


def test_a_frozen_experiment_is_written_once(folder: Path) -> None:
    path = plan.freeze_experiment(experiment(), folder / "work")
    before = path.stat()
    assert plan.freeze_experiment(experiment(seed=0), folder / "work") == path
    assert path.stat().st_ino == before.st_ino
    assert plan.freeze_experiment(experiment(runtime={"threads": 2}), folder / "work") != path


@pytest.mark.parametrize("text", ['{"name": "a", "name": "b"}', '{"name": "a", "seed": NaN}', '{"name": "a"'])
def test_json_is_read_as_strictly_as_yaml(text: str) -> None:
    Path("x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^x\.json: "):
        config.load([Path("x.json")])


def test_a_frozen_run_is_found_by_each_of_its_names(folder: Path) -> None:
    run, other = plan.expand(experiment(sweep={"grid": {"model.name": ["cnn", "mlp"]}}))
    work = folder / "work"
    for each in (run, other):
        assert plan.freeze(each.config, work) == work / "runs" / each.digest / "config.json"
    files.write_json(folder / "best.json", {"run": {"digest": run.digest}})
    for name in (run.id, run.digest, run.digest[:12], run.digest[:20], str(folder / "best.json")):
        assert plan.load_run(name, work) == (run.config, run.digest)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a-000000000000", "no such run"),
        ("tuned", "is not a run"),
        ("abc", "is not a run"),
        ("nowhere.json", "cannot be read"),
        ("empty.json", "does not point to a run"),
        ("torn.json", "does not point to a run"),
    ],
)
def test_a_reference_to_no_run_is_explained(folder: Path, name: str, said: str) -> None:
    plan.freeze(plan.base(experiment()), folder / "work")
    (folder / "empty.json").write_text("{}")
    (folder / "torn.json").write_text('{"run": {"dig')
    with pytest.raises(ConfigError, match=said) as rejected:
        plan.load_run(name, folder / "work")
    assert name in str(rejected.value)


def test_a_frozen_run_is_never_written_again(folder: Path) -> None:
    path = plan.freeze(plan.base(experiment()), folder)
    before = path.stat()
    plan.freeze(plan.base(experiment(data={"shard_samples": 7})), folder)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"stages": {"preprocess": 1, "train": 99}}, {"extra": 1}, {"seed": "x"}]
)
def test_an_edited_frozen_run_is_rejected(folder: Path, change: dict[str, Any]) -> None:
    run = plan.base(experiment())
    path = plan.freeze(run, folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for use in (lambda: plan.freeze(run, folder), lambda: plan.load_run(path.parent.name, folder)):
        with pytest.raises(ConfigError, match=str(path)):
            use()


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '"x"', '{"seed": 0, "da'])
def test_a_frozen_run_with_other_content_is_rejected_with_advice(folder: Path, content: str) -> None:
    path = plan.freeze(plan.base(experiment()), folder)
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"^{path}: not .*Delete the file and run the pipeline again") as rejected:
        plan.load_run(path.parent.name, folder)
    assert str(rejected.value).count(str(path)) == 1


def test_a_run_frozen_before_a_stage_was_raised_still_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = plan.base(experiment())
    plan.freeze(old, folder)
    monkeypatch.setitem(plan.STAGES, "train", plan.STAGES["train"] + 1)
    new = plan.base(experiment())
    assert plan.run_digest(new) != plan.run_digest(old)
    assert plan.load_run(plan.run_digest(old), folder)[0] == old


@pytest.mark.parametrize("torn", [b"", b'{"seed": 0, "da', b"\xff\x00\xfe", b"[" * 100_000])
def test_a_frozen_run_that_a_power_loss_truncated_is_frozen_again(folder: Path, torn: bytes) -> None:
    run = plan.base(experiment())
    path = plan.freeze(run, folder)
    whole = path.read_bytes()
    path.write_bytes(torn)
    plan.freeze(run, folder)
    assert path.read_bytes() == whole


def _freeze_all(work: str) -> list[str]:
    runs = plan.expand(experiment(sweep={"grid": {"seed": list(range(20))}}))
    return [str(plan.freeze(run.config, Path(work))) for run in runs]


def test_processes_can_freeze_the_same_runs_at_once(folder: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        one, two = pool.map(_freeze_all, [str(folder)] * 2, chunksize=1)
    assert one == two
    assert all(plan.load_run(Path(path).parent.name, folder) for path in one)
    assert {len(os.listdir(Path(path).parent)) for path in one} == {1}

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.receivers import web_server
from tests.trackers.contract import Points, TrackerContract, curve, row, write
from workflow_lib import config, plan, tracking
from workflow_lib.errors import EverstepError
from workflow_lib.trackers import wandb
from workflow_lib.tracking import copying


def rows_in(folder: Path, run: str) -> list[dict[str, Any]]:
    """Return the rows in the file that `wandb sync` sends: records in blocks of 32 KiB, as in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in (folder / "wandb/demo" / run).glob("wandb/offline-run-*/run-*.wandb"):
        content, position, record = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            _, size, kind = struct.unpack_from("<IHB", content, position)
            record += content[position + 7 : position + 7 + size]
            position += 7 + size
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            if kind not in (1, 4):  # neither whole nor the last part
                continue
            history, record = Record.FromString(record).history, b""
            if history.item:
                rows.append(
                    {item.key or "|".join(item.nested_key): json.loads(item.value_json) for item in history.item}
                )
    return rows


def in_wandb(folder: Path, run: str) -> Points:
    points: Points = {}
    for items in rows_in(folder, run):
        for name in items.keys() & {"epoch", "lr", "val_loss", "step_lr", "step_train_loss", "gradient_norm"}:
            points.setdefault((name, items["_step"]), []).append(items[name])
    return points


class TestWandB(TrackerContract):
    name = "wandb"

    def read(self, folder: Path, run: str) -> Points:
        return in_wandb(folder, run)

    def media(self, folder: Path, run: str) -> list[tuple[int, list[int], int]]:
        (files,) = (folder / "wandb/demo" / run).glob("wandb/offline-run-*/files")
        return [
            (items["_step"], items["gradients/w|values"], items["inputs|width"])
            for items in rows_in(folder, run)
            if "inputs|path" in items and (files / items["inputs|path"]).exists()
        ]

    def test_an_offline_run_without_its_note_is_written_again(self, folder: Path) -> None:
        write("wandb", folder, curve(row(1), row(2)))
        (folder / "wandb/demo/demo-a/written.json").unlink()
        write("wandb", folder, curve(row(1), row(2)))
        assert in_wandb(folder, "demo-a") == self.expected(row(1), row(2))

    def test_a_row_has_the_time_at_which_it_was_measured(self, folder: Path) -> None:
        write("wandb", folder, curve(row(1), row(2)))
        assert [items["_timestamp"] for items in rows_in(folder, "demo-a")] == [1e9 + 60, 1e9 + 120]


def records(folder: Path) -> list[Any]:
    """Return the records of the only run in the folder, which must be smaller than a block."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("**/run-*.wandb")
    content, position, found = path.read_bytes(), 7, []
    while position + 7 <= len(content):
        _, size, kind = struct.unpack_from("<IHB", content, position)
        assert kind == 1
        found.append(Record.FromString(content[position + 7 : position + 7 + size]))
        position += 7 + size
    return found


def test_project_and_entity_are_those_of_the_settings_and_another_place_writes_again(tmp_path: Path) -> None:
    small = replace(curve(row(1)), settings={})
    for settings in ({}, {"project": "digits", "entity": "team"}, {"project": "digits", "entity": "team"}):
        with tracking.open_tracker("wandb", tmp_path, settings) as tracker:
            tracker.write(small)
        (run,) = [record.run for record in records(tmp_path) if record.HasField("run")]
        assert (run.project, run.entity) == (settings.get("project", "demo"), settings.get("entity", ""))


@pytest.mark.parametrize(
    ("key", "statuses", "is_silent", "said"),
    [
        (None, (), False, "No API key"),
        ("a" * 40, (401,) * 9, False, "http://.*: .*returned error 401"),
        ("a" * 40, (), True, "http://.*: .*context deadline exceeded"),
    ],
)
def test_online_without_a_key_or_an_answer_ends_in_one_message_and_no_rows_are_taken_for_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    statuses: tuple[int, ...],
    is_silent: bool,
    said: str,
) -> None:
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")  # restored after the test
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(wandb, "FIRST_ANSWER_S", 1.0)
    with web_server(*statuses, is_silent=is_silent) as web:
        monkeypatch.setenv("WANDB_BASE_URL", web.url)
        with tracking.open_tracker("wandb", tmp_path, {"mode": "online"}) as tracker:
            with pytest.raises(EverstepError, match=rf"^wandb cannot write .*demo-a: .*{said}.*\. No training is"):
                copying._copy(curve(row(1)), {"wandb": tracker})
    assert not list(tmp_path.glob("**/written.json"))


def test_the_place_of_the_copies_is_in_no_digest_at_its_default_nor_in_that_of_a_run() -> None:
    plain = config.load([{"name": "a"}])
    placed = config.load([{"name": "a", "tracking": {"wandb": {"project": "digits", "mode": "online"}}}])
    assert "wandb" not in config.identity(plain.tracking)
    assert [run.digest for run in plan.expand(plain)] == [run.digest for run in plan.expand(placed)]

from __future__ import annotations

import json
import struct
from pathlib import Path

from tests.trackers.contract import Points, TrackerContract, curve, row, write


def in_wandb(folder: Path, run: str) -> Points:
    """Return the points in the file that `wandb sync` sends: records in blocks of 32 KiB, as in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
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
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
            for name in items.keys() & {"epoch", "lr", "val_loss", "step_lr", "step_train_loss"}:
                points.setdefault((name, items["_step"]), []).append(items[name])
    return points


class TestWandB(TrackerContract):
    name = "wandb"

    def read(self, folder: Path, run: str) -> Points:
        return in_wandb(folder, run)

    def test_an_offline_run_without_its_note_is_written_again(self, folder: Path) -> None:
        write("wandb", folder, curve(row(1), row(2)))
        (folder / "wandb/demo/demo-a/written.json").unlink()
        write("wandb", folder, curve(row(1), row(2)))
        assert in_wandb(folder, "demo-a") == self.expected(row(1), row(2))

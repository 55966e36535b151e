"""W&B: `tracking/wandb/<experiment>/<run>/wandb/`, offline runs, which `wandb sync` uploads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import final

from workflow_lib import config
from workflow_lib.files import read_json, write_json
from workflow_lib.tracking import Curve, Tracker

REQUIRES = ("wandb",)


def open_tracker(folder: Path) -> Tracker:
    """Return the tracker of the offline runs in the folder."""
    return WandB(folder)


@final
class WandB(Tracker):
    """Offline runs cannot be appended to, so each is written as a whole; written.json beside it lists its rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = (folder / "wandb").absolute()
        private = {
            name: str(self._folder / ".private") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
        }
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false", **private)

    def write(self, curve: Curve) -> int:
        """Replace the offline run, unless it was written completely and has the same rows."""
        import wandb

        folder = self._folder / curve.experiment / curve.id
        rows = [config.digest(row, "row") for row in (*curve.rows, *curve.log)]
        note = {"name": curve.name, "rows": rows, "is_finished": curve.is_finished}
        before = read_json(folder / "written.json", *note) if (folder / "written.json").exists() else {"rows": []}
        if before == note:
            return 0
        (folder / "written.json").unlink(missing_ok=True)  # first: if this write is killed, the next one replaces it
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
        run = wandb.init(
            project=curve.experiment,
            id=curve.name,
            name=curve.id,
            dir=folder,
            config=curve.settings,
            settings=wandb.Settings(console="off", **quiet),
        )
        for point in curve.points:
            run.log(point.metrics, step=point.step)
        run.finish()
        write_json(folder / "written.json", note)
        return sum(row not in before["rows"] for row in rows)

    def close(self) -> None:
        """Stop W&B's background process."""
        import wandb

        wandb.teardown()

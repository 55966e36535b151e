"""W&B: `tracking/wandb/<experiment>/<run>/wandb/`, offline runs for `wandb sync`, or online ones."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any, Literal, final

from workflow_lib import config
from workflow_lib.files import read_json, write_json
from workflow_lib.results.summaries import Summary
from workflow_lib.tracking import Curve, Tracker

REQUIRES = ("wandb",)
FIRST_ANSWER_S = 20.0  # of the server, unless WANDB_INIT_TIMEOUT is set
UPLOAD_S = 600.0  # of the rest of a run, after its last row


def open_tracker(
    folder: Path, project: str | None = None, entity: str | None = None, mode: Literal["offline", "online"] = "offline"
) -> Tracker:
    """Return the tracker of the runs in the folder, for a project and an entity of W&B."""
    return WandB(folder, project, entity, mode)


@final
class WandB(Tracker):
    """Runs are written as a whole, since offline ones cannot be appended to; written.json beside one lists its rows.

    A run that is online has the same id each time, and the server keeps the rows that it has: those that come again,
    which are equal, are ignored there.
    """

    def __init__(
        self, folder: Path, project: str | None, entity: str | None, mode: Literal["offline", "online"]
    ) -> None:
        self._folder, self._project, self._entity, self._mode = (folder / "wandb").absolute(), project, entity, mode
        names = ["WANDB_CACHE_DIR", "WANDB_DATA_DIR"]
        if mode == "offline":  # online, the user's file says which server
            names.append("WANDB_CONFIG_DIR")
        private = {name: str(self._folder / ".private") for name in names}
        os.environ.update(WANDB_MODE=mode, WANDB_SILENT="true", WANDB_ERROR_REPORTING="false", **private)

    def write(self, curve: Curve) -> int:
        """Replace the copy of the run, unless it was written completely and has the same rows."""
        import wandb

        folder = self._folder / curve.experiment / curve.id
        rows = [config.digest(row, "row") for row in (*curve.rows, *curve.log)]
        project = self._project or curve.experiment
        rows += [config.digest([found.step, found.size, found.time_s], "summary") for found in curve.recorded]
        note: dict[str, Any] = {"name": curve.name, "rows": rows, "is_finished": curve.is_finished}
        if self._project or self._entity or self._mode == "online":  # copies of before have no such place
            note["place"] = [self._mode, self._entity, project]
        written = folder / "written.json"
        before = read_json(written, "name", "rows", "is_finished") if written.exists() else {"rows": []}
        if before == note:
            return 0
        written.unlink(missing_ok=True)  # first: if this write is killed, the next one replaces it
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
        if self._mode == "online":
            settings |= _timeouts()
        try:
            self._send(curve, project, folder, settings)
        except wandb.errors.CommError as error:  # its cause is on a second line
            server = wandb.setup().settings.base_url
            raise ConnectionError(f"{server}: {' '.join(str(error).split())}") from error
        write_json(written, note)
        return sum(row not in before["rows"] for row in rows)

    def _send(self, curve: Curve, project: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        run = wandb.init(
            project=project,
            entity=self._entity,
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            id=curve.name,
            name=curve.id,
            dir=folder,
            config=curve.settings,
            settings=wandb.Settings(console="off", **settings),
        )
        for point in curve.points:
            media = _media(point.recorded.read()) if point.recorded else {}
            run.log({**point.metrics, **media, "_timestamp": point.time_s}, step=point.step)
        run.finish()

    def close(self) -> None:
        """Stop W&B's background process."""
        import wandb

        wandb.teardown()


def _timeouts() -> dict[str, Any]:
    """Return the settings that end the copy when a server does not answer, which W&B would wait for, also for ever."""
    first = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": FIRST_ANSWER_S}
    return first | {"finish_timeout": UPLOAD_S, "finish_timeout_raises": True}


def _media(summary: Summary) -> dict[str, Any]:
    """Return the histograms and the images of a summary as W&B takes them."""
    import numpy as np
    import wandb
    from PIL import Image

    histograms = {
        name: wandb.Histogram(np_histogram=(np.array(found.counts), np.array(found.edges)))
        for name, found in summary.histograms.items()
    }
    images = {name: wandb.Image(Image.open(io.BytesIO(content))) for name, content in summary.images.items()}
    return histograms | images

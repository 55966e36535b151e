"""What a finished run hands out: weights, history and, last, the statement that the rules wait for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import checkpoint, plugins, provenance
from workflow_lib.checkpoint import Checkpoint
from workflow_lib.config.parts import METRICS
from workflow_lib.files import write_atomic, write_json
from workflow_lib.runtime import workspace as ws

if TYPE_CHECKING:
    from workflow_lib.rank import Job
    from workflow_lib.training.state import Row


def write(sealed: Checkpoint, job: Job, data: Path, output: Path) -> None:
    """Weights, history and, last, the statement of a finished run."""
    sys.audit("everstep", "outputs")
    state = checkpoint.read_state(sealed)["progress"]
    model = checkpoint.whole(sealed, "best") or checkpoint.whole(sealed, "model") or b""
    write_atomic(output.with_name("model.safetensors"), model)
    write_atomic(output.with_name("history.csv"), _csv(state["history"], job.manifest.task))
    attempts = ws.list_attempts(job.workspace)
    sys.audit("everstep", "statement")
    write_json(
        output,
        {
            "run": job.digest[:12],
            "digest": job.digest,
            "data": job.manifest.digest,
            "sealed": str(sealed.path),
            "exact": sealed.about["exact"],
            "steps": sealed.step,
            "epochs": len(state["history"]),
            "best": {
                "metric": job.run.training.select_metric,
                "value": state["best"][job.run.training.select_metric],
                "epoch": state["best"]["epoch"],
                "step": state["best"]["step"],
            },
            "final": state["history"][-1],
            "model": checkpoint.digest(model),
            "parameters": sealed.about["parameters"],
            "seconds": round(sum(one.seconds or 0.0 for one in attempts), 3),
            "attempts": len(attempts),
            "environment": sealed.about["environment"],
            "provenance": provenance.made_by([job.work / "runs" / job.digest / "config.json", data]),
        },
    )


def _csv(history: list[Row], task: plugins.Task) -> str:
    """The curve as a table; numbers read back exactly."""
    columns = ("epoch", "step", "lr", *METRICS[task])
    lines = [",".join(columns), *(",".join(repr(row[name]) for name in columns) for row in history)]
    return "\n".join(lines) + "\n"

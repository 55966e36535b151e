"""Copies of learning curves for other tools, made by a process of its own; a training knows nothing of it.

Only committed rows are copied: those of a run's newest checkpoint, which a crash cannot take back. A tracker reads from
its own copy what that copy holds already, so no point is written twice, whichever process is killed when. If a run
resumes from an older checkpoint, its copy loses the later rows; if the new rows differ, the copy is replaced.
"""

from workflow_lib.tracking.copying import check_installed, track
from workflow_lib.tracking.curves import Curve, Point, Row
from workflow_lib.tracking.tracker import Tracker, load, open_tracker

__all__ = ["Curve", "Point", "Row", "Tracker", "check_installed", "load", "open_tracker", "track"]

"""Copies learning curves to other tools, in a process of its own; training does not depend on it.

Only committed rows are copied: those in a run's newest checkpoint, which a crash cannot undo. A tracker first reads
which rows its copy already has, so no point is written twice, whenever a process is killed. If the run no longer has
some of these rows, because it resumed from an older checkpoint, the copy is replaced.
"""

from workflow_lib.tracking.copying import check_installed, track
from workflow_lib.tracking.curves import Curve, Point, Recorded, Row, curves
from workflow_lib.tracking.tracker import Tracker, load, open_tracker

__all__ = ["Curve", "Point", "Recorded", "Row", "Tracker", "check_installed", "curves", "load", "open_tracker", "track"]

"""Facts about data that is prepared already, so that settings and models are checked with them before a training.

A manifest counts only while nothing has changed since it was written: neither the files of the data nor the code that
reads them. Otherwise the data may get other shapes when it is prepared again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from workflow_lib import plugins
from workflow_lib.config.run import Data
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.plan.naming import data_id
from workflow_lib.results import layout


def manifest_path(data: Data, root: Path) -> Path | None:
    """Return the newest manifest of the data in any experiment, or None if there is none that counts."""
    name = data_id(data)
    times: dict[Path, int] = {}
    for path in layout.all_manifests(root / layout.RESULTS):
        with suppress(FileNotFoundError):  # a pipeline is about to write it again
            if path.stem == name:
                times[path] = path.stat().st_mtime_ns
    newest = max(times, key=times.__getitem__, default=None)
    if newest is None or any(time > times[newest] for time in _changes(data, root)):
        return None
    return newest


def completed(known: plugins.DatasetFacts, manifest: Path) -> plugins.DatasetFacts:
    """Return the facts, completed by those in a manifest."""
    try:
        found = read_json(manifest)
        shape, classes, outputs = found["input_shape"], len(found["classes"]), len(found["target_mean"])
        samples = found["splits"]["train"]["samples"]
    except UNREADABLE:  # removed just now, damaged, or of another version: it is prepared again
        return known
    if known.inputs == "images" and len(shape) == 3:
        known = replace(known, channels=shape[0], size=tuple(shape[1:]))
    return replace(known, classes=classes or None, outputs=outputs or known.outputs, training_samples=samples)


def _changes(data: Data, root: Path) -> Iterator[int]:
    """Yield the times at which the files of the data and its code were changed last, in nanoseconds."""
    code = plugins.code(plugins.load("data", data.name)).texts
    modules = (find_spec(name) for name in code)
    places = [Path(spec.origin) for spec in modules if spec is not None and spec.origin is not None]
    for place in (*places, *(root / path for path in plugins.named_files("data", data.name, data.params).values())):
        inside = [Path(at, name) for at, _, names in os.walk(place) for name in (".", *names)]
        for path in inside or [place.resolve()]:
            with suppress(FileNotFoundError):  # a temporary file
                yield path.lstat().st_mtime_ns

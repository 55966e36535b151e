"""The differences between two runs or experiment files: settings, where they were set, and lines of code."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_lib import config
from workflow_lib.config import sweep
from workflow_lib.config.consistency import name_problem
from workflow_lib.config.identity import canonical
from workflow_lib.config.yaml import Origins
from workflow_lib.plan import expand, load_run, stages, study_id, user_code
from workflow_lib.plan.user_code import CodeRecord
from workflow_lib.store import code_record, layout
from workflow_lib.text import aligned, count, flatten

CELL = 40  # characters of a setting that are shown


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: its settings by dotted name, where they were set if that is known, and its runs."""

    title: str
    settings: dict[str, Any]
    origins: Origins
    runs: frozenset[str]
    study: str | None = None
    code: CodeRecord = field(default_factory=dict)  # as user_code.kept returns it; empty if unknown


def explain(a: str, b: str | None, work: Path) -> str:
    """Return the settings and lines of code that differ between two runs or experiment files, and whether they matter.

    Without a second one, the code that trained the run is compared with the current code.
    """
    one = _side(a, work)
    two = _side(b, work) if b is not None else _now(a, work)
    names = dict.fromkeys([*one.settings, *two.settings])
    if not (one.origins.entries and two.origins.entries):
        names = dict.fromkeys(name for name in names if _is_of_a_run(name))
    different = [name for name in names if _shown(one, name) != _shown(two, name)]
    groups = (
        ("These settings change the result:", [name for name in different if _matters(name)]),
        ("These change no training:", [name for name in different if not _matters(name)]),
    )
    lines = [f"A  {one.title}", f"B  {two.title}", _verdict(one, two)]
    for head, group in groups:
        if group:
            rows = [["  setting", "A", "B", "set by"], *(_difference(one, two, name) for name in group)]
            lines += ["", head, *aligned(rows)]
    if one.runs & two.runs:
        lines += ["", *_code_lines(one.code, two.code)]
    return "\n".join(lines)


def _code_lines(one: CodeRecord, two: CodeRecord) -> Iterator[str]:
    """Yield the lines of code that differ, and the settings whose files differ."""
    if not one or not two:
        missing = "A" if not one else "B"
        yield f"The code cannot be compared: the code of {missing} was not kept."
        return
    if one["digest"] == two["digest"]:
        yield "The code of the model and of its hooks is the same."
        return
    yield "The code differs:"
    for kind in dict.fromkeys([*one["code"], *two["code"]]):
        sides = [side["code"].get(kind, {"digest": None, "texts": {}}) for side in (one, two)]
        if sides[0]["digest"] != sides[1]["digest"]:
            for name in dict.fromkeys([*sides[0]["texts"], *sides[1]["texts"]]):
                before, after = (side["texts"].get(name, "").splitlines() for side in sides)
                heads = {"fromfile": f"A  {kind}: {name}", "tofile": f"B  {kind}: {name}"}
                yield from difflib.unified_diff(before, after, **heads, lineterm="", n=1)
    for name in sorted(one["files"].keys() | two["files"].keys()):
        if one["files"].get(name) != two["files"].get(name):
            yield f"  the content of the file in model.params.{name} differs"


def _side(ref: str, work: Path) -> _Side:
    if Path(ref).suffix not in (".yaml", ".yml"):
        run, name = load_run(ref, work)
        settings = flatten(run.model_dump(mode="json"))
        return _Side(f"{ref}  (run {name})", settings, Origins(), frozenset([name]), code=_trained_with(name, work))
    experiment = config.load([Path(ref)])
    planned = expand(experiment)
    runs = frozenset(run.digest for run in planned)
    settings = flatten({**experiment.model_dump(mode="json", exclude={"sweep", "tune"}), "stages": stages()})
    study = study_id(experiment) if experiment.tune is not None else None
    code = user_code.record(planned[0].config)
    return _Side(f"{ref}  ({count(len(runs), 'run')})", settings, experiment._origins, runs, study, code)


def _now(ref: str, work: Path) -> _Side:
    run, name = load_run(ref, work)
    settings = flatten(run.model_dump(mode="json"))
    return _Side(f"{ref}  (current code)", settings, Origins(), frozenset([name]), code=user_code.record(run))


def _trained_with(name: str, work: Path) -> CodeRecord:
    """Return the code of the run's newest training, or the current code if it was not trained yet."""
    found = layout.workspaces(work, name)
    if not found:
        return user_code.record(load_run(name, work)[0])
    return code_record.read(max(found, key=lambda path: path.stat().st_mtime)) or {}


def _verdict(one: _Side, two: _Side) -> str:
    """Return how the runs of two sides overlap."""
    if one.runs == two.runs:
        text = "The same run" if len(one.runs) == 1 else f"The same {len(one.runs)} runs"
    elif len(one.runs) == len(two.runs) == 1:
        text = "Two different runs"
    else:
        shared, only, other = len(one.runs & two.runs), len(one.runs - two.runs), len(two.runs - one.runs)
        text = f"{count(shared, 'run')} in both, {only} only in A, {other} only in B"
    if one.study != two.study and one.origins.entries and two.origins.entries:
        text += f"; study of A: {one.study or 'none'}, of B: {two.study or 'none'}"
    return text


def _is_of_a_run(name: str) -> bool:
    return name.partition(".")[0] in (*sweep.RUN_SECTIONS, "stages")


def _matters(name: str) -> bool:
    return name.startswith("stages.") or (_is_of_a_run(name) and name_problem(name) is None)


def _shown(side: _Side, name: str) -> str:
    return canonical(side.settings[name]) if name in side.settings else "-"


def _difference(one: _Side, two: _Side, name: str) -> list[str]:
    path = tuple(name.split("."))
    setters = [
        f"{letter}: {side.origins.exactly(path) or 'default'}"
        for letter, side in (("A", one), ("B", two))
        if side.origins.entries and name in side.settings
    ]
    return [f"  {name}", *_told_briefly(_shown(one, name), _shown(two, name)), ", ".join(setters)]


def _told_briefly(one: str, two: str) -> list[str]:
    """Both texts in 40 characters each, from shortly before the place where they differ if they are longer."""
    if max(len(one), len(two)) <= CELL:
        return [one, two]
    same = len(os.path.commonprefix([one, two]))
    start = 0 if same < CELL // 2 else same - CELL // 4
    parts = [("... " if start else "") + text[start:] for text in (one, two)]
    return [text if len(text) <= CELL else f"{text[: CELL - 4]} ..." for text in parts]

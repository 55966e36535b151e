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
from workflow_lib.plan import INIT, STEP_PARAMS, RunConfig, expand, load_run, stages, study_id, user_code
from workflow_lib.plan.user_code import CodeRecord
from workflow_lib.results import source_weights
from workflow_lib.results.layout import RESULTS
from workflow_lib.store import code_record, layout
from workflow_lib.text import aligned, count, flatten

CELL = 40  # characters of a setting that are shown


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: settings by dotted name, where they were set (if known), and runs."""

    title: str
    settings: dict[str, Any]
    origins: Origins
    runs: frozenset[str]
    study: str | None = None
    code: CodeRecord = field(default_factory=dict)  # empty if unknown


def explain(a: str, b: str | None, work: Path) -> str:
    """Return the differing settings and lines of code of two runs or experiment files, and whether they matter.

    Without ``b``, compare the code that trained the run with the current code.
    """
    left = _side(a, work)
    right = _side(b, work) if b is not None else _current(a, work)
    names = dict.fromkeys([*left.settings, *right.settings])
    if not (left.origins.entries and right.origins.entries):  # a run has no settings of the other sections
        names = dict.fromkeys(name for name in names if _is_run_setting(name))
    different = [name for name in names if _shown(left, name) != _shown(right, name)]
    groups = (
        ("These settings change the result:", [name for name in different if _changes_result(name)]),
        ("These change no training:", [name for name in different if not _changes_result(name)]),
    )
    lines = [f"A  {left.title}", f"B  {right.title}", _verdict(left, right)]
    for head, group in groups:
        if group:
            rows = [["  setting", "A", "B", "set by"], *(_difference(left, right, name) for name in group)]
            lines += ["", head, *aligned(rows)]
    if left.runs & right.runs:
        lines += ["", *_code_lines(left.code, right.code)]
    return "\n".join(lines)


def _code_lines(left: CodeRecord, right: CodeRecord) -> Iterator[str]:
    """Yield the lines of code that differ, and the names of the settings whose files differ."""
    if not left or not right:
        missing = "A" if not left else "B"
        yield f"The code cannot be compared: the code of {missing} was not recorded."
        return
    if left["digest"] == right["digest"]:
        yield "The code of the model and of its hooks is the same."
        return
    yield "The code differs:"
    for kind in dict.fromkeys([*left["code"], *right["code"]]):
        sides = [side["code"].get(kind, {"digest": None, "texts": {}}) for side in (left, right)]
        if sides[0]["digest"] != sides[1]["digest"]:
            for name in dict.fromkeys([*sides[0]["texts"], *sides[1]["texts"]]):
                before, after = (side["texts"].get(name, "").splitlines() for side in sides)
                heads = {"fromfile": f"A  {kind}: {name}", "tofile": f"B  {kind}: {name}"}
                yield from difflib.unified_diff(before, after, **heads, lineterm="", n=1)
    for name in sorted(left["files"].keys() | right["files"].keys()):
        if left["files"].get(name) != right["files"].get(name):
            yield f"  the content of {_setting(name)} differs"


def _setting(name: str) -> str:
    """Return the setting that names a file or a run, by its name in the record of the code."""
    if name == INIT or name.startswith(STEP_PARAMS):
        return name
    return f"the file in {'training.' if '.' in name else 'model.params.'}{name}"


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
    code = _record(planned[0].config)
    return _Side(f"{ref}  ({count(len(runs), 'run')})", settings, experiment._origins, runs, study, code)


def _current(ref: str, work: Path) -> _Side:
    run, name = load_run(ref, work)
    settings = flatten(run.model_dump(mode="json"))
    return _Side(f"{ref}  (current code)", settings, Origins(), frozenset([name]), code=_record(run))


def _record(run: RunConfig) -> CodeRecord:
    return user_code.record(run, source_weights.digests(run, RESULTS))


def _trained_with(name: str, work: Path) -> CodeRecord:
    """Return the code of the run's newest training, or the current code if there is none."""
    found = layout.workspaces(work, name)
    if not found:
        return _record(load_run(name, work)[0])
    return code_record.read(max(found, key=lambda path: path.stat().st_mtime)) or {}


def _verdict(left: _Side, right: _Side) -> str:
    """Return the line about the runs that both sides have in common."""
    if left.runs == right.runs:
        text = "The same run" if len(left.runs) == 1 else f"The same {len(left.runs)} runs"
    elif len(left.runs) == len(right.runs) == 1:
        text = "Two different runs"
    else:
        shared, only_left, only_right = (
            len(runs) for runs in (left.runs & right.runs, left.runs - right.runs, right.runs - left.runs)
        )
        text = f"{count(shared, 'run')} in both, {only_left} only in A, {only_right} only in B"
    if left.study != right.study and left.origins.entries and right.origins.entries:
        text += f"; study of A: {left.study or 'none'}, of B: {right.study or 'none'}"
    return text


def _is_run_setting(name: str) -> bool:
    return name.partition(".")[0] in (*sweep.RUN_SECTIONS, "stages")


def _changes_result(name: str) -> bool:
    return name.startswith("stages.") or (_is_run_setting(name) and name_problem(name) is None)


def _shown(side: _Side, name: str) -> str:
    return canonical(side.settings[name]) if name in side.settings else "-"


def _difference(left: _Side, right: _Side, name: str) -> list[str]:
    """Return the cells of a setting: its name, both values, and where they were set."""
    path = tuple(name.split("."))
    setters = [
        f"{letter}: {side.origins.exactly(path) or 'default'}"
        for letter, side in (("A", left), ("B", right))
        if side.origins.entries and name in side.settings
    ]
    return [f"  {name}", *_excerpts(_shown(left, name), _shown(right, name)), ", ".join(setters)]


def _excerpts(left: str, right: str) -> list[str]:
    """Return both texts in at most 40 characters each; longer ones from shortly before their first difference."""
    if max(len(left), len(right)) <= CELL:
        return [left, right]
    same = len(os.path.commonprefix([left, right]))
    start = 0 if same < CELL // 2 else same - CELL // 4
    parts = [("... " if start else "") + text[start:] for text in (left, right)]
    return [text if len(text) <= CELL else f"{text[: CELL - 4]} ..." for text in parts]

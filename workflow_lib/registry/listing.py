"""The registry as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workflow_lib.errors import UserError
from workflow_lib.registry import overview, versions
from workflow_lib.registry.overview import Overview
from workflow_lib.text import aligned, count, decimal


def listing(registry: Path, name: str | None) -> str:
    """Return all models with their aliases, or the versions of one and the decisions about its aliases.

    Raises UserError if there is no such model.
    """
    known = versions.names(registry)
    if name is None and not known:
        return f"{registry} has no model yet"
    if name is None:
        rows = [
            (each, count(len(versions.numbers(registry, each)), "version"), _held(registry, each)) for each in known
        ]
        return "\n".join(aligned(rows))
    if name not in known:
        raise UserError(f"{registry} has no model {name}; allowed: {', '.join(known) or 'none yet'}")
    found = overview.of_model(registry, name)
    return "\n".join([*_versions(found), *_decisions(found), *(f"\nproblem: {text}" for text in _problems(found))])


def _held(registry: Path, name: str) -> str:
    found = overview.of_model(registry, name)
    held = [f"{alias}: version {state.number}" for state in found.versions for alias in state.aliases]
    return ", ".join([*sorted(held), *(["damaged"] if _problems(found) else [])])


def _versions(found: Overview) -> list[str]:
    rows = [("version", "registered", "run", "metrics", "folder")]
    for state in found.versions:
        known = state.statement
        metrics = ", ".join(f"{name} {decimal(each['value'])}" for name, each in known.get("metrics", {}).items())
        row = (str(state.number), known.get("registered", "")[:16], state.run, metrics)
        rows.append((*row, str(state.folder)))
    return aligned(rows)


def _decisions(found: Overview) -> Iterator[str]:
    for alias, history in found.decisions.items():
        yield f"\n{alias}:"
        for decision in history:
            verdict = "promoted" if decision["promoted"] else "not promoted"
            how = f"by hand, {decision['by']}" if decision.get("by_hand") else f"experiment {decision['experiment']}"
            yield (
                f"  {decision['time'][:16]} version {decision['version']['number']} {verdict} ({how}): "
                f"{decision['reason']}"
            )


def _problems(found: Overview) -> list[str]:
    return [*(state.problem for state in found.versions if state.problem), *found.problems]

"""The registry as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workflow_lib.errors import UserError
from workflow_lib.registry import aliases, versions
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
    return "\n".join([*_versions(registry, name), *_decisions(registry, name)])


def _held(registry: Path, name: str) -> str:
    held = {alias: aliases.decisions(registry, name, alias) for alias in aliases.aliases(registry, name)}
    return ", ".join(
        f"{alias}: version {history[-1]['holder']['number']}" for alias, history in held.items() if history
    )


def _versions(registry: Path, name: str) -> list[str]:
    rows = [("version", "registered", "run", "metrics", "folder")]
    for number in versions.numbers(registry, name):
        version = versions.load(registry, name, number)
        statement = version.statement
        metrics = ", ".join(f"{metric} {decimal(found['value'])}" for metric, found in statement["metrics"].items())
        rows.append((str(number), statement["registered"][:16], statement["run"], metrics, str(version.folder)))
    return aligned(rows)


def _decisions(registry: Path, name: str) -> Iterator[str]:
    for alias in aliases.aliases(registry, name):
        yield f"\n{alias}:"
        for decision in aliases.decisions(registry, name, alias):
            verdict = "promoted" if decision["promoted"] else "not promoted"
            how = f"by hand, {decision['by']}" if decision.get("by_hand") else f"experiment {decision['experiment']}"
            yield (
                f"  {decision['time'][:16]} version {decision['version']['number']} {verdict} ({how}): "
                f"{decision['reason']}"
            )

"""The result of an experiment in a few lines for the terminal, read from its table of runs."""

from __future__ import annotations

import csv
from pathlib import Path

from workflow_lib import plugins
from workflow_lib.errors import UserError
from workflow_lib.files import file_digest, read_json
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.text import decimal, training_place, wrapped

NO_BREAK = "\xa0"  # a space at which no line is broken
BELOW = "    "  # indentation of a value below its name
SAMPLES = {"test_samples": "test", "validation_samples": "val"}  # columns of the table, and the split that they count


def summary(results: Path, width: int | None = None) -> str:
    """Return the best run, its metrics, the path of the report and what to type next.

    With a width, the lines fit it, but those with a long path or a command: in two lines, a shell would run the first.
    """
    best, lines = result(results)
    is_of_test = not best.get("validation_samples")
    lines |= _registered(results) | {"report": results / results_layout.REPORT}
    commands = {
        **({"predict": f"everstep predict {results.name} DATA --output predictions.csv"} if is_of_test else {}),
        "next": f"python -m webbrowser {results / results_layout.REPORT}",
        "your own": "everstep run YOURS.yaml (everstep init --data PATH prints one)",
    }
    column = max(map(len, (*lines, *commands))) + 4
    rows = [_row(name, str(value), column, width, str(value).split()) for name, value in lines.items()]
    rows += [_row(name, command, column, width, [command]) for name, command in commands.items()]
    return "\n".join(line for row in rows for line in row).replace(NO_BREAK, " ")


def _registered(results: Path) -> dict[str, object]:
    """Return lines about the version in the registry and the decision of the gate; none without a version."""
    path, table = results / results_layout.REGISTERED, results / results_layout.RUNS_TABLE
    if not path.exists():
        return {}
    made = read_json(path, "name", "version", "folder", "alias", "decision", "provenance")
    if file_digest(table) not in made["provenance"]["inputs"].values():  # the experiment has no registry any more
        return {}
    decision = made["decision"]
    verdict = "is now" if decision["promoted"] else "is not promoted to"
    return {
        "registered": f"version {made['version']} of {made['name']} in {made['folder']}",
        "gate": f"version {made['version']} {verdict} {made['alias']}: {decision['reason']}",
    }


def _row(name: str, value: str, column: int, width: int | None, unbroken: list[str]) -> list[str]:
    """Return the lines of a value beside its name or, if an unbroken part of it does not fit there, below it."""
    label = f"  {name}".ljust(column)
    if width is None or len(label + value) <= width:
        return [label + value]
    if column + max(map(len, unbroken)) <= width:
        return wrapped(value, width, label, " " * column)
    below = wrapped(value, width, BELOW, BELOW) if len(unbroken) > 1 else [BELOW + value]
    return [label.rstrip(), *below]


def result(results: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Return the row of the best run, and lines about it by their names. Raises UserError if there is none."""
    table, listed = results / results_layout.RUNS_TABLE, read_runs(results)
    rows = [row for row in listed if not row.get("state")]
    diverged = [row["name"] for row in listed if row.get("state") == "diverged"]
    if not rows:
        raise UserError(f"{table}: no run of the experiment has a result; the reasons are in the table")
    best = rows[0]
    folder = results_layout.run_dir(results, best["name"])
    is_of_test = not best.get("validation_samples")  # a model with inputs of its own has no test
    repeated = _repeated(read_configurations(results))
    return best, {
        **repeated,
        ("typical run" if repeated else "best run"): _named(best, len(rows)),
        "chosen by": f"{best['select_metric']} {_short(best['select_value'])} at "
        + training_place(float(best["best_epoch"]), int(best["best_step"])),
        "test" if is_of_test else "validation": _measured(best),
        "model": f"{folder / results_layout.MODEL}, {folder / results_layout.ONNX}",
        **({"diverged": f"{', '.join(diverged)} (the reasons are in the report)"} if diverged else {}),
    }


def _named(best: dict[str, str], runs: int) -> str:
    """Return the name of the run, which the study calls `tuned`, and how many runs there are."""
    of = f" (of{NO_BREAK}{runs})" if runs > 1 else ""
    return f"{best['run']}{of}" if best["name"] == best["run"] else f"{best['name']}{of}: {best['run']}"


def read_runs(results: Path) -> list[dict[str, str]]:
    """Return the rows of the table of runs, best first, and then those with a `state`, which have no result.

    Raises UserError if there is no table.
    """
    table = results / results_layout.RUNS_TABLE
    if not table.exists():
        raise UserError(f"{table} is missing: no report yet; run `everstep run`")
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_configurations(results: Path) -> list[dict[str, str]]:
    """Return the rows of the table of configurations, best first; none if an earlier version wrote the report."""
    path = results / results_layout.CONFIGURATIONS
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _repeated(configurations: list[dict[str, str]]) -> dict[str, str]:
    """Return a line about the best configuration if it was run more than once; otherwise nothing."""
    if not configurations or int(configurations[0]["runs"]) < 2:
        return {}
    row = configurations[0]
    settings = [f"{name}={value}" for name, value in list(row.items())[: list(row).index("runs")]]
    mean = f"{row['select_metric']} {_short(row['select_value'])} ± {_short(row['select_value_deviation'])}"
    chosen = f"best of {len(configurations)} by the mean, " if len(configurations) > 1 else ""
    return {"configuration": f"{', '.join(settings) or 'all runs'}; {chosen}{mean} over {row['runs']} runs"}


def _measured(row: dict[str, str]) -> str:
    """Return the metrics of the evaluation of a run, the first with its interval."""
    labels = {name: label for facts in plugins.all_facts().values() for name, label in facts.metrics.items()}
    measured = [name for name in row if f"{name}_low" in row and row[name]]
    if not measured:
        return "undefined"
    low, high = (row[f"{measured[0]}_{end}"] for end in ("low", "high"))
    interval = f" [{_short(low)}, {_short(high)}]" if low else ""
    first, *others = (f"{labels.get(name, name.removeprefix('val_'))} {_short(row[name])}" for name in measured)
    sizes = [(int(row[name]), split) for name, split in SAMPLES.items() if row.get(name)]
    caution = provenance.caution(*sizes[0]) if sizes else ""
    return ", ".join([first + interval, *others]) + (f"; {caution}" if caution else "")


def _short(value: str) -> str:
    return decimal(float(value)) if value else "undefined"

"""The model card: what is known about a version, in Markdown, with gaps for what only people know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import plugins
from workflow_lib.config.identity import canonical
from workflow_lib.errors import shortened
from workflow_lib.results import layout, provenance
from workflow_lib.results.provenance import FEW_SAMPLES
from workflow_lib.text import count, decimal, flatten

if TYPE_CHECKING:
    from workflow_lib.data import Manifest
    from workflow_lib.plan import RunConfig
    from workflow_lib.results.statements import Evaluation, Export, Training

GAP = "*To be filled in by a person:*"
MOST_LISTED = 50  # classes in a table or a list
MOST_CHARACTERS = 200  # of a setting
SPLITS = ("train", "val", "test")


def card(
    title: str,
    folder: Path,
    run: RunConfig,
    manifest: Manifest,
    *,
    train: Training,
    evaluation: Evaluation,
    export: Export,
    selection: str,
) -> str:
    """Return the card of a version; `folder` has the results of its run, and `selection` says how it was chosen."""
    parts: dict[str, Iterator[str]] = {
        "Intended use": iter([f"{GAP} what the model is for, who uses it, and what it must not be used for."]),
        "Data": _data(manifest),
        "Metrics": _metrics(evaluation, selection),
        "Limits": _limits(manifest, train, evaluation, export),
        "Settings": _settings(run),
        "Provenance": _provenance(folder, train, evaluation, export),
    }
    task = plugins.task_facts(evaluation["task"])
    lines = [f"# {as_markdown(title)}", "", f"A model for {evaluation['task']} ({task.targets}), trained by Everstep."]
    for heading, content in parts.items():
        lines += ["", f"## {heading}", "", *content]
    return "\n".join(lines) + "\n"


def _data(manifest: Manifest) -> Iterator[str]:
    settings = flatten(manifest.data["params"])
    yield from _table(
        ["", ""],
        [
            ["data set", manifest.data["name"]],
            *([name, canonical(value)] for name, value in settings.items() if name),
            ["digest", manifest.digest],
            ["source files", str(len(manifest.sources))],
            *([f"{split} samples", f"{manifest.splits[split].samples:,}"] for split in SPLITS),
            *([f"{split} digest", manifest.splits[split].digest] for split in SPLITS),
            ["input", f"{list(manifest.input_shape)}, {manifest.dtype}"],
        ],
    )
    if manifest.outputs:
        yield from ["", f"Predicted numbers: {', '.join(map(as_markdown, manifest.outputs))}."]
    if manifest.features:
        yield from ["", f"Columns: {', '.join(as_markdown(feature.name) for feature in manifest.features)}."]
    counts = [manifest.splits[split].per_class for split in SPLITS]
    if manifest.classes and all(len(each) == len(manifest.classes) for each in counts):
        rows = [[name, *(f"{each[place]:,}" for each in counts)] for place, name in enumerate(manifest.classes)]
        yield ""
        yield from _table([_counted(manifest), *SPLITS], rows[:MOST_LISTED], right=3)
        if len(rows) > MOST_LISTED:
            yield from ["", f"{len(rows) - MOST_LISTED} more classes are in the manifest of the data."]


def _counted(manifest: Manifest) -> str:
    """Return the heading of the numbers of each class, which are of pixels for masks."""
    return "class, pixels" if plugins.task_facts(manifest.task).answers == "pixel" else "class, samples"


def _metrics(evaluation: Evaluation, selection: str) -> Iterator[str]:
    labels = plugins.task_facts(evaluation["task"]).metrics
    split = "test" if evaluation["split"] == "test" else "validation"
    rows = [
        [labels.get(name, name), _number(found["value"]), _interval(found)]
        for name, found in evaluation["metrics"].items()
    ]
    yield f"On {evaluation['samples']:,} {split} samples. {as_markdown(selection)}"
    yield ""
    yield from _table(["metric", "value", "interval"], rows, right=2)
    how = _more(evaluation).get("bootstrap")
    if how and how["resamples"]:
        yield ""
        yield (
            f"Intervals: {how['confidence']:.0%}, {how['method']}, from {how['resamples']:,} resamples of the samples "
            f"(seed {how['seed']})."
        )
    classes = _more(evaluation).get("per_class") or []
    names = [name for name in classes[0] if name not in ("class", "label")] if classes else []
    if names:
        rows = [[_name_of(each), *(_number(each[name]) for name in names)] for each in classes[:MOST_LISTED]]
        yield ""
        yield from _table(["class", *names], rows, right=len(names))


def _limits(manifest: Manifest, train: Training, evaluation: Evaluation, export: Export) -> Iterator[str]:
    if caution := provenance.caution(evaluation["samples"], evaluation["split"]):
        yield f"- Measured on {caution}: one sample changes a proportion by more than 2 %."
    for split, words in (("test", "Measured"), ("train", "Trained")):
        per_class = manifest.splits[split].per_class
        if len(per_class) == len(manifest.classes) and plugins.task_facts(manifest.task).answers == "sample":
            few = [
                f"{as_markdown(n)} ({k})" for n, k in zip(manifest.classes, per_class, strict=True) if k < FEW_SAMPLES
            ]
            if few:
                yield f"- {words} with fewer than {FEW_SAMPLES} samples of: {_listed(few)}."
    for name, found in evaluation["metrics"].items():
        if found["value"] is None:
            yield f"- {name} is undefined: {as_markdown(str(found.get('reason', 'no reason is known')))}."
    error = max(each["max_abs_error"] for each in (*export["check"]["batches"], export["check"]["split"]))
    yield (
        f"- `{layout.ONNX}` agrees with the trained model on the test split; the largest absolute difference of an "
        f"output is {error:.2g}. It was compared on the CPU only."
    )
    yield f"- Evaluated on: {evaluation['device']}, in the precision {evaluation['trained_in']}."
    if views := dict(evaluation).get("views"):
        yield f"- Probabilities are the mean over {views} views of each image; those of the model differ."
    if not train["exact"]:
        yield f"- The training {provenance.inexact_words()}."
    if "accepted" in train:
        yield f"- It {as_markdown(provenance.accepted_words(train['accepted']))}."
    yield "- The test split is used up with each choice by its metrics, such as a promotion to an alias."
    yield "- The intervals cover other samples of the same kind. They do not cover other seeds of the training."
    yield (
        "- Not tested: data of another origin or time, damaged or hostile inputs, differences between groups of "
        "people, speed on the hardware where the model will run."
    )
    yield f"- {GAP} other known limits, and who may be harmed by an error."


def _settings(run: RunConfig) -> Iterator[str]:
    values = flatten(run.model_dump(mode="json"))
    rows = [[name, shortened(canonical(value), MOST_CHARACTERS)] for name, value in values.items()]
    yield from _table(["setting", "value"], rows)


def _provenance(folder: Path, train: Training, evaluation: Evaluation, export: Export) -> Iterator[str]:
    made = train["provenance"]
    code = made["code"]
    commit = (
        f"{code['commit']}{' with uncommitted changes' if code['modified'] else ''}" if code["commit"] else "unknown"
    )
    packages = export["provenance"].get("environment", {}).get("packages", {})
    rows = [
        ["run", train["run"]],
        ["digest of the settings", train["digest"]],
        ["digest of the data", train["data"]],
        ["digest of the code of the model", train["code"]],
        [f"digest of {layout.MODEL}", train["model"]],
        [f"digest of {layout.ONNX}", export["onnx"]["digest"]],
        ["parameters", f"{train['parameters']:,}"],
        [
            "training",
            f"{count(train['steps'], 'step')}, {count(train['attempts'], 'attempt')}, {train['seconds']:,.0f} s",
        ],
        ["best", f"{train['best']['metric']} {decimal(train['best']['value'])} at epoch {train['best']['epoch']}"],
        ["Everstep", f"{code['version']}, commit {commit}"],
        ["trained on", canonical(train["environment"])],
        *([f"package {name}", version] for name, version in sorted(packages.items())),
    ]
    yield from _table(["", ""], rows)
    again = provenance.rebuild_command(folder / layout.TRAIN, made["experiment"])
    yield from ["", "Make it again in the folder of the project:", "", f"    {again}"]


def _more(evaluation: Evaluation) -> Mapping[str, Any]:
    """Return the keys of an evaluation that depend on the task."""
    return evaluation


def _name_of(row: Mapping[str, Any]) -> str:
    return str(row.get("class", row.get("label", "")))


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else decimal(value) if isinstance(value, float) else str(value)


def _interval(found: Mapping[str, Any]) -> str:
    if found.get("low") is None or found.get("high") is None:
        return "–"
    return f"[{decimal(found['low'])}, {decimal(found['high'])}]"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> Iterator[str]:
    """Yield a table, whose last columns are aligned to the right."""
    left = len(head) - right
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * left}{'---:|' * right}"
    for row in rows:
        yield f"| {' | '.join(map(as_markdown, row))} |"


def as_markdown(text: str) -> str:
    """Return a text that Markdown and HTML show as it is, in one line."""
    for character, shown in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("\r", " "), ("\n", " ")):
        text = text.replace(character, shown)
    return re.sub(r"[`*|~\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)

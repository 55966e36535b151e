"""Results that a pack has prepared for the jobs of the rules, which hand them out without importing the package.

A ticket is a file named by the digest of the output that it is for. It names the command, the digests of its inputs,
and the prepared files with theirs. A job whose command or inputs differ, or that finds a damaged file, does its work
itself.

Tickets are for the jobs of the pipeline whose pack wrote them: that pipeline names their folder in a variable of the
environment, and removes the folder when it ends. So code, packages and settings are those of the pack.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workflow_lib.errors import StateError
from workflow_lib.files import (
    UNREADABLE,
    append_line,
    blake2b,
    compact_json,
    file_digest,
    read_json,
    write_atomic,
    write_json,
    write_signed,
)

FOLDER = "EVERSTEP_READY"  # variable of the environment: the folder of the tickets, in work/packs/
EXPERIMENT = "EVERSTEP_EXPERIMENT"  # the frozen experiment
STUDY = "study"  # folder in that of a pack: the files of the study that it does
THREADS = "OMP_NUM_THREADS"  # set by Snakemake to the threads of the rule
VERBS = frozenset({"freeze", "train", "evaluate", "export", "suggest", "trial", "best"})
NO_RESULT = ("--deadline-minutes", "--on-stop")  # options that do not change a result
KEYS = (
    *("verb", "options", "experiment", "threads", "inputs", "evaluation", "files", "statement", "absent", "said"),
    "requests",
)


def folder() -> Path | None:
    """Return the folder of the tickets of this pipeline; None outside of one."""
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def write(
    verb: str,
    options: Mapping[str, object],
    output: Path,
    *,
    inputs: Mapping[Path, Path],
    files: Mapping[str, Path],
    statement: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    absent: Sequence[str] = (),
    is_of_threads: bool = False,
    requests: Path | None = None,
    said: str,
) -> None:
    """Write the ticket of a command whose results are prepared, if this process belongs to a pipeline.

    Args:
        options: Options of the command besides ``--output``, as it is typed.
        inputs: The inputs of the command, and where each can be read now.
        files: The prepared files, by their names beside the output.
        statement: The prepared JSON file of ``output`` if it has a provenance, which will name the command and the
            inputs. It is written last.
        evaluation: Model and metrics that the file of the option ``--evaluation`` must have.
        is_of_threads: True if the number of threads of the command may change the last bits.
        absent: Names of files that must not exist beside the output.
        requests: File in which the job records that the result was requested.
        said: Line for the log of the job.
    """
    place = folder()
    if place is None:
        return
    typed = {name: str(value) for name, value in {**options, "--output": output}.items()}
    content = {
        "verb": verb,
        "options": typed,
        "experiment": os.environ.get(EXPERIMENT),
        "threads": os.environ.get(THREADS) if is_of_threads else None,
        "inputs": {str(path): file_digest(at) for path, at in inputs.items()},
        "evaluation": evaluation,
        "files": {name: [str(path), file_digest(path)] for name, path in files.items()},
        "statement": None if statement is None else read_json(statement),
        "absent": list(absent),
        "said": said,
        "requests": None if requests is None else str(requests),
    }
    write_signed(_ticket(place, typed["--output"]), content)


def hand_out(argv: Sequence[str]) -> bool:
    """Write the results of the command if a pack has prepared them; return False if the command has to compute them."""
    place = folder()
    if place is None or len(argv) < 2 or argv[1] not in VERBS:
        return False
    options = {name: value for name, value in zip(argv[2::2], argv[3::2], strict=False) if name not in NO_RESULT}
    try:
        output = Path(options["--output"])
        ticket = read_json(_ticket(place, options["--output"]), *KEYS)
        wanted = {"verb": argv[1], "options": options, "experiment": os.environ.get(EXPERIMENT)}
        if any(ticket[name] != value for name, value in wanted.items()):
            return False
        if ticket["threads"] not in (None, os.environ.get(THREADS)):
            return False
        inputs = _verified_inputs(ticket, options)
        for name in ticket["absent"]:
            output.with_name(name).unlink(missing_ok=True)
        for name, (path, digest) in ticket["files"].items():
            write_atomic(output.with_name(name), _verified(Path(path), digest))
        if (statement := ticket["statement"]) is not None:
            write_json(output, {**statement, "provenance": _provenance(statement["provenance"], inputs, argv)})
    except (StateError, *UNREADABLE):  # also a full disk: the command itself says what is wrong
        return False
    if ticket["requests"] is not None:
        _note_request(Path(ticket["requests"]), output)
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} info  {output}: {ticket['said']}", file=sys.stderr)
    return True


def _note_request(path: Path, output: Path) -> None:
    """Record that the result was requested, as the command does."""
    event = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kind": "delivered", "to": str(output)}
    with suppress(OSError):
        append_line(path, compact_json(event) + b"\n")


def _ticket(place: Path, output: str) -> Path:
    return place / f"{blake2b(output.encode()).hexdigest()}.json"


def _verified_inputs(ticket: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of the inputs. Raises StateError if an input is not that of the ticket."""
    for path, digest in ticket["inputs"].items():
        if file_digest(Path(path)) != digest:
            raise StateError(f"{path}: has changed")
    if (expected := ticket["evaluation"]) is None:
        return dict(ticket["inputs"])
    path = options["--evaluation"]
    found = read_json(Path(path), *expected)
    if any(found[name] != value for name, value in expected.items()):
        raise StateError(f"{path}: another evaluation")
    return {**ticket["inputs"], path: file_digest(Path(path))}


def _verified(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if blake2b(content).hexdigest() != digest:
        raise StateError(f"{path}: damaged")
    return content


def _provenance(prepared: Mapping[str, Any], inputs: Mapping[str, str], argv: Sequence[str]) -> dict[str, Any]:
    """Return the provenance with this command; only provenances of computations have an environment."""
    environment = {"environment": {**prepared["environment"], "command": [*argv]}} if "environment" in prepared else {}
    command = shlex.join(["python", "-m", "workflow_lib", *argv[1:]])
    return {**prepared, "command": command, "inputs": inputs, **environment}

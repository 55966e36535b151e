"""Measurements in processes of their own. A figure is kept as soon as it is known, whatever fails after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .project import Failed, Machine, Project, Skipped, tail

FIGURES = "figures.txt"  # a line for each figure of a check, in its folder


def tell(folder: Path, figure: str) -> None:
    """Keep a figure of the check with this folder."""
    with (folder / FIGURES).open("a") as file:
        file.write(figure + "\n")


def told(folder: Path) -> list[str]:
    """Return the figures that a check has kept so far."""
    with suppress(FileNotFoundError):
        return (folder / FIGURES).read_text().splitlines()
    return []


def aimed(what: str, found: float, aim: float, *, is_most: bool = False, unit: str = "") -> str:
    """Return a line that says whether an aim is met; `show` of gpu-check collects these lines."""
    is_met = found <= aim if is_most else found >= aim
    text = f"{found:.3g}{unit}, aim at {'most' if is_most else 'least'} {aim:.3g}{unit}"
    return f"AIM {'met' if is_met else 'MISSED'}: {what}: {text}"


def in_forks(folder: Path, parts: dict[str, Callable[[], None]], limit_s: int) -> list[str]:
    """Call each function in a fork of this process, which must not have started CUDA; return what failed.

    A kernel that fails leaves CUDA unusable in its process; here only the figures of that part are lost. The fork is
    killed by its own alarm after ``limit_s`` seconds, also if it waits for the device.
    """
    from workflow_lib.prove.child import forked  # imports torch

    failed = []
    for name, part in parts.items():
        log, before = folder / f"{name.replace(' ', '-')}.txt", len(told(folder))
        with forked(log) as child:
            if child.is_here:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(limit_s)
                part()
        if child.code == 0 and len(told(folder)) > before:
            continue
        if child.code == -signal.SIGALRM:
            failed.append(f"{name}: not done after {limit_s} s: ended")
        elif child.code == 0:
            failed.append(f"{name}: no figure")
        else:
            failed.append(f"{name}: ended with {child.code}: {tail(log.read_text(errors='replace'), 1)}")
    return failed


def measured(machine: Machine, folder: Path, call: str, *arguments: str) -> str:
    """Call ``module.function`` of this package in its own process, with device and folder; return the figures it told.

    Its last line of output is the reason for a skip or for a failure, if it ends with 3 or 1.
    """
    project = Project(folder, {})
    module, function = call.split(".")
    given = ", ".join(map(repr, (machine.device, str(folder), *arguments)))
    code = f"from gpu_check import measuring, {module}; measuring.end(lambda: {module}.{function}({given}))"
    environment = project.environment()
    scripts = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([scripts, environment["PYTHONPATH"]])
    with project.said.open("a") as file:
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, stdout=file, stderr=file, check=False
        )
    figures, last = told(folder), tail(project.text, 1)
    if ended.returncode == SKIPPED:
        raise Skipped(last)
    if ended.returncode:
        raise Failed("; ".join([last, *figures]) + f"\n{tail(project.text)}")
    return "; ".join(figures)


SKIPPED = 3  # exit code of a measurement that this machine does not allow


def end(measure: Callable[[], None]) -> None:
    """Measure, and end the process; a reason goes to its output."""
    try:
        measure()
    except (Skipped, Failed) as reason:
        print(reason, flush=True)
        raise SystemExit(SKIPPED if isinstance(reason, Skipped) else 1) from None

"""A wrong argument of the command line is reported in one line, with the usage of its verb."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from workflow_lib.cli import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clean", "a.yaml"], "everstep clean: unknown argument a.yaml. Usage: everstep clean [-h] [--yes] ("),
        (
            ["status", "--jsn"],
            "everstep status: unknown argument --jsn; did you mean `--json`? Usage: everstep status [",
        ),
        (
            ["run", "--cores", "1"],
            "everstep run: unknown argument --cores; arguments of Snakemake follow `--`, as in `",
        ),
        (["study"], "everstep study: the following arguments are required: CONFIG, --to. Usage: everstep study ["),
        (
            ["prove-resume", "a.yaml", "--kills", "x"],
            "everstep prove-resume: argument --kills: invalid int value: 'x'.",
        ),
        (["statu"], "everstep: there is no verb 'statu'; did you mean `status`? Usage: everstep VERB ... ("),
        ([], "everstep: the following arguments are required: VERB. Usage: everstep VERB ... ("),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line_with_the_usage(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    told = capsys.readouterr()
    assert left.value.code == 2
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(("typed", "expected"), [("everstep sta", "status"), ("everstep run --pro", "--profile")])
def test_the_shell_completes_verbs_and_options(typed: str, expected: str) -> None:
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
        "_ARGCOMPLETE_IFS": "\n",
    }
    command = f"{shlex.quote(sys.executable)} -m workflow_lib 8>&1 9>/dev/null"
    shown = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert shown.stdout.split() == [expected], shown.stderr

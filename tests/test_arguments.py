"""A wrong argument of the command line is reported in one line, with the usage of its verb."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_lib.cli import entry, main


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


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("everstep sta", "status"), ("everstep run --pro", "--profile"), ("everstep status --state fin", "finished")],
)
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


@pytest.mark.parametrize(
    ("verb", "argument", "typed", "expected"),
    [
        ("status", "experiment", "", {"digits", "b.csv/", "config/a.yaml", "config/", "results/"}),
        ("status", "state", "fin", {"finished"}),
        ("compare", "subjects", "d", {"digits", "digits-cnn-1"}),
        ("accept", "runs", "", {"digits-cnn-1", "tuned"}),
        ("run", "config", "conf", {"config/", "config/a.yaml"}),
        ("run", "config", "config/", {"config/a.yaml"}),
        ("run", "profile", "s", {"slurm"}),
        ("track", "to", "tens", {"tensorboard"}),
        ("predict", "data", "config/", {"config/a.yaml", "config/notes.txt"}),
        ("prove-resume", "kills", "", set()),
    ],
)
def test_the_shell_offers_what_is_meant(
    verb: str, argument: str, typed: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("results/digits/plan.json", "config/a.yaml", "config/notes.txt", "b.csv/c"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for run in ("digits-cnn-1", "tuned"):
        (tmp_path / "results/digits/runs" / run).mkdir(parents=True)
    (verbs,) = [action for action in entry._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    (action,) = [action for action in verbs.choices[verb]._actions if action.dest == argument]
    completer = getattr(action, "completer", lambda prefix: [])
    assert {word for word in completer(prefix=typed) if word.startswith(typed)} == expected


def test_a_character_that_cannot_be_encoded_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    entry.print_all_characters()
    print("digits…0 ± 1 名")
    sys.stdout.flush()
    assert written.getvalue() == b"digits...0 +- 1 ?\n"

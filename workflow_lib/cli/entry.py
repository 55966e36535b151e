"""Entry point of the command line, which turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from workflow_lib import __version__
from workflow_lib.cli import completion, jobs, user
from workflow_lib.cli import existing_runs as existing_runs  # adds its verbs
from workflow_lib.cli import registry as registry  # adds its verb
from workflow_lib.cli.options import Arguments
from workflow_lib.errors import EverstepError, TryAgain, with_advice
from workflow_lib.store import code_snapshot
from workflow_lib.text import aligned, nearest

OF_A_PROJECT = ("validate", "plan", "explain", "compare", "accept", "retrain", "clean", "study", "track")

OF_A_RUN = ("evaluate", "export")  # jobs about a run that hold no lease


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code.

    0 success; 1 failure; 2 mistake of the user; 75 state saved, run the command again; 130 interrupted by Ctrl-C.
    """
    code_snapshot.let_children_find_scripts()
    print_all_characters()
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    if arguments.has_log:
        _log_to_stderr()
    if arguments.verb in OF_A_RUN:
        from workflow_lib.store import job_process

        job_process.log_begin()
    if arguments.verb in OF_A_PROJECT:
        _say_where_paths_begin()
    try:
        arguments.call(arguments)
    except EverstepError as error:
        _print_error(f"everstep {arguments.verb}: {with_advice(error)}")
        if isinstance(error, TryAgain) and getattr(arguments, "on_stop", None) == "requeue":
            _requeue(arguments.deadline_minutes)
        return error.exit_code
    except SystemExit as error:  # raised by plugin code; exit code 0 would look like success
        _print_error(f"everstep {arguments.verb}: the code of a plugin called sys.exit({error.code!r})")
        return 1
    except KeyboardInterrupt:
        if arguments.verb in OF_A_RUN:
            _print_error(f"everstep {arguments.verb}: stopped by SIGINT. Run the same command again")
        return 130
    except BrokenPipeError:  # the reader of a pipe is gone; Python would fail again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _print_error(f"everstep {arguments.verb}: {with_advice(error)}")
        return 1
    return 0


PLAIN = {"…": "...", "–": "-", "±": "+-", "✓": "*", "→": "->"}  # for an encoding without these characters


def print_all_characters() -> None:
    """Let standard output print a character that it cannot encode as a similar one or `?`, instead of failing."""
    codecs.register_error("everstep", _similar)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="everstep")


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def _print_error(text: str) -> None:
    """Write the line to standard error, ignoring OSError: on a full disk the exit code must still be right."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _say_where_paths_begin() -> None:
    """Tell a user who is in a folder inside of a project that paths begin here."""
    from workflow_lib import config

    if (project := config.project_above()) is not None:
        _print_error(f"everstep: paths are relative to this folder; the project is {project}")


def _log_to_stderr() -> None:
    """Send the package's log to standard error, which a rule redirects to its log file."""
    import logging

    from workflow_lib.store.events import NAME, LineHandler

    logging.getLogger(NAME).addHandler(LineHandler(rank=0))
    logging.getLogger(NAME).setLevel(logging.INFO)


def _requeue(minutes: float | None) -> None:
    """Ask SLURM to requeue the job of this process, if it has one that allows it; ``minutes`` is its time limit.

    Only the owner rank asks: SLURM must get one request per job, not one per process.
    """
    from workflow_lib.distributed.ranks import Ranks
    from workflow_lib.slurm import job

    if Ranks.from_env().is_owner and job.requeue_own_job(minutes):
        print("everstep: this job is requeued and will resume from here", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, and what is allowed."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} {usage[0].upper()}{usage[1:]} (more: {self.prog} --help)\n")


def _parsed(argv: Sequence[str]) -> Arguments:
    """Return the verb and its arguments; exits with code 2 and a message if they are wrong."""
    names = [verb.name for verb in (*user.VERBS, *jobs.VERBS)]
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        completion.answer(parser)
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        parser.error(f"there is no verb {argv[0]!r}{nearest(argv[0], names)}")
    own, after = _split(argv)
    arguments, unknown = parser.parse_known_args(own)
    arguments.after = after
    if unknown:
        parser = arguments.parser  # of the verb, so that the message shows its usage
        hint = nearest(unknown[0], parser._option_string_actions)
        if not hint and getattr(arguments, "set", None) and all("=" in word for word in unknown):
            hint = "; several settings are one argument: --set 'A=1 B=2'"
        elif not hint and arguments.verb == "run":
            hint = "; arguments of Snakemake follow `--`, as in `everstep run -- --cores 2`"
        parser.error(f"unknown argument {' '.join(unknown)}{hint}")
    return arguments


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the arguments before and after `--`, if the verb hands those after it to Snakemake."""
    if argv[:1] == ["run"] and "--" in argv:
        place = list(argv).index("--")
        return argv[:place], argv[place + 1 :]
    return argv, []


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="everstep",
        description="Training pipelines that never lose a step.",
        epilog=_listing() + "\n\neverstep VERB --help describes a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="everstep VERB ...",
    )
    parser.add_argument("--version", action="version", version=f"everstep {__version__}")
    verbs = parser.add_subparsers(prog="everstep", dest="verb", required=True, metavar="VERB", help=argparse.SUPPRESS)
    for verb in (*user.VERBS, *jobs.VERBS):
        description = f"{verb.help[0].upper()}{verb.help[1:]}."
        verb_parser = verbs.add_parser(verb.name, description=description, allow_abbrev=False)
        verb_parser.set_defaults(call=verb.call, has_log=verb.has_log, parser=verb_parser)
        for option in verb.options:
            action = verb_parser.add_argument(*option.names, **option.settings)
            completion.prepare(action, option.completes)
    return parser


def _listing() -> str:
    """Return the list of verbs for `--help`, one per line: those for users, then those that the rules call."""
    lines = aligned([(f"  {verb.name}", verb.help) for verb in (*user.VERBS, *jobs.VERBS)])
    user_lines, job_lines = lines[: len(user.VERBS)], lines[len(user.VERBS) :]
    return "\n".join(["verbs for users:", *user_lines, "", "verbs that the rules call:", *job_lines])

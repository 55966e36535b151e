"""The verbs of ``everstep``, and the one place that turns an error into a message and an exit code.

A verb imports what it needs when it is called, so that ``--help`` and ``validate`` stay fast.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workflow_lib import __version__
from workflow_lib.errors import ConfigError, EverstepError, TryAgain, with_advice

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

Arguments = argparse.Namespace
WORK = Path("work")
RESULTS_FOLDER = Path("results")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one verb: 0 finished, 75 saved and to be run again, 1 failed, 2 the person's mistake."""
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    if arguments.verb in {"track", *(verb for verb, *_ in FOR_RULES)}:
        _log_lines()
    try:
        arguments.call(arguments)
    except EverstepError as error:
        _tell(f"everstep {arguments.verb}: {with_advice(error)}")
        if isinstance(error, TryAgain) and getattr(arguments, "on_stop", None) == "requeue":
            _requeue()
        return error.exit_code
    except SystemExit as error:  # of a person's code; its 0 would pass for a result
        _tell(f"everstep {arguments.verb}: the code of a plugin called sys.exit({error.code!r})")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _tell(f"everstep {arguments.verb}: {with_advice(error)}")
        return 1
    return 0


def _tell(text: str) -> None:
    """Write the line to stderr, unless its disk is full: the exit code must be right all the same."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _parsed(argv: Sequence[str]) -> Arguments:
    """The verb and its arguments; exits with 2 and one message that says what the verb takes."""
    verbs = [verb for verb, *_ in FOR_PEOPLE + FOR_RULES]
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        _parser().error(f"there is no verb {argv[0]!r}{_nearest(argv[0], verbs)}")
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        takes: _Parser = arguments.parser
        takes.error(f"it takes no {' '.join(unknown)}{_nearest(unknown[0], takes._option_string_actions)}")
    return arguments


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, and what is allowed."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} {usage[0].upper()}{usage[1:]} ({self.prog} --help says more)\n")


def _nearest(word: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(allowed), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _log_lines() -> None:
    """What the package logs goes to the standard error, which a rule sends to its log."""
    import logging

    from workflow_lib.store.events import NAME, LineHandler

    logging.getLogger(NAME).addHandler(LineHandler(rank=0))
    logging.getLogger(NAME).setLevel(logging.INFO)


def _requeue() -> None:
    """The cluster's job, if this is one that may be started again, goes back to the queue; one of its nodes asks."""
    from workflow_lib.distributed.ranks import Ranks
    from workflow_lib.slurm import job

    if Ranks.from_env().is_owner and job.requeue_own_job():
        print("everstep: this job goes back to the queue and will go on from here", file=sys.stderr)


def _init(arguments: Arguments) -> None:
    from workflow_lib import config

    print(config.template(), end="")


def _schema(arguments: Arguments) -> None:
    import json

    from workflow_lib import config

    print(json.dumps(config.schema(), indent=2, sort_keys=True))


def _validate(arguments: Arguments) -> None:
    from workflow_lib import config, plan, snakefile
    from workflow_lib.plan import preview
    from workflow_lib.results import claims

    problems: list[str] = []
    for path in arguments.config:
        try:
            experiment = config.load([path], arguments.set)
            runs = plan.expand(experiment)
            claims.check(RESULTS_FOLDER, experiment.name, claims.of([path], arguments.set))
            data = [experiment.data, *(run.config.data for run in runs)]
            snakefile.check_named_files([*data, *snakefile.models(experiment, runs)], f"{path}: ")
            found, notes = preview.look(runs, experiment.runtime, Path.cwd())
            if found:
                problems += [f"{path}: {problem}" for problem in found]
                continue
        except ConfigError as error:
            problems.append(str(error))
            continue
        trials = f", {_count(experiment.tune.trials, 'trial')}" if experiment.tune else ""
        print(f"{path}: valid; {_count(len(runs), 'run')}{trials}")
        for note in notes:
            print(f"{path}: {note}")
    if problems:
        raise ConfigError("\n".join(problems))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _plan(arguments: Arguments) -> None:
    from workflow_lib import config, plan
    from workflow_lib.plan import preview
    from workflow_lib.results import claims
    from workflow_lib.slurm import budget

    experiment = config.load([arguments.config], arguments.set)
    claims.check(RESULTS_FOLDER, experiment.name, claims.of([arguments.config], arguments.set))
    print(plan.table(experiment))
    for line in plan.columns(experiment):
        print(line)
    problems, notes = preview.look(plan.expand(experiment), experiment.runtime, Path.cwd())
    for line in [*(f"rejected: {problem}" for problem in problems), *notes]:
        print(f"\n{line}")
    if arguments.profile:
        profile = budget.read_profile(arguments.profile)
        asked = budget.requests(experiment, profile)
        print(f"\n{budget.table(asked)}\n")
        is_slurm = profile.values.get("executor") == "slurm"
        print(budget.check(asked) if is_slurm else f"NOT CHECKED: {profile.path} has no `executor: slurm`")


def _explain(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import explain

    print(explain.explain(arguments.a, arguments.b, WORK))


def _accept(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import code_changes

    for run in arguments.runs:
        print(code_changes.accept(run, WORK))


def _retrain(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import code_changes

    for run in arguments.runs:
        print(code_changes.retrain(run, WORK, RESULTS_FOLDER))


def _trace(arguments: Arguments) -> None:
    from workflow_lib.results import provenance

    print(provenance.trace(arguments.file, WORK))


def _status(arguments: Arguments) -> None:
    import json

    from workflow_lib.housekeeping import status

    rows = status.runs(WORK, RESULTS_FOLDER)
    print(json.dumps(rows, indent=2) if arguments.json else status.table(rows))


def _clean(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import cleaning

    items = cleaning.removable(WORK, RESULTS_FOLDER)
    for item in items:
        print(f"{item.bytes / 1e6:10.1f} MB  {item.path}  ({item.why})")
    if not items:
        print("nothing to remove")
        return
    print(f"{sum(item.bytes for item in items) / 1e6:10.1f} MB in {_count(len(items), 'place')}")
    if not arguments.yes:
        print("nothing was removed; --yes removes what is listed")
        return
    left = [f"{item.path} was left: {why}" for item, why in cleaning.clean(items) if why is not None]
    print(f"removed {len(items) - len(left)} of {_count(len(items), 'place')}")
    if left:
        raise EverstepError("\n".join(left))


def _prove_resume(arguments: Arguments) -> None:
    import uuid

    from workflow_lib import config, prove
    from workflow_lib.launch import launcher
    from workflow_lib.store import layout

    if arguments.kills < 1:
        raise ConfigError(f"--kills {arguments.kills}: allowed: 1 and more; nothing is proved without a kill")
    launcher.prepare()
    experiment = config.load([arguments.config], arguments.set)
    folder = layout.proof_dir(WORK, uuid.uuid4().hex[:12])
    verdict = prove.prove(experiment, kills=arguments.kills, folder=folder, seed=arguments.seed)
    if verdict.difference is not None:
        raise EverstepError(str(verdict))
    print(verdict)


def _track(arguments: Arguments) -> None:
    from workflow_lib import tracking

    experiment = _experiment(arguments)
    tracking.track(
        experiment,
        to=arguments.to or experiment.tracking.to,
        follow=arguments.follow,
        work=WORK,
        results=RESULTS_FOLDER,
        output=arguments.output,
    )


def _freeze(arguments: Arguments) -> None:
    from workflow_lib import plan
    from workflow_lib.store import results_folders

    experiment, output = _experiment(arguments), arguments.output
    if output.parent.name == experiment.name:
        results_folders.note(WORK, output.parents[1])
    plan.write_plan(experiment, WORK, output)


def _preprocess(arguments: Arguments) -> None:
    from workflow_lib.data import preprocess

    preprocess(_experiment(arguments), arguments.data, WORK, arguments.output, arguments.threads)


def _train(arguments: Arguments) -> None:
    from workflow_lib.launch import commands, launcher

    launcher.prepare()
    commands.train(
        _experiment(arguments),
        run=arguments.run,
        data=arguments.data,
        work=WORK,
        output=arguments.output,
        deadline_minutes=arguments.deadline_minutes,
    )


def _suggest(arguments: Arguments) -> None:
    from workflow_lib import tuning

    tuning.suggest(_experiment(arguments), arguments.number, arguments.tune_dir, WORK, arguments.output)


def _trial(arguments: Arguments) -> None:
    from workflow_lib import tuning
    from workflow_lib.launch import launcher

    launcher.prepare()
    tuning.trial(
        _experiment(arguments),
        arguments.suggestion,
        data=arguments.data,
        work=WORK,
        output=arguments.output,
        deadline_minutes=arguments.deadline_minutes,
    )


def _best(arguments: Arguments) -> None:
    from workflow_lib import tuning

    tuning.best(_experiment(arguments), arguments.tune_dir, WORK, arguments.output)


def _evaluate(arguments: Arguments) -> None:
    from workflow_lib import evaluation

    evaluation.evaluate(
        _experiment(arguments),
        run=arguments.run,
        data=arguments.data,
        work=WORK,
        model=arguments.model,
        output=arguments.output,
    )


def _export(arguments: Arguments) -> None:
    from workflow_lib import export

    export.export(
        _experiment(arguments),
        run=arguments.run,
        data=arguments.data,
        work=WORK,
        model=arguments.model,
        evaluation=arguments.evaluation,
        output=arguments.output,
    )


def _report(arguments: Arguments) -> None:
    from workflow_lib import plan, report

    runs = plan.reported_runs(arguments.plan)
    write = report.write_incomplete if arguments.incomplete else report.write
    write(_experiment(arguments), arguments.results, runs, WORK, arguments.output)


def _summary(arguments: Arguments) -> None:
    from workflow_lib import report

    print(report.summary(arguments.results))


def _experiment(arguments: Arguments) -> Experiment:
    from workflow_lib import config

    path = arguments.experiment or os.environ.get("EVERSTEP_EXPERIMENT")
    if not path:
        raise ConfigError("no experiment given: pass --experiment FILE (or set EVERSTEP_EXPERIMENT)")
    return config.load([Path(path)])


Option = tuple[tuple[str, ...], dict[str, object]]


def _path(*names: str, text: str) -> Option:
    return names, {"type": Path, "required": True, "metavar": "FILE", "help": text}


CONFIG: Option = (("config",), {"type": Path, "metavar": "CONFIG", "help": "experiment file (YAML)"})
CONFIGS: Option = (("config",), {**CONFIG[1], "nargs": "+", "help": "experiment files (YAML), each by itself"})
SET: Option = (
    ("--set",),
    {"action": "append", "default": [], "metavar": "'A.B=1 C=2'", "help": "settings that win over the file"},
)
PROFILE: Option = (
    ("--profile",),
    {"type": Path, "metavar": "FOLDER", "help": "what the jobs ask of that cluster, and whether it has it"},
)
EXPERIMENT: Option = (
    ("--experiment",),
    {"type": Path, "metavar": "FILE", "help": "experiment file (default: $EVERSTEP_EXPERIMENT)"},
)
RUN: Option = (
    ("--run",),
    {"required": True, "metavar": "RUN", "help": "run id, or a file that points to a run"},
)
RUNS: Option = (("runs",), {"nargs": "+", "metavar": "RUN", "help": "run id, or the digest in it"})
DATA = _path("--data", text="manifest of the preprocessed data")
MODEL = _path("--model", text="trained weights (safetensors)")
OUTPUT = _path("--output", text="what to write, last and whole")
TUNE_DIR = _path("--tune-dir", text="folder of the study's suggestions and results")
RESULTS = _path("--results", text="results folder of the experiment")
DEADLINE: Option = (
    ("--deadline-minutes",),
    {"type": float, "metavar": "M", "help": "time limit of the job; stops and saves before it"},
)
ON_STOP: Option = (
    ("--on-stop",),
    {
        "choices": ("retry", "requeue"),
        "default": "retry",
        "help": "a training that saved and stopped exits with code 75, or has SLURM requeue its job too",
    },
)

Verb = tuple[str, str, Callable[[Arguments], None], tuple[Option, ...]]

FOR_PEOPLE: tuple[Verb, ...] = (
    ("init", "print an experiment file with every setting, its default and meaning", _init, ()),
    (
        "validate",
        "say what is wrong with experiment files, where, and what is allowed",
        _validate,
        (CONFIGS, SET),
    ),
    ("plan", "show the runs of an experiment and what differs between them", _plan, (CONFIG, SET, PROFILE)),
    (
        "explain",
        "say which settings and which lines of code make two runs different",
        _explain,
        (
            (("a",), {"metavar": "A", "help": "run id or file"}),
            (("b",), {"nargs": "?", "metavar": "B", "help": "run id or file (default: A with the current code)"}),
        ),
    ),
    (
        "accept",
        "let the finished results of runs stand though their code has changed, on record",
        _accept,
        (RUNS,),
    ),
    (
        "retrain",
        "move what is trained of runs aside, so that the pipeline trains them again",
        _retrain,
        (RUNS,),
    ),
    (
        "trace",
        "say which run, data, code and command made a result",
        _trace,
        ((("file",), {"type": Path, "metavar": "FILE", "help": "a file of a run in results/"}),),
    ),
    (
        "status",
        "show the runs: state, step, speed, last checkpoint, attempts, owner",
        _status,
        ((("--json",), {"action": "store_true", "help": "all that is known, as JSON"}),),
    ),
    (
        "clean",
        "list what no result needs, and the space it takes; remove it with --yes",
        _clean,
        ((("--yes",), {"action": "store_true", "help": "remove what is listed"}),),
    ),
    (
        "prove-resume",
        "train a run straight and under kills, and compare every bit",
        _prove_resume,
        (
            CONFIG,
            SET,
            (("--kills",), {"type": int, "default": 20, "metavar": "N", "help": "how many (default 20)"}),
            (("--seed",), {"type": int, "default": 0, "metavar": "S", "help": "of where and how they strike"}),
        ),
    ),
    (
        "track",
        "copy the curves to MLflow, TensorBoard or W&B, beside a training or after it",
        _track,
        (
            (("experiment",), {"nargs": "?", "type": Path, "metavar": "CONFIG", "help": "experiment file (YAML)"}),
            (("--follow",), {"action": "store_true", "help": "go on until every run is finished"}),
            (
                ("--to",),
                {"action": "append", "metavar": "TRACKER", "help": "replaces tracking.to; may be repeated"},
            ),
            (("--output",), {"type": Path, "metavar": "FILE", "help": "how many rows were copied, last and whole"}),
        ),
    ),
    ("schema", "print the JSON schema of experiment files, for editors", _schema, ()),
)

FOR_RULES: tuple[Verb, ...] = (
    ("freeze", "write the plan and freeze its runs", _freeze, (EXPERIMENT, OUTPUT)),
    (
        "preprocess",
        "prepare a data set's shards and manifest",
        _preprocess,
        (
            EXPERIMENT,
            (("--data",), {"required": True, "metavar": "ID", "help": "data id of the plan"}),
            (("--threads",), {"type": int, "default": 1, "metavar": "N", "help": "shards made at once"}),
            OUTPUT,
        ),
    ),
    ("train", "train a run, or continue it", _train, (EXPERIMENT, RUN, DATA, OUTPUT, DEADLINE, ON_STOP)),
    (
        "suggest",
        "suggest a trial of the study",
        _suggest,
        (EXPERIMENT, (("--number",), {"type": int, "required": True, "metavar": "N"}), TUNE_DIR, OUTPUT),
    ),
    (
        "trial",
        "train a suggested run and note its result",
        _trial,
        (EXPERIMENT, _path("--suggestion", text="suggested trial"), DATA, OUTPUT, DEADLINE, ON_STOP),
    ),
    ("best", "choose the best trial of the study", _best, (EXPERIMENT, TUNE_DIR, OUTPUT)),
    ("evaluate", "measure a model on the test split", _evaluate, (EXPERIMENT, RUN, DATA, MODEL, OUTPUT)),
    (
        "export",
        "export a model to ONNX and check it",
        _export,
        (EXPERIMENT, RUN, DATA, MODEL, _path("--evaluation", text="its evaluation"), OUTPUT),
    ),
    (
        "report",
        "write the report of an experiment",
        _report,
        (
            EXPERIMENT,
            RESULTS,
            _path("--plan", text="plan of the experiment"),
            OUTPUT,
            (("--incomplete",), {"action": "store_true", "help": "of whatever there is, where a run lacks a result"}),
        ),
    ),
    ("summary", "print the best run, its metrics and what to type next", _summary, (RESULTS,)),
)


def _parser() -> argparse.ArgumentParser:
    width = max(len(verb) for verb, *_ in FOR_PEOPLE + FOR_RULES) + 2
    listing = "\n".join(
        f"{title}\n" + "\n".join(f"  {verb:<{width}}{text}" for verb, text, *_ in verbs) + "\n"
        for title, verbs in (("for people:", FOR_PEOPLE), ("for rules:", FOR_RULES))
    )
    parser = _Parser(
        prog="everstep",
        description="Training pipelines that never lose a step.",
        epilog=listing,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="everstep VERB ...",
    )
    parser.add_argument("--version", action="version", version=f"everstep {__version__}")
    verbs = parser.add_subparsers(prog="everstep", dest="verb", required=True, metavar="VERB", help=argparse.SUPPRESS)
    for verb, text, call, options in FOR_PEOPLE + FOR_RULES:
        one = verbs.add_parser(verb, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        one.set_defaults(call=call, parser=one)
        for names, settings in options:
            one.add_argument(*names, **settings)  # type: ignore[arg-type]
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Rules of the repository: imports go one way, every shipped file can be used, every rule is complete."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import workflow_lib
from tests.support.repository import ROOT, shipped_experiments
from workflow_lib import config, plan
from workflow_lib.cli import jobs

PACKAGE = ROOT / "workflow_lib"

# From the ground up. A package, or a module named here, may use the layers above its own, and in its own layer those
# that stand before it. The public names in workflow_lib/__init__.py may stand for any.
LAYERS = (
    ("", "errors", "arguments", "processes", "shipped", "text", "files", "ready"),
    ("tasks.facts", "runtime", "store.layout", "results.layout"),
    ("plugins", "config", "plan"),
    ("slurm", "distributed", "checkpoint"),
    ("store", "results"),
    ("data", "checksums", "shards", "metrics", "datasets", "models", "tasks"),
    ("training", "orchestrator", "plan.prepared", "plan.model_check", "plan.metric_check", "plan.init_check"),
    ("plan.step_check", "plan.preview", "evaluation"),
    ("launch", "export", "prediction", "tracking", "trackers", "housekeeping"),
    ("tuning", "prove", "report", "comparison", "registry", "notify", "packs", "snakefile", "records"),
    ("live", "start", "interactive", "serve"),
    ("cli", "__main__"),
)
LEVEL = {room: level for level, room in enumerate(room for layer in LAYERS for room in layer)}
MODULES = sorted(PACKAGE.rglob("*.py"))

# imported by every command and every job, so they must import fast
FAST = ("config", "plan", "plugins", "tasks", "snakefile", "cli", "interactive", "__main__")
HEAVY = ("torch", "pandas", "numpy", "optuna", "sklearn", "onnx", "plotly")


def room_of(name: str) -> str:
    """Return the entry of LAYERS for a module, named below the package: the most specific one."""
    parts = name.split(".")
    known = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next((room for room in known if room in LEVEL), parts[0])


def name_of(path: Path) -> str:
    """Return the module's name below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Return the entries of LAYERS that a module imports anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("workflow_lib."):
            base = str(node.module).removeprefix("workflow_lib").removeprefix(".")
            inner = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
            if not base:  # public names of the package stand for their modules
                inner = {workflow_lib.MODULES.get(name, name) for name in inner}
            found |= (inner & NAMES) | ({base} if inner - NAMES else set())
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("workflow_lib.") for name in names if name.startswith("workflow_lib.")}
    return {room_of(name) for name in found}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if name_of(path)],  # the package itself imports when a name is used
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(name_of(path))
    assert room in LEVEL, f"{path.name} has no place yet: give it one in LAYERS"
    upward = {used for used in imports_of(path) - {room} if LEVEL[used] >= LEVEL[room]}
    assert not upward, f"{path.relative_to(ROOT)} may not use {sorted(upward)}"


@pytest.mark.parametrize("room", FAST)
def test_what_every_command_imports_is_light(room: str) -> None:
    code = f"import sys, workflow_lib.{room}; print([m for m in {HEAVY!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# parts of torch and image libraries that only some trainings need
UNUSED = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.checkpoint", "sympy", "PIL")


# functions that unpickle or execute their input, and torch's collectives of objects, which unpickle; with weights_only
# torch.load builds tensors only
UNPICKLING = re.compile(
    r"\b(import (pickle|dill|cloudpickle|marshal|shelve)|torch\.load\((?!.*weights_only=True)|joblib|allow_pickle=True|"
    r"(broadcast|gather|scatter|send|recv)_object|all_gather_object)"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_came_from_a_file_or_over_a_wire_is_unpickled(path: Path) -> None:
    assert UNPICKLING.findall(path.read_text()) == []


# private names of torch: a later version may change them without notice
PRIVATE = re.compile(r"torch(?:\.\w+)*\._[a-z]\w*|\b__dynamo_disable\b|\b_unscale_grads_\b|import _BatchNorm\b")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_parts_of_torch_are_used_in_one_module(path: Path) -> None:
    if name_of(path) != "runtime.torch_internals":
        assert PRIVATE.findall(path.read_text()) == []


def test_a_training_imports_nothing_that_it_does_not_need() -> None:
    absent = (*UNUSED, *(name for name in HEAVY if name not in ("torch", "numpy")))
    code = f"import sys, workflow_lib.training.trainer; print([m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("path", shipped_experiments(), ids=lambda path: path.name)
def test_every_shipped_experiment_can_be_run(path: Path) -> None:
    experiment = config.load([path])
    assert plan.expand(experiment)


def test_the_template_that_init_prints_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(config.template())
    assert plan.expand(config.load([path]))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return every rule of the workflow as Snakemake reads it."""
    folder = tmp_path_factory.mktemp("rules")
    for name in ("Snakefile", "rules", "report", "config", "workflow_lib"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    code = """
import json
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ResourceSettings

with SnakemakeApi() as api:
    workflow = api.workflow(resource_settings=ResourceSettings(cores=1), snakefile=Path("Snakefile"))._workflow
    print("RULES", json.dumps([
        {"name": r.name, "shell": r.shellcmd, "log": list(map(str, r.log)), "benchmark": str(r.benchmark or ""),
         "params": list(r.params.keys()), "resources": list(r.resources), "local": r.name in workflow._localrules,
         "priority": r.priority}
        for r in workflow.rules
    ]))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if line.startswith("RULES "))
    found: list[dict[str, Any]] = json.loads(line.removeprefix("RULES "))
    return [rule for rule in found if rule["shell"]]


def test_the_plan_comes_before_trainings_take_every_core(rules: list[dict[str, Any]]) -> None:
    first, *others = sorted(rules, key=lambda rule: -rule["priority"])
    assert first["name"] == "plan"
    assert all(rule["priority"] < first["priority"] for rule in others)


def test_every_rule_has_a_log_and_a_benchmark_named_after_it(rules: list[dict[str, Any]]) -> None:
    assert len(rules) >= 9
    for rule in rules:
        assert [log.split("/")[:2] for log in rule["log"]] == [["logs", rule["name"]]], rule["name"]
        assert rule["benchmark"].startswith(f"benchmarks/{rule['name']}/"), rule["name"]


def test_every_rule_has_a_stage_and_resources(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        assert "stage" in rule["params"], rule["name"]
        assert {"mem_mb", "runtime"} <= set(rule["resources"]), rule["name"]


def test_every_rule_is_one_verb_with_every_path_quoted(rules: list[dict[str, Any]]) -> None:
    known = {verb.name for verb in jobs.VERBS} | {"track"}
    for rule in rules:
        shell = rule["shell"]
        verb = re.search(r"^exec (?:\S+ )*?python -m workflow_lib (\w+) ", shell)
        assert verb, rule["name"]
        assert verb[1] in known, rule["name"]
        assert shell.endswith(">> {log:q} 2>&1"), rule["name"]
        values = re.findall(r"\{(?:input|output|log|params|wildcards)[^}]*\}", shell)
        assert [v for v in values if not v.endswith(":q}")] in ([], ["{wildcards.number}"]), rule["name"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("profiles/*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_profile_says_what_each_rule_may_take(path: Path, rules: list[dict[str, Any]]) -> None:
    profile = yaml.safe_load(path.read_text())
    described = {*profile["set-resources"], *profile.get("set-threads", {})}
    assert {rule["name"] for rule in rules if not rule["local"] or path.parent.name == "local"} <= described
    assert described <= {rule["name"] for rule in rules}


def test_there_is_no_profile_that_snakemake_would_load_unasked() -> None:
    assert not (ROOT / "profiles/default").exists()


def test_every_shipped_yaml_is_covered_by_a_test_here() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shipped = {name for name in listed.split() if name.endswith((".yaml", ".yml"))}
    covered = re.compile(r"config/.*\.yaml|profiles/\w+/config\.yaml|mkdocs\.yml|\.github/workflows/check\.yml")
    assert all(covered.fullmatch(name) for name in shipped), shipped


def test_the_forge_runs_the_same_check_on_a_system_with_everything_it_needs() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"]["check"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands[-2:] == ["scripts/setup", "scripts/check"]
    assert packages_of("\n".join(commands)) >= packages_of((ROOT / ".ci/run").read_text())


def packages_of(script: str) -> set[str]:
    """Return the system packages that the script installs."""
    installed = re.search(r"apt-get install ([^\n]+)", script)
    assert installed
    return {word for word in installed[1].split() if not word.startswith("-")}


CONSTRAINTS = ("constraints.txt", "constraints-oldest.txt")


@pytest.mark.parametrize(
    ("name", "package"), [*((name, "torch") for name in CONSTRAINTS), ("constraints-airflow.txt", "apache-airflow")]
)
def test_the_constraints_name_versions_only(name: str, package: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert any(line.startswith(f"{package}==") for line in lines)


def test_every_dependency_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    assert {w.lower().partition(">=")[0] for w in wanted} <= pinned("constraints.txt").keys()


def pinned(name: str) -> dict[str, str]:
    """Return the versions of a constraints file, by package."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {package.lower().replace("_", "-"): version for package, version in found}


def test_the_oldest_packages_that_are_allowed_are_tried() -> None:
    import tomllib

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(one.lower().split(">=") for one in wanted)
    oldest = pinned("constraints-oldest.txt")
    assert bounds.pop("torch") == "2.10"  # not published for CPUs: tested by hand (docs/gpu.md)
    assert bounds == {name: oldest[name] for name in bounds}
    newest = pinned("constraints.txt")
    assert oldest["torch"] == newest["torch"]  # the only build for CPUs


def test_setup_says_which_python_it_needs(tmp_path: Path) -> None:
    """Only a Python that is too old or too new is installed."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    old = tmp_path / "bin"
    old.mkdir()
    for tool in ("bash", "dirname", "env"):
        (old / tool).symlink_to(str(shutil.which(tool)))
    (old / "python3").write_text("#!/bin/sh\nexit 1\n")
    (old / "python3").chmod(0o755)
    command = [str(tmp_path / "scripts/setup")]
    shown = subprocess.run(command, env={"PATH": str(old)}, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "Python 3.11, 3.12 or 3.13 is needed" in shown.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]),
    ids=lambda path: path.name,
)
def test_what_a_document_points_to_exists(path: Path) -> None:
    text = path.read_text()
    links = [path.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    links += [ROOT / name for name in re.findall(r"`((?:tests|rules|scripts)/[\w./-]+)`", text)]
    missing = {str(link) for link in links if not link.exists()}
    assert missing <= {str(ROOT / name) for name in ("rules/baz.smk", "rules/bundle.smk")}

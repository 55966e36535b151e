"""Versions are published whole under numbers of their own, and an alias moves only after a decision with figures."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from tests.checkpoint.examples import MEMORY
from tests.support.crash import operations, run_forked
from tests.support.faults import FileFault, Mode
from workflow_lib import registry
from workflow_lib.cli import main
from workflow_lib.config.registry import Registry
from workflow_lib.errors import StateError, UserError
from workflow_lib.files import write_json
from workflow_lib.registry import aliases, gate, overview, registering, versions
from workflow_lib.registry.card import as_markdown
from workflow_lib.registry.page import state_of, write_page
from workflow_lib.registry.versions import Version
from workflow_lib.results import layout

CRASHES: tuple[Mode, ...] = ("before", "torn", "unsynced", "unnamed")
TEST = "a" * 32


def content(folder: Path, noise: float, *, targets: int = 0, seed: int = 1) -> dict[str, Path]:
    """Write the predictions of a regression with this noise for 300 test samples, and their evaluation."""
    folder.mkdir(parents=True)
    truth = np.random.default_rng(targets).normal(size=300)
    predicted = truth + noise * np.random.default_rng(seed).normal(size=300)
    rows = [
        f"{number},{a!r},{b!r}" for number, (a, b) in enumerate(zip(truth.tolist(), predicted.tolist(), strict=True))
    ]
    (folder / "predictions.csv").write_text("\n".join(["sample,target,predicted", *rows]) + "\n")
    mae = float(np.abs(predicted - truth).mean())
    evaluation = {"run": "r", "model": "m", "task": "regression", "metrics": {"mae": {"value": mae}}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return {path.name: path for path in folder.iterdir()}


def publish(place: Path, files: dict[str, Path], digest: str, **statement: Any) -> tuple[Version, bool]:
    known = {"task": "regression", "test": TEST, "run": "r", "registered": "2026-01-01T00:00", **statement}
    metrics = json.loads(files["evaluation.json"].read_text())["metrics"]

    def describe(number: int) -> tuple[dict[str, Any], str]:
        return {**known, "metrics": metrics}, f"# version {number}\n"

    return versions.publish(place, "model", digest=digest, files=files, describe=describe)


def in_folder(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "model" / "versions").iterdir())


@pytest.fixture
def place() -> Iterator[Path]:
    """Return the folder of a new registry, in memory if possible: the crashes wait for the disk a hundred times."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder) / "registry"


@pytest.mark.parametrize("mode", CRASHES)
def test_a_crash_at_any_operation_leaves_nothing_or_the_whole_version(tmp_path: Path, place: Path, mode: Mode) -> None:
    files = content(tmp_path / "run", 1.0)
    done = operations(lambda: publish(place, files, "1" * 32), str(place))
    shutil.rmtree(place)
    assert any(line.startswith("rename") for line in done)
    assert len(done) > 12
    outcomes = set()
    for count in range(1, len(done) + 1):
        fault = FileFault(path=f"{place}*", count=count, rank=-1, mode=mode)
        assert run_forked(partial(publish, place, files, "1" * 32), [fault]) == -signal.SIGKILL, done[count - 1]
        found = versions.numbers(place, "model")
        outcomes.add(len(found))
        for number in found:
            version = versions.load(place, "model", number)
            assert all(version.verify(name).read_bytes() == path.read_bytes() for name, path in files.items())
            assert (version.folder / "card.md").read_text() == "# version 1\n"
        version, is_new = publish(place, files, "1" * 32)
        assert (version.number, is_new) == (1, not found)
        assert in_folder(place) == ["000001"], done[count - 1]  # the rerun removes what the killed process left
        shutil.rmtree(place)
    assert outcomes == {0, 1}


def test_a_number_that_another_process_takes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    first, second = content(tmp_path / "a", 1.0), content(tmp_path / "b", 2.0)
    asked = []

    def describe(number: int) -> tuple[dict[str, Any], str]:
        asked.append(number)
        if len(asked) == 1:
            publish(place, second, "2" * 32)
        return {}, f"# version {number}\n"

    version, is_new = versions.publish(place, "model", digest="1" * 32, files=first, describe=describe)
    assert (asked, version.number, is_new) == ([1, 2], 2, True)
    assert versions.load(place, "model", 1).digest == "2" * 32
    assert (version.folder / "card.md").read_text() == "# version 2\n"


def test_equal_content_is_one_version_even_if_two_register_at_once(tmp_path: Path) -> None:
    place, files = tmp_path / "registry", content(tmp_path / "a", 1.0)

    def describe(number: int) -> tuple[dict[str, Any], str]:
        publish(place, files, "1" * 32)
        return {}, ""

    version, is_new = versions.publish(place, "model", digest="1" * 32, files=files, describe=describe)
    assert (version.number, is_new) == (1, False)
    assert publish(place, files, "1" * 32)[1] is False
    assert in_folder(place) == ["000001"]


@pytest.mark.parametrize("name", ["__init__", "_a_ b_c", "[x](y:1)", "`code`", "a\\*b*", "~~s~~", "<b>&amp;", "|"])
def test_names_of_users_are_text_in_a_model_card(name: str) -> None:
    table = MarkdownIt("gfm-like", {"linkify": False}).render(f"| class |\n|---|\n| {as_markdown(name)} |")
    assert re.findall("<td>(.*?)</td>", table) == [html.escape(name)]


def test_a_damaged_version_is_not_used(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    version, _ = publish(place, content(tmp_path / "a", 1.0), "1" * 32)
    (version.folder / "predictions.csv").write_text("sample,target,predicted\n0,1,1\n")
    better, _ = publish(place, content(tmp_path / "b", 0.1), "2" * 32)
    with pytest.raises(StateError, match=r"predictions\.csv: damaged or replaced"):
        gate.judge(better, version, None)
    (version.folder / "version.json").write_text("{")
    with pytest.raises(StateError, match="Restore it from a copy"):
        publish(place, content(tmp_path / "c", 0.2), "3" * 32)


def test_the_gate_passes_only_what_is_better_by_more_than_noise_on_the_same_samples(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    champion, _ = publish(place, content(tmp_path / "a", 1.0), "1" * 32)
    better, _ = publish(place, content(tmp_path / "b", 0.5), "2" * 32)
    alike, _ = publish(place, content(tmp_path / "c", 0.98, seed=7), "3" * 32)
    other, _ = publish(place, content(tmp_path / "d", 0.1, targets=5), "4" * 32, test="b" * 32)
    table, _ = publish(place, content(tmp_path / "e", 0.1), "5" * 32, task="classification")
    untested, _ = publish(place, content(tmp_path / "f", 0.1), "6" * 32, test=None)

    decided = gate.judge(better, champion, None)
    assert decided["promoted"]
    assert decided["difference"]["low"] < decided["difference"]["value"] < decided["difference"]["high"] < 0
    assert decided["values"]["2"] - decided["values"]["1"] == pytest.approx(decided["difference"]["value"])
    assert (decided["metric"], decided["larger_is_better"], decided["bootstrap"]["samples"]) == ("mae", False, 300)
    assert not gate.judge(champion, better, None)["promoted"]
    assert gate.judge(champion, better, None)["reason"].endswith(": worse")
    noise = gate.judge(alike, champion, None)
    assert noise["difference"]["low"] < noise["difference"]["value"] < 0 < noise["difference"]["high"]
    assert not noise["promoted"]
    assert noise["reason"].endswith("not more than noise")
    assert gate.judge(better, champion, "r2")["promoted"]  # larger is better
    for version, words in ((other, "other test samples"), (table, "is a regression"), (untested, "no test split")):
        refused = gate.judge(version, champion, None)
        assert not refused["promoted"]
        assert words in refused["reason"]
        assert "promote it by hand" in refused["reason"]


def with_own_metric(folder: Path, low: float, high: float, **metric: Any) -> dict[str, Path]:
    files = content(folder, 1.0)
    found = json.loads(files["evaluation.json"].read_text())
    found["metrics"]["profit"] = {"value": (low + high) / 2, "low": low, "high": high}
    files["evaluation.json"].write_text(json.dumps(found))
    (folder / "config.json").write_text(json.dumps({"training": {"metrics": [{"label": "profit", **metric}]}}))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("maximize", [True, False])
def test_a_metric_of_the_experiment_decides_if_its_intervals_do_not_overlap(tmp_path: Path, maximize: bool) -> None:
    place, sign = tmp_path / "registry", 1 if maximize else -1
    metric: dict[str, Any] = {"name": "mine:Profit", "maximize": maximize}

    def version(number: int, low: float, high: float, **more: Any) -> Version:
        ends = sorted((sign * low, sign * high))
        return publish(place, with_own_metric(tmp_path / str(number), *ends, **metric | more), str(number) * 32)[0]

    champion = version(1, 1.0, 2.0)
    better, alike, worse = version(2, 2.1, 3.0), version(3, 1.9, 3.0), version(4, 0.1, 0.9)
    other, lacking = version(5, 5.0, 6.0, params={"cost": 2}), publish(place, content(tmp_path / "6", 0.1), "6" * 32)[0]
    decided = [gate.judge(each, champion, "profit") for each in (better, alike, worse, other)]
    assert [each["promoted"] for each in decided] == [True, False, False, False]
    ends = (
        "better by more than noise",
        "not more than noise",
        "worse",
        "promote it by hand if it should get the alias",
    )
    assert all(each["reason"].endswith(end) for each, end in zip(decided, ends, strict=True)), decided
    assert decided[0]["larger_is_better"] is maximize
    with pytest.raises(StateError, match=r"config\.json: damaged"):
        gate.judge(lacking, champion, "profit")


def move(place: Path, version: Version) -> aliases.Decision:
    def choose(history: list[aliases.Decision], champion: Version | None) -> tuple[aliases.Decision, bool]:
        made = registering._decision(version, champion, {"promoted": True, "reason": "a test"}, {"by_hand": True})
        return made, champion is None or champion.digest != version.digest

    return aliases.decide(place, "model", "champion", choose)


def test_the_page_says_what_became_of_each_version_and_why(tmp_path: Path, place: Path) -> None:
    """A version that had the alias, the one that has it, one that did not get it, and one that nobody judged."""
    named = [content(tmp_path / name, noise) for name, noise in (("a", 1.0), ("b", 0.3), ("c", 2.0), ("d", 3.0))]
    made = [
        publish(place, files, str(number) * 32, experiment="e", run_name=f"e-lr{number}-1234567890ab")[0]
        for number, files in enumerate(named, 1)
    ]
    settings = Registry(name="model", folder=place)
    decided = [registering._promoted(settings, version, "e") for version in made[:3]]
    assert [decision["promoted"] for decision in decided] == [True, True, False]
    write_page(settings, "e", 3, {**decided[2], "reason": "<b>worse</b>"}, tmp_path / "registered.html")
    text = html.unescape(re.sub(r"<[^>]*>", " ", (tmp_path / "registered.html").read_text()))
    told = " ".join(text.split())
    assert "not promoted to champion : <b>worse</b>" in told
    until = decided[1]["time"][:16]
    states = {1: f"was champion until {until}", 2: "champion", 3: "not promoted to champion", 4: "–"}
    for number, state in states.items():
        assert f" {number} {state} 2026-01-01T00:00 e e-lr{number}-1234567890ab mean absolute error " in told
    assert all(decision["reason"] in told for decision in decided)
    first = overview.of_model(place, "model").versions[0]
    history = [{**decision, "time": f"2026-0{month}-01T00:00"} for month, decision in enumerate(decided, 1)]
    assert state_of(first, history, "champion") == "was champion until 2026-02-01T00:00"


@pytest.mark.parametrize("mode", CRASHES)
def test_a_crash_at_any_operation_leaves_the_old_or_the_new_holder(tmp_path: Path, place: Path, mode: Mode) -> None:
    first, _ = publish(place, content(tmp_path / "a", 1.0), "1" * 32)
    second, _ = publish(place, content(tmp_path / "b", 0.5), "2" * 32)
    move(place, first)
    folder = aliases.aliases_dir(place, "model") / "champion"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    done = operations(lambda: move(place, second), str(folder))
    for count in range(1, len(done) + 1):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        fault = FileFault(path=f"{folder}*", count=count, rank=-1, mode=mode)
        assert run_forked(partial(move, place, second), [fault]) == -signal.SIGKILL, done[count - 1]
        history = aliases.decisions(place, "model", "champion")
        assert len(history) in (1, 2), done[count - 1]
        move(place, second)
        holder = aliases.holder(place, "model", aliases.decisions(place, "model", "champion"))
        assert holder is not None
        assert holder.number == 2
        assert sorted(path.name for path in folder.iterdir()) == ["000001.json", "000002.json"], done[count - 1]


def test_a_decision_is_made_again_if_another_process_has_decided_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "registry"
    made = [publish(place, content(tmp_path / str(n), 1.0 / n, seed=n), str(n) * 32)[0] for n in (1, 2, 3)]
    move(place, made[0])
    seen = []

    def choose(history: list[aliases.Decision], champion: Version | None) -> tuple[aliases.Decision, bool]:
        assert champion is not None
        if not seen:
            move(place, made[2])
        seen.append(champion.number)
        return registering._decision(made[1], champion, gate.judge(made[1], champion, None), {}), True

    decided = aliases.decide(place, "model", "champion", choose)
    assert seen == [1, 3]
    assert not decided["promoted"]
    assert decided["holder"] == {"number": 3, "digest": "3" * 32}
    shutil.rmtree(made[2].folder)
    publish(place, content(tmp_path / "new", 3.0), "4" * 32)  # takes the number 3
    with pytest.raises(StateError, match="is not the version that got the alias"):
        move(place, made[0])


def test_people_see_and_decide_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("registry")
    assert registry.listing(place, None) == "registry has no model yet"
    publish(place, content(tmp_path / "a", 1.0), "1" * 32)
    publish(place, content(tmp_path / "b", 0.5), "2" * 32)
    assert main(["registry", "model", "--promote", "2", "--reason", "asked for by the clinic"]) == 0
    assert main(["registry"]) == 0
    assert main(["registry", "model"]) == 0
    shown = capsys.readouterr().out
    assert "model: version 2 is now champion" in shown
    assert main(["registry", "model", "--promote", "2", "--reason", "again"]) == 0
    assert "model: version 2 is already champion; nothing was recorded" in capsys.readouterr().out
    assert "model  2 versions  champion: version 2" in shown
    assert "version 2 promoted (by hand, " in shown
    assert "): asked for by the clinic" in shown
    for wrong, words in (
        (["model", "--promote", "3", "--reason", "x"], "has no version 3 in registry; allowed: 1 to 2"),
        (["model", "--promote", "1"], "--reason TEXT"),
        (["model", "--promote", "1", "--reason", " "], "say why"),
        (["modle"], "has no model modle; allowed: model"),
    ):
        assert main(["registry", *wrong]) == UserError.exit_code
        assert words in capsys.readouterr().err


def test_what_is_damaged_is_shown_and_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place, results = Path("registry"), tmp_path / "results"
    made = [publish(place, content(tmp_path / str(n), 1.0 / n), str(n) * 32)[0] for n in (1, 2, 3)]
    for version in made[:2]:
        move(place, version)
    assert registry.of_experiment(results) is None
    write_json(results / layout.REGISTERED, {"name": "model", "version": 4, "folder": str(made[0].folder.parent / "4")})
    (made[0].folder / "version.json").write_text("{")
    (made[2].folder / "predictions.csv").unlink()
    found = registry.of_experiment(results)
    assert found is not None
    assert [(state.number, state.aliases, state.problem is None) for state in found.versions] == [
        (1, (), False),
        (2, ("champion",), True),
        (3, (), False),
        (4, (), False),  # its own version is gone
    ]
    assert (found.own, found.problems, len(found.decisions["champion"])) == (4, (), 2)
    assert main(["registry", "model"]) == 0
    shown = capsys.readouterr().out
    assert "version 2 promoted (by hand, " in shown
    assert f"problem: {made[0].folder / 'version.json'} is missing or damaged" in shown
    shutil.move(made[1].folder, tmp_path / "away")
    shutil.copytree(made[2].folder, made[1].folder)
    (decision,) = aliases.aliases_dir(place, "model").glob("*/000001.json")
    text = decision.read_text()
    decision.write_text(text.replace("a test", "a tale"))
    found = registry.of_experiment(results)
    assert found is not None
    assert found.problems == (
        f"{decision} is damaged. Restore it from a copy: without it an earlier version has the alias",
    )
    decision.write_text(text)
    found = registry.of_experiment(results)
    assert found is not None
    assert "is not the version that got champion" in str(found.versions[1].problem)


@pytest.mark.parametrize("mode", [0o2775, 0o700])
def test_the_folder_of_the_registry_decides_who_may_use_it_not_the_umask(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    place.chmod(mode)
    umask = os.umask(0o077 if mode & 0o070 else 0o000)
    try:
        move(place, publish(place, content(tmp_path / "a", 1.0), "1" * 32)[0])
    finally:
        os.umask(umask)
    inside = list(place.rglob("*"))
    assert len(inside) == 10
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in inside}
    assert modes == {(True, mode), (False, mode & 0o666)}

"""Weights to start from: files and folders of weights, names that are mapped, and messages about what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workflow_lib.config.init import Init
from workflow_lib.errors import ConfigError
from workflow_lib.training.initial_weights import load, read


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.head = nn.Linear(5, classes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.table.weight


def source(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {**Net().state_dict(), **changes}


def init(path: Path, **settings: Any) -> Init:
    return Init.model_validate({"from": str(path), **settings})


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_a_file_and_a_folder_give_the_same_weights(tmp_path: Path) -> None:
    tensors = source()
    files = [saved(tmp_path / "weights.safetensors", tensors), tmp_path / "weights.pt", tmp_path / "whole"]
    torch.save(tensors, files[1])
    files[2].mkdir()
    saved(files[2] / "model.safetensors", tensors)
    parts = tmp_path / "parts"
    parts.mkdir()
    names = sorted(tensors)
    for number, some in enumerate((names[:4], names[4:])):
        saved(parts / f"model-{number}.safetensors", {name: tensors[name] for name in some})
    index = ", ".join(f'"{name}": "model-{int(place > 3)}.safetensors"' for place, name in enumerate(names))
    (parts / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{index}}}}}')
    for file in (*files, parts):
        torch.manual_seed(2)
        model = Net()
        record = load(model, init(file), file)
        assert record == {"from": str(file), "taken": 9, "not_taken": [], "unused": []}
        assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items()), file
        shapes = read(file, meta=True)
        assert {name: (value.shape, value.dtype) for name, value in shapes.items()} == {
            name: (value.shape, value.dtype) for name, value in tensors.items()
        }
        assert all(value.is_meta for value in shapes.values())


def test_names_are_mapped_and_the_longest_beginning_counts(tmp_path: Path) -> None:
    tensors = {f"module.{name.replace('head', 'fc')}": value for name, value in source().items()}
    path = saved(tmp_path / "a.safetensors", {**tensors, "module.extra.weight": torch.ones(2)})
    names = {"module.": "", "module.fc.": "head.", "module.extra": None}
    assert load(Net(), init(path, map=names), path) == {"from": str(path), "taken": 9, "not_taken": [], "unused": []}


def test_not_strict_takes_what_fits_and_says_what_does_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {**source(), "other": torch.ones(1)})
    torch.manual_seed(2)
    model = Net(classes=7)
    before = model.head.weight.detach().clone()
    assert load(model, init(path, strict=False), path) == {
        "from": str(path), "taken": 7, "not_taken": ["head.bias", "head.weight"], "unused": ["other"],
    }  # fmt: skip
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.encoder[0].weight, source()["encoder.0.weight"])


def test_half_precision_is_converted_exactly(tmp_path: Path) -> None:
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in source().items()}
    path = saved(tmp_path / "a.safetensors", halves)
    model = Net()
    load(model, init(path), path)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, halves["head.weight"].float())


def test_a_tied_weight_may_have_either_name_but_only_one_value(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    for name in ("table.weight", "out.weight"):
        path = saved(tmp_path / f"{name}.safetensors", {name: table})
        model = Tied()
        assert load(model, init(path), path)["not_taken"] == []
        assert torch.equal(model.table.weight, table)
    path = saved(tmp_path / "both.safetensors", {"table.weight": table, "out.weight": table + 1})
    with pytest.raises(ConfigError, match=r"table\.weight and out\.weight differ, and are one weight in the model"):
        load(Tied(), init(path), path)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "all names differ": (
        {f"module.{name}": value for name, value in source().items()},
        {},
        r"any weight of the model: missing: encoder\.0\.weight, .* and 4 more; only there: .*; "
        r'did you mean map: \{"module\.": ""\}\?',
    ),
    "nothing fits, not strict": ({"a": torch.ones(2)}, {"strict": False}, "does not fit any weight of the model"),
    "missing": (
        {name: value for name, value in source().items() if name != "head.bias"},
        {},
        r"does not fit the model: missing: head\.bias \(.*model\.init\.strict: false takes those that fit",
    ),
    "another shape": (
        source(**{"head.weight": torch.ones(9, 5)}),
        {},
        r"of another shape: head\.weight \(float32 \[9, 5\] there, float32 \[3, 5\] in the model\)",
    ),
    "another part": (
        {name.replace("encoder", "backbone"): value for name, value in source().items()},
        {},
        r'did you mean map: \{"backbone\.": "encoder\."\}\?',
    ),
    "a beginning of nothing": (source(), {"map": {"encodr.": ""}}, r"begins with `encodr\.`; the nearest: encoder\."),
    "two become one": (
        {**source(), "copy.head.bias": torch.ones(3)},
        {"map": {"copy.": ""}},
        r"head\.bias and (copy\.)?head\.bias both become head\.bias",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_message(tmp_path: Path, name: str) -> None:
    tensors, settings, message = WRONG[name]
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ConfigError, match=message) as caught:
        load(Net(), init(path, **settings), path)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_files_that_are_no_weights_are_rejected_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": source(), "epoch": 3}, "more.pt")
    torch.save({"a": Evil()}, "evil.pt")
    Path("cut.safetensors").write_bytes(saved(tmp_path / "a.safetensors", source()).read_bytes()[:100])
    Path("text.txt").write_text("x")
    Path("empty").mkdir()
    for file, message in (
        ("more.pt", r"more\.pt holds more than a state dict \(state_dict, epoch\)"),
        ("evil.pt", r"evil\.pt is not a file of weights alone, so it is not loaded"),
        ("cut.safetensors", "cannot be read as safetensors"),
        ("text.txt", r"text\.txt holds no weights; allowed: an experiment file .*\.safetensors, \.pt, \.pth, \.bin"),
        ("empty", "the folder empty has neither model.safetensors nor model.safetensors.index.json"),
        ("gone.safetensors", "no such file: gone.safetensors"),
    ):
        for meta in (False, True):
            with pytest.raises(ConfigError, match=message):
                read(Path(file), meta=meta)
    assert not Path("touched").exists()

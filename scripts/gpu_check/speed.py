"""Speed of steps, compared with a plain loop, with a CUDA graph, and by memory format. Slowness never fails a check."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench import ROUNDS, Case, fitting, free, quiet, synchronize, time_steps
from .exact import need_compiler
from .measuring import aimed, in_forks, measured, tell
from .project import BF16_CAPABILITY, Check, Failed, Machine, Skipped

if TYPE_CHECKING:
    import torch

RESNET: dict[str, Any] = {"size": "18"}
CASES = {
    "MLP": Case("mlp", {"hidden": [256]}, (1, 28, 28), 10, 64, 300, aim=10.0),
    "ResNet-18 bf16": Case("resnet", RESNET, (3, 32, 32), 10, 256, 30, "bf16", aim=1.3),
    "GPT 124M bf16": Case(
        "transformer", {"layers": 12, "heads": 12, "width": 768}, (1024,), 50304, 16, 8, "bf16", "language"
    ),
}
CASES["GPT 124M bf16 compiled"] = replace(CASES["GPT 124M bf16"], is_compiled=True, aim=1.0, aim_of_rate=0.5)
SMALL = {  # with --cpu
    "MLP": Case("mlp", {"hidden": [16]}, (1, 8, 8), 10, 64, 5, aim=10.0),
    "CNN": Case("cnn", {"channels": [4]}, (3, 8, 8), 10, 8, 3),
    "GPT bf16": Case("transformer", {"layers": 1, "heads": 1, "width": 16}, (8,), 64, 4, 3, "bf16", "language"),
}
SMALL["GPT bf16 compiled"] = replace(SMALL["GPT bf16"], is_compiled=True, aim=1.0, aim_of_rate=0.5)
# images as those of CIFAR, and as those of ImageNet
LAYOUTS = {
    f"ResNet-18 {size}x{size} {precision}": Case("resnet", RESNET | stem, (3, size, size), 10, batch, steps, precision)
    for size, batch, steps, stem in ((32, 256, 20, {}), (224, 128, 8, {"stem": "large"}))
    for precision in ("bf16", "fp32")
}
SMALL_LAYOUTS = {"CNN fp32": SMALL["CNN"]}
RATES = "speed.jsonl"  # steps per second of the package with `standard`, by case, for the comparison with `strict`
STRICT_AIM = 0.97  # of the speed of `standard`
WINS = 1.05  # a memory format is worth a setting from this ratio on: less is within the accuracy
CASE_LIMIT_S = 150


def measure_steps(device: str, folder: str, determinism: str) -> None:
    """Tell, for each model, the steps per second of the plain loop and the fraction that the package reaches."""
    cases = SMALL if device == "cpu" else CASES
    _in_forks(cases, partial(_steps, device=device, folder=Path(folder), determinism=determinism), Path(folder))


def measure_layouts(device: str, folder: str) -> None:
    """Tell, for each size of images and precision, how fast `channels_last` is, and what to set."""
    cases = SMALL_LAYOUTS if device == "cpu" else LAYOUTS
    _in_forks(cases, partial(_layout, device=device, folder=Path(folder)), Path(folder))


def _in_forks(cases: dict[str, Case], measure: Any, folder: Path) -> None:
    """Measure each case in a fork of this process, which imports torch once."""
    import workflow_lib.training.trainer  # noqa: F401

    if failed := in_forks(folder, {name: partial(measure, name, case) for name, case in cases.items()}, CASE_LIMIT_S):
        raise Failed("; ".join(failed))


def _begin(determinism: str) -> None:
    from workflow_lib.runtime.determinism import set_determinism, set_precision

    quiet()
    set_determinism(determinism)  # before CUDA starts
    set_precision("fp32")


def _obstacle(case: Case, device: torch.device) -> str | None:
    """Return why a case cannot be measured here, or None."""
    if case.precision == "bf16" and not _has_bf16(device):
        return f"needs compute capability {BF16_CAPABILITY}"
    if case.is_compiled:
        try:
            need_compiler(Machine(str(device), 1))
        except Skipped as reason:
            return str(reason)
    return None


def _steps(name: str, case: Case, *, device: str, folder: Path, determinism: str) -> None:
    """Tell the speed of one case, without and with a graph."""
    import torch

    _begin(determinism)
    place = torch.device(device)
    if (obstacle := _obstacle(case, place)) is not None:
        tell(folder, f"{name}: {obstacle}")
        return
    timed = partial(time_steps, device=place, determinism=determinism, folder=folder)
    found = fitting(case, place, timed)
    if found is None:
        tell(folder, f"{name}: does not fit into the memory")
        return
    fitted, (bare_s, ours_s, _) = found
    batch = f", batch {fitted.batch}" if fitted != case else ""
    tell(folder, f"{name}{batch} {bare_s / ours_s:.2f} of {case.steps / bare_s:,.0f} steps/s")
    pairs = [(bare_s, ours_s)]
    if device != "cpu":
        free(place)
        graphed = fitting(fitted, place, partial(timed, graphs="auto"))
        tell(folder, f"{name} {_as_graph(fitted, graphed)}")
        pairs += [graphed[1][:2]] if graphed is not None else []
        free(place)
    ratio, best_s = max((bare / ours, ours) for bare, ours in pairs)
    _tell_aims(name, fitted, place, folder, determinism, ratio=ratio, rate=case.steps / best_s)


def _tell_aims(
    name: str, case: Case, device: torch.device, folder: Path, determinism: str, *, ratio: float, rate: float
) -> None:
    rates = folder.parents[1] / RATES
    if determinism == "standard":
        with rates.open("a") as file:
            file.write(json.dumps([name, rate]) + "\n")
        if case.aim is not None:
            tell(folder, aimed(f"{name}, times a plain loop", ratio, case.aim))
        if case.aim_of_rate is not None:
            share = _operations(case, device) * rate / _bf16_rate(device)
            tell(folder, aimed(f"{name}, part of the bf16 rate", share, case.aim_of_rate))
        return
    standard = dict(map(json.loads, rates.read_text().splitlines())) if rates.exists() else {}
    if name in standard:
        tell(folder, aimed(f"{name}, strict against standard", rate / standard[name], STRICT_AIM))
    else:
        tell(folder, f"{name}, strict against standard: not known without the check `speed`")


def _layout(name: str, case: Case, *, device: str, folder: Path) -> None:
    """Tell how fast steps of one case are in `channels_last`, with a graph where there is one."""
    import torch

    _begin("strict")
    place = torch.device(device)
    if (obstacle := _obstacle(case, place)) is not None:
        tell(folder, f"{name}: {obstacle}")
        return
    timed = partial(time_steps, device=place, determinism="strict", folder=folder, graphs="auto")
    rates = {}
    for memory_format in ("contiguous", "channels_last"):
        found = fitting(replace(case, memory_format=memory_format), place, timed)
        if found is None:
            tell(folder, f"{name}: does not fit into the memory")
            return
        rates[memory_format] = found[0].batch * case.steps / found[1][1]
        free(place)
    ratio = rates["channels_last"] / rates["contiguous"]
    better = "channels_last" if ratio >= WINS else "contiguous"
    advice = f"set training.memory_format: {better}" + ("" if ratio >= WINS else " (the default)")
    tell(folder, f"{name}: channels_last {ratio:.2f} times {rates['contiguous']:,.0f} samples/s: {advice}")


def _operations(case: Case, device: torch.device) -> float:
    """Return the floating-point operations of the products in a step, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from workflow_lib import plugins
    from workflow_lib.data import ModelSpec

    plugin = plugins.load("models", case.model)
    spec: Any = ModelSpec(case.shape, case.outputs, case.task)
    model = plugin.build(plugin.Params.model_validate(case.params), spec).to(device)
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        model(torch.zeros((1, *case.shape), dtype=torch.int64, device=device)).float().sum().backward()
    return float(counter.get_total_flops()) * case.batch


def _bf16_rate(device: torch.device) -> float:
    """Return the floating-point operations per second of a large product in bf16."""
    import torch

    size = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(10):
            left @ right
        synchronize(device)
        seconds.append((time.perf_counter() - begun) / 10)
    return float(2 * size**3 / min(seconds))


def _as_graph(case: Case, found: tuple[Case, tuple[float, float, list[dict[str, Any]]]] | None) -> str:
    """Return the speed with a graph, or the reason why there is none."""
    if found is None:
        return "as a graph: does not fit into the memory"
    fitted, (bare_s, ours_s, events) = found
    if not events:
        return "as a graph: it is not known why there is none"
    if events[0]["result"] != "captured":
        return f"as a graph: {events[0].get('reason')}"
    batch = f" (batch {fitted.batch})" if fitted != case else ""
    return f"as a graph{batch} {bare_s / ours_s:.2f}"


def _has_bf16(device: torch.device) -> bool:
    import torch

    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (int(BF16_CAPABILITY), 0)


SPEED = [
    Check(
        "speed",
        "steps, as a fraction of a plain loop, standard",
        lambda machine, folder: measured(machine, folder, "speed.measure_steps", "standard"),
        limit_s=300.0,
        is_alone=True,
        is_first=True,
    ),
    Check(
        "channels-last",
        "speed of channels_last for images, and what to set",
        lambda machine, folder: measured(machine, folder, "speed.measure_layouts"),
        limit_s=150.0,
        is_alone=True,
        is_first=True,
    ),
    Check(
        "speed-strict",
        "steps, as a fraction of a plain loop, strict",
        lambda machine, folder: measured(machine, folder, "speed.measure_steps", "strict"),
        limit_s=300.0,
        is_alone=True,
    ),
]

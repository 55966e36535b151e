"""Speed of steps and saves, compared with a plain loop and a plain copy. A slow result never fails a check."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .exact import need_compiler
from .project import BF16_CAPABILITY, Check, Failed, Machine, Project, Skipped, need_bf16, tail

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ROUNDS = 5
SHARES = (1, 4, 16)  # of the batch are tried in turn, until one fits into the memory


@dataclass(frozen=True)
class Case:
    """A model, the shape of its data, and how many steps are timed at once."""

    model: str
    params: dict[str, Any]
    shape: tuple[int, ...]
    outputs: int
    batch: int
    steps: int
    precision: str = "fp32"
    task: str = "classification"
    is_compiled: bool = False
    memory_format: str = "contiguous"
    aim: float | None = None  # speed, as a multiple of the plain loop
    aim_of_rate: float | None = None  # part of the card's measured bf16 rate


CASES = {
    "MLP": Case("mlp", {"hidden": [256]}, (1, 28, 28), 10, 64, 300, aim=10.0),
    "ResNet-18 bf16": Case("resnet", {"size": "18"}, (3, 32, 32), 10, 256, 30, "bf16", aim=1.3),
    "GPT 124M bf16": Case(
        "transformer", {"layers": 12, "heads": 12, "width": 768}, (1024,), 50304, 16, 8, "bf16", "language"
    ),
}
CASES["ResNet-18 bf16 channels_last"] = replace(CASES["ResNet-18 bf16"], memory_format="channels_last")
CASES["GPT 124M bf16 compiled"] = replace(CASES["GPT 124M bf16"], is_compiled=True, aim=1.0, aim_of_rate=0.5)
SMALL = {  # with --cpu
    "MLP": Case("mlp", {"hidden": [16]}, (1, 8, 8), 10, 64, 5, aim=10.0),
    "CNN": Case("cnn", {"channels": [4]}, (3, 8, 8), 10, 8, 3),
    "GPT bf16": Case("transformer", {"layers": 1, "heads": 1, "width": 16}, (8,), 64, 4, 3, "bf16", "language"),
}
SMALL["CNN channels_last"] = replace(SMALL["CNN"], memory_format="channels_last")
SMALL["GPT bf16 compiled"] = replace(SMALL["GPT bf16"], is_compiled=True, aim=1.0, aim_of_rate=0.5)
RATES = "speed.json"  # steps per second of the package with `standard`, by case, for the comparison with `strict`
STRICT_AIM = 0.97  # of the speed of `standard`
BLOCKED_AIM_S, DURABLE_AIM_S = 0.020, 1.5  # of a save of 1.5 GB


class Bench:
    """The trainer of the package on random data on the device, and the same steps without it."""

    def __init__(
        self, case: Case, device: torch.device, determinism: str, folder: Path, graphs: Literal["auto", "off"] = "off"
    ) -> None:
        import torch

        from workflow_lib import config, plan, plugins, tasks
        from workflow_lib.checkpoint import CheckpointStore
        from workflow_lib.checkpoint.saver import Saver
        from workflow_lib.config.run import Model, Training
        from workflow_lib.data import ModelSpec, Split
        from workflow_lib.distributed.ranks import Ranks
        from workflow_lib.distributed.shared_state import SharedState
        from workflow_lib.store.events import EventLog
        from workflow_lib.training.graphs import graph_for
        from workflow_lib.training.trainer import Trainer

        self.case, self.device = case, device
        spec: Any = ModelSpec(case.shape, case.outputs, case.task)
        samples = case.batch * case.steps
        if case.task == "language":
            inputs = torch.randint(0, case.outputs, (samples, case.shape[0] + 1), device=device)
            targets = torch.empty(samples, 0, device=device)
            self.pairs = inputs[:, :-1].contiguous(), inputs[:, 1:].contiguous()
        else:
            inputs = torch.randn(samples, *case.shape, device=device)
            targets = torch.randint(0, case.outputs, (samples,), device=device)
            self.pairs = inputs, targets
        model = Model(name=case.model, params=case.params)
        training: Any = {"batch_size": case.batch, "precision": case.precision, "determinism": determinism}
        training |= {"compile": case.is_compiled, "memory_format": case.memory_format}
        run = plan.base(config.Experiment(name="bench", model=model, training=Training(**training)))
        store = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
        self.saver = Saver(store, interval_s=1e9, interval_steps=None, mtbf_s=14400.0, device=device)
        split = Split(inputs, targets)
        self.trainer = Trainer(
            run,
            spec=spec,
            objective=tasks.load(case.task).objective(run.training, device, (), ()),
            train=split,
            validation=split,
            ranks=Ranks(),
            device=device,
            shared_state=SharedState(1),
            store=store,
            saver=self.saver,
            events=EventLog(folder / "events.jsonl"),
            environment={},
            metrics_file=folder / "metrics.jsonl",
            graph=graph_for(graphs, run, device, 1, is_main=True),
        )
        self.events = folder / "events.jsonl"
        begun = time.perf_counter()
        self.trainer.enter()
        self.wait()
        self.entered_s = time.perf_counter() - begun
        plugin = plugins.load("models", case.model)
        self.bare_model = plugin.build(plugin.Params.model_validate(case.params), spec).to(device)
        self.bare_optimizer = torch.optim.AdamW(self.bare_model.parameters(), lr=1e-4, fused=True)
        self.bare_forward = torch.compile(self.bare_model, dynamic=False) if case.is_compiled else self.bare_model

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        _synchronize(self.device)

    def epoch(self) -> None:
        """Run the steps with the trainer of the package."""
        cursor = self.trainer.state.progress.cursor
        cursor.phase, cursor.sample = "train", 0
        self.trainer.train_epoch()

    def bare(self) -> None:
        """Run the steps with a plain loop over tensors on the device."""
        import torch

        inputs, targets = self.pairs
        size, is_bf16 = self.case.batch, self.case.precision == "bf16"
        order = torch.randperm(len(inputs), device=self.device)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            self.bare_optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16) if is_bf16 else contextlib.nullcontext():
                outputs = self.bare_forward(inputs.index_select(0, rows))
                wanted = targets.index_select(0, rows)
                loss = torch.nn.functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), wanted.reshape(-1))
            loss.backward()
            self.bare_optimizer.step()

    def seconds(self, act: Callable[[], None]) -> float:
        """Return the seconds of the call, including the work of the device."""
        self.wait()
        begun = time.perf_counter()
        act()
        self.wait()
        return time.perf_counter() - begun


def _quiet() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _fitting(case: Case, device: torch.device, measure: Callable[[Case], T]) -> tuple[Case, T] | None:
    """Return the case with the largest batch that fits into memory, and its measurement; None if no batch fits."""
    import torch

    for share in SHARES:
        smaller = replace(case, batch=max(1, case.batch // share))
        with contextlib.suppress(torch.OutOfMemoryError):
            return smaller, measure(smaller)
        _free(device)
    return None


def _free(device: torch.device) -> None:
    """Free unused memory of the device. A trainer is part of reference cycles, so it needs a garbage collection."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_steps(device_name: str, determinism: str, folder: Path) -> list[str]:
    """Return, for each model, the steps per second of the plain loop and the fraction that the package reaches."""
    import torch

    from workflow_lib.runtime.determinism import set_determinism, set_precision

    _quiet()
    set_determinism(determinism)
    set_precision("fp32")
    device = torch.device(device_name)
    lines: list[str] = []
    rates: dict[str, float] = {}
    for name, case in (SMALL if device.type == "cpu" else CASES).items():
        if case.precision == "bf16" and not _has_bf16(device):
            lines.append(f"{name}: needs compute capability {BF16_CAPABILITY}")
            continue
        if case.is_compiled:
            try:
                need_compiler(Machine(device_name, 1))
            except Skipped as reason:
                lines.append(f"{name}: {reason}")
                continue
        time_steps = partial(_time_steps, device=device, determinism=determinism, folder=folder)
        found = _fitting(case, device, time_steps)
        if found is None:
            lines.append(f"{name}: does not fit into the memory")
            continue
        fitted, (bare_s, ours_s, _) = found
        batch = f", batch {fitted.batch}" if fitted != case else ""
        line = f"{name}{batch} {bare_s / ours_s:.2f} of {case.steps / bare_s:,.0f} steps/s"
        _free(device)
        is_tried = device.type == "cuda" or not case.is_compiled  # a second compilation would show nothing new
        captured = _fitting(fitted, device, partial(time_steps, graphs="auto")) if is_tried else (fitted, found[1])
        lines.append(f"{line}, {_as_graph(fitted, captured)}")
        _free(device)
        pairs = [(bare_s, ours_s), *([captured[1][:2]] if captured is not None else [])]
        ratio, best_s = max((bare / ours, ours) for bare, ours in pairs)
        rates[name] = case.steps / best_s
        if determinism == "standard":
            if case.aim is not None:
                lines.append(aimed(f"{name}, times a plain loop", ratio, case.aim))
            if case.aim_of_rate is not None:
                share = _operations(fitted, device) * case.steps / best_s / _bf16_rate(device)
                lines.append(aimed(f"{name}, part of the bf16 rate", share, case.aim_of_rate))
            _free(device)
    return [*lines, *_against_standard(rates, folder, determinism)]


def aimed(what: str, found: float, aim: float, *, is_most: bool = False, unit: str = "") -> str:
    """Return a line that says whether an aim is met; `show` of gpu-check collects these lines."""
    is_met = found <= aim if is_most else found >= aim
    text = f"{found:.3g}{unit}, aim at {'most' if is_most else 'least'} {aim:.3g}{unit}"
    return f"AIM {'met' if is_met else 'MISSED'}: {what}: {text}"


def _against_standard(rates: dict[str, float], folder: Path, determinism: str) -> list[str]:
    """Keep the rates of `standard`; with `strict`, compare them."""
    kept = folder.parents[1] / RATES
    if determinism == "standard":
        kept.write_text(json.dumps(rates))
        return []
    if not kept.exists():
        return ["strict against standard: not known without the check `speed`"]
    standard = json.loads(kept.read_text())
    return [
        aimed(f"{name}, strict against standard", rate / standard[name], STRICT_AIM)
        for name, rate in rates.items()
        if name in standard
    ]


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
        _synchronize(device)
        begun = time.perf_counter()
        for _ in range(10):
            left @ right
        _synchronize(device)
        seconds.append((time.perf_counter() - begun) / 10)
    return float(2 * size**3 / min(seconds))


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _as_graph(case: Case, found: tuple[Case, tuple[float, float, list[dict[str, Any]]]] | None) -> str:
    """Return the speed with a graph, or the reason why there is none."""
    if found is None:
        return "as a graph: does not fit into the memory"
    fitted, (bare_s, ours_s, events) = found
    if not events:
        return "as a graph: not on a CPU"
    if events[0]["result"] != "captured":
        return f"as a graph: {events[0].get('reason')}"
    batch = f" (batch {fitted.batch})" if fitted != case else ""
    return f"as a graph{batch} {bare_s / ours_s:.2f}"


def _has_bf16(device: torch.device) -> bool:
    import torch

    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (int(BF16_CAPABILITY), 0)


def _time_steps(
    case: Case, device: torch.device, determinism: str, folder: Path, graphs: Literal["auto", "off"] = "off"
) -> tuple[float, float, list[dict[str, Any]]]:
    """Return the seconds of the plain loop's steps and of the package's, and its events about graphs."""
    name = f"{case.model}-{case.batch}-{graphs}-{case.memory_format}" + ("-compiled" if case.is_compiled else "")
    bench = Bench(case, device, determinism, folder / name, graphs)
    bare, ours = [], []
    for turn in range(ROUNDS + 1):
        seconds = bench.seconds(bench.bare), bench.seconds(bench.epoch)
        if turn:  # the first round warms up
            bare.append(seconds[0])
            ours.append(seconds[1])
    told = map(json.loads, bench.events.read_text().splitlines() if bench.events.exists() else [])
    return statistics.median(bare), statistics.median(ours), [event for event in told if event["kind"] == "graph"]


def measure_save(device_name: str, determinism: str, folder: Path) -> list[str]:
    """Measure a save of a GPT: pinned memory, time that saves block, a plain copy for comparison, write speed."""
    import torch

    from workflow_lib.runtime.determinism import set_determinism, set_precision

    _quiet()
    set_determinism(determinism)
    set_precision("fp32")
    device = torch.device(device_name)
    case = SMALL["GPT bf16"] if device.type == "cpu" else CASES["GPT 124M bf16"]
    found = _fitting(case, device, partial(_time_save, device=device, determinism=determinism, folder=folder))
    if found is None:
        raise Skipped("the GPT does not fit into the memory")
    fitted, lines = found
    return lines if fitted == case else [*lines, f"batch {fitted.batch}, as fits into the memory"]


def _time_save(case: Case, device: torch.device, determinism: str, folder: Path) -> list[str]:
    import torch

    from workflow_lib.training import snapshot

    bench = Bench(case, device, determinism, folder / str(case.batch))
    saver, state = bench.saver, bench.trainer.state
    bench.epoch()
    quiet_s = statistics.median(bench.seconds(bench.epoch) for _ in range(3))
    tensors = [tensor for named in snapshot.mutable_tensors(state).values() for tensor in named.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    host = [torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda") for tensor in tensors]

    def copy() -> None:
        for target, source in zip(host, tensors, strict=True):
            target.copy_(source, non_blocking=True)

    copy_s = statistics.median([bench.seconds(copy) for _ in range(4)][1:])
    host.clear()
    blocked, written, busy = [], [], []
    for _ in range(3):
        before = saver.blocked_s
        bench.wait()
        bench.trainer._start_save()
        begun = time.perf_counter()
        busy.append(bench.seconds(bench.epoch))
        saver.wait_copied()
        blocked.append(saver.blocked_s - before)
        saver.wait()
        written.append(time.perf_counter() - begun)
    memory = saver._memory
    pinned = memory._memory.nbytes if memory.is_pinned else 0
    if device.type == "cuda" and pinned > 1.05 * size + (1 << 20):
        raise Failed(f"{pinned} bytes are pinned for a state of {size}")
    rest_s, size_of_aim = statistics.median(written[1:]), 1.5e9
    plain_s = _plain_write(folder / "plain", size)
    aims = [
        aimed("longest block of a save", max(blocked) * 1e3, BLOCKED_AIM_S * 1e3, is_most=True, unit=" ms"),
        aimed("save until it is durable", rest_s, DURABLE_AIM_S * size / size_of_aim, is_most=True, unit=" s")
        + f" for its size (a plain write with fsync: {plain_s:.2f} s)",
    ]
    return [
        *aims,
        f"state {size / 1e9:.2f} GB; {pinned / 1e9:.2f} GB pinned before the first step, start {bench.entered_s:.1f} s",
        f"first save blocked {blocked[0] * 1e3:.1f} ms, later ones {statistics.median(blocked[1:]) * 1e3:.1f} ms;"
        f" a plain copy {copy_s * 1e3:.1f} ms; written at {size / 1e9 / rest_s:.2f} GB/s;"
        f" steps meanwhile {statistics.median(busy[1:]) / quiet_s:.2f} of the time",
    ]


def _plain_write(path: Path, size: int) -> float:
    """Return the seconds of a write of so many random bytes until they are on the disk."""
    block = os.urandom(1 << 24)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: min(len(block), size - start)])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return seconds


MEASUREMENTS = {"steps": measure_steps, "save": measure_save}


def tell(what: str, device_name: str, determinism: str, folder: str) -> None:
    """Print the figures, or the reason for a skip, for the parent process."""
    try:
        found = {"figures": MEASUREMENTS[what](device_name, determinism, Path(folder))}
    except Skipped as reason:
        found = {"skipped": [str(reason)]}
    print("FOUND", json.dumps(found))


def _measured(machine: Machine, folder: Path, what: str, determinism: str) -> str:
    """Run a measurement in its own process, since determinism is fixed when CUDA starts."""
    if what == "save":
        need_bf16(machine)
    project = Project(folder, {})
    code = f"from gpu_check import speed; speed.tell({what!r}, {machine.device!r}, {determinism!r}, {str(folder)!r})"
    scripts = str(Path(__file__).resolve().parents[1])
    environment = project.environment()
    environment["PYTHONPATH"] = f"{scripts}:{environment['PYTHONPATH']}"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    project.said.write_text(shown.stdout + shown.stderr)
    if shown.returncode:
        raise Failed(tail(shown.stdout + shown.stderr, 3))
    line = next(line for line in shown.stdout.splitlines() if line.startswith("FOUND "))
    found: dict[str, list[str]] = json.loads(line.removeprefix("FOUND "))
    if "skipped" in found:
        raise Skipped(found["skipped"][0])
    return "; ".join(found["figures"])


SPEED = [
    Check(
        f"speed{suffix}",
        f"steps, as a fraction of a plain loop, {determinism}",
        partial(_measured, what="steps", determinism=determinism),
        limit_s=500.0,
        is_alone=True,
    )
    for suffix, determinism in (("", "standard"), ("-strict", "strict"))
] + [Check("save", "a save of 124M parameters", partial(_measured, what="save", determinism="strict"), is_alone=True)]

"""Steps as CUDA graphs: the bits of steps computed one by one, and exact resume."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from .exact import CNN, TEXT, amp, need_compiler, settings, write_text
from .project import DIGITS, Check, Failed, Machine, Project, need_bf16, prove, tail

AUGMENT = {"flip_horizontal": 0.5, "shift": 0.1, "rotation": 10, "noise": 0.05, "mixup": 0.2, "cutmix": 0.2}


REASON = "steps are not captured as a CUDA graph: "


def _equal(machine: Machine, folder: Path, **sections: Any) -> str:
    """Train the same run with and without a graph, and compare the files of the final checkpoints."""
    files, events = {}, []
    for setting in ("off", "auto"):
        chosen = settings(machine.device, runtime={"cuda_graphs": setting}, **sections.get("training", {}))
        project = Project(folder / setting, chosen | {k: v for k, v in sections.items() if k != "training"})
        if sections.get("data") == TEXT["data"]:
            write_text(project.folder)
        project.prepare()
        project.run(*project.train_words())
        (path,) = (project.folder / "work").glob("runs/*/*/events.jsonl")
        newest = max((path.parent / "checkpoints").glob("step-*"))
        manifest = json.loads((newest / "manifest.json").read_text())
        files[setting] = manifest["files"]  # with their sizes and digests
        events = [event for line in path.read_text().splitlines() if (event := json.loads(line))["kind"] == "graph"]
    if different := [name for name in files["off"] if files["off"][name] != files["auto"].get(name)]:
        raise Failed(f"other bits than without a graph, in {', '.join(different)} (events: {events})")
    if not machine.has_gpu:
        return "equal bits, both without a graph: there is no GPU"
    if not events or events[0]["result"] != "captured":
        raise Failed(f"no step was captured: {events[0].get('reason') if events else 'no reason is given'}")
    return f"equal bits, by a graph from step {events[0]['step']} on"


def _eager(machine: Machine, folder: Path, **options: Any) -> str:
    """Check that a training whose steps cannot be captured says once why, and is computed step by step."""
    nproc = options.pop("nproc", 1)
    device = machine.device if nproc == 1 else machine.every_device
    chosen = settings(device, nproc=nproc, model=CNN, epochs=1, runtime={"cuda_graphs": "auto"}, **options)
    project = Project(folder, chosen)
    project.prepare()
    said = project.run(*project.train_words())
    if not machine.has_gpu:
        return "trained without a graph: there is no GPU"
    reasons = [line.partition(REASON)[2] for line in said.splitlines() if REASON in line]
    if len(reasons) != 1:
        raise Failed(f"the reason was said {len(reasons)} times instead of once: {tail(said)}")
    return f"computed step by step, since {reasons[0]}"


def _amp(machine: Machine, folder: Path) -> str:
    return _equal(machine, folder, model=CNN, training=amp(machine))


def _transformer(machine: Machine, folder: Path) -> str:
    need_bf16(machine)
    return _equal(machine, folder, **TEXT, training={"precision": "bf16", "epochs": 1, "batch_size": 32})


def _compiled(machine: Machine, folder: Path) -> str:
    need_compiler(machine)
    return _equal(machine, folder, training={"compile": True})


def _mapped(machine: Machine, folder: Path) -> str:
    data = {"name": DIGITS, "in_memory": False, "shard_samples": 256}
    return _equal(machine, folder, model=CNN, data=data)


def _channels_last(machine: Machine, folder: Path) -> str:
    return _equal(machine, folder, model=CNN, training={"memory_format": "channels_last", "ema_decay": 0.9})


def _resume(machine: Machine, folder: Path) -> str:
    required = {"cuda_graphs": "on" if machine.has_gpu else "auto"}  # with `auto` it could prove steps without a graph
    chosen = settings(machine.device, model=CNN, runtime=required, ema_decay=0.9, clip_norm=1.0)
    return prove(Project(folder, chosen | {"schedule": {"name": "cosine"}}))


GRAPHS = [
    Check(
        "graph-mlp",
        "steps as a graph: MLP with dropout",
        partial(_equal, schedule={"name": "cosine"}),
        is_first=True,
    ),
    Check("graph-cnn", "the same: CNN with batch norm", partial(_equal, model=CNN), is_first=True),
    Check("graph-augmented", "the same: augmented and mixed images", partial(_equal, model=CNN, augment=AUGMENT)),
    Check(
        "graph-sgd",
        "the same: SGD, balanced sampling",
        partial(_equal, optimizer={"name": "sgd", "lr": 0.01}, training={"sampling": "balanced"}),
    ),
    Check("graph-amp", "the same: fp16, EMA, accumulation, clipping", _amp, is_first=True),
    Check("graph-transformer", "the same: transformer in bf16", _transformer, is_first=True),
    Check("graph-compiled", "the same: torch.compile", _compiled, is_first=True),
    Check("graph-channels", "the same: weights in channels_last", _channels_last),
    Check("graph-mapped", "the same: data read from the shards", _mapped),
    Check("prove-graph", "exact resume: steps as a graph", _resume, is_first=True),
    Check("graph-fsdp", "FSDP2 on one rank: no graph, and why", partial(_eager, parallel="fsdp")),
    Check("graph-recomputed", "activation checkpointing: the same", partial(_eager, activation_checkpointing=True)),
    Check("graph-ddp", "DDP on 2 GPUs: the same", partial(_eager, nproc=2), is_alone=True, gpus=2),
]

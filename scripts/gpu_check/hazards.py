"""Checks of imports, environment, evaluation and memory: things that can fail on GPUs outside of training steps."""

from __future__ import annotations

import json
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from workflow_lib.runtime import gpus

from .exact import need_compiler, settings
from .project import Check, Failed, Machine, Project, Skipped, prove, tail

# After each phase of the launcher, and at each point that it names, a forked process must be able to start CUDA.
FORKS = """
import os, sys
from workflow_lib import orchestrator

def can_fork(label):
    if os.environ.get("RANK"):
        return
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import torch
            torch.zeros(1, device=os.environ["GPU_CHECK_DEVICE"])
            code = 0
        except BaseException as error:
            print("FORK FAILS after", label + ":", repr(error)[:200], flush=True)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(os.environ["GPU_CHECK_FORKS"], "a") as file:
        file.write(f"{code} {label}\\n")

def followed(name, phase):
    def run(root, held):
        phase(root, held)
        if root.ranks.is_launcher:
            can_fork("the phase " + name)
    return run

def watch(event, arguments):
    if event == "everstep" and arguments[0] in ("attempt", "launch"):
        can_fork("the point " + arguments[0])

orchestrator.PHASES = tuple((name, followed(name, phase), every) for name, phase, every in orchestrator.PHASES)
sys.addaudithook(watch)
"""

# A user's model that queries devices when it is imported; {ask} is the query.
ASKING = """
import torch
from torch import nn
from workflow_lib.plugins import Section

{ask}

class Params(Section):
    pass

def build(params, spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, spec.outputs))
"""

# A sitecustomize that hides NVML, which is missing in many containers.
NO_NVML = """
import ctypes, importlib.machinery, importlib.util, os, sys

class Hiding(ctypes.CDLL):
    def __init__(self, name, *given, **options):
        if name and "nvidia-ml" in str(name):
            raise OSError("hidden")
        super().__init__(name, *given, **options)

ctypes.CDLL = Hiding
others = [path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))]
found = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if found is not None and found.loader is not None:
    found.loader.exec_module(importlib.util.module_from_spec(found))
"""

# A convolution that records the settings of the arithmetic when it is evaluated.
NOTING = """
import json, os
import torch
from torch import nn
from workflow_lib.plugins import Section

class Params(Section):
    pass

class Noting(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(32 * 64, spec.outputs)

    def forward(self, inputs):
        if not self.training and os.environ.get("GPU_CHECK_FLAGS"):
            with open(os.environ["GPU_CHECK_FLAGS"], "w") as file:
                json.dump({
                    "device": inputs.device.type,
                    "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
                    "deterministic cuDNN": torch.backends.cudnn.deterministic,
                    "no TF32 in cuDNN": not torch.backends.cudnn.allow_tf32,
                    "no TF32 in matrix products": not torch.backends.cuda.matmul.allow_tf32,
                    "no autocast": not torch.is_autocast_enabled(inputs.device.type),
                }, file)
        return self.last(self.body(inputs))

def build(params, spec):
    return Noting(spec)
"""

# An operation whose compilation uses the CPU for {seconds} seconds, once per process.
SLOW_TO_COMPILE = """
import time
import torch
from torch import nn
from torch import library
from workflow_lib.plugins import Section

waited = []

@library.custom_op("gpu_check::same", mutates_args=())
def same(x: torch.Tensor) -> torch.Tensor:
    return x.clone()

@same.register_fake
def _(x):
    if not waited:
        waited.append(True)
        end = time.monotonic() + {seconds}
        while time.monotonic() < end:
            sum(range(100_000))
    return torch.empty_like(x)

same.register_autograd(lambda context, gradient: gradient)

class Params(Section):
    pass

class Slow(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.last = nn.Linear(64, spec.outputs)

    def forward(self, inputs):
        return self.last(same(inputs.flatten(1)))

def build(params, spec):
    return Slow(spec)
"""
HANG_S = 30.0  # longer than other checks on the same cores can delay a process

# A model that allocates most of the GPU memory in its first training step, and records how much. The package also
# probes each model on the CPU, in evaluation mode, which must allocate nothing.
LARGE = """
import os
import time
import torch
from torch import nn
from workflow_lib.plugins import Section

class Params(Section):
    pass

class Large(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.last = nn.Linear(64, spec.outputs)
        self.ballast = None

    def forward(self, inputs):
        if self.ballast is None and self.training:
            path = os.environ["GPU_CHECK_TAKEN"]
            size = int(os.environ.get("GPU_CHECK_SIZE", 1 << 26))
            if inputs.is_cuda and "GPU_CHECK_SIZE" not in os.environ:
                size = int(0.9 * torch.cuda.mem_get_info(inputs.device)[0])
            self.ballast = torch.zeros(size, dtype=torch.uint8, device=inputs.device)
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            with open(path + ".new", "w") as file:
                file.write(f"{inputs.device.type} {size}")
            os.rename(path + ".new", path)
            if "GPU_CHECK_SIZE" not in os.environ:
                time.sleep(60)  # the first attempt is killed here
        return self.last(inputs.flatten(1))

def build(params, spec):
    return Large(spec)
"""


def _forks(machine: Machine, folder: Path) -> str:
    found = folder / "forks.txt"
    project = Project(folder, settings(machine.device, epochs=1))
    changes = {"GPU_CHECK_FORKS": str(found), "GPU_CHECK_DEVICE": machine.device}
    project.prepare()
    project.run(*project.train_words(), faults=FORKS, changes=changes)
    lines = found.read_text().splitlines() if found.exists() else []
    broken = [line.partition(" ")[2] for line in lines if not line.startswith("0 ")]
    if broken:
        reasons = re.findall(r"FORK FAILS .*", project.text)
        raise Failed(f"a forked process cannot start CUDA after {broken[0]}: {'; '.join(reasons[:1])}")
    if len(lines) < 8:
        raise Failed(f"only {len(lines)} places were tried: {', '.join(lines)}")
    return f"a fork of the launcher could use the device at {len(lines)} places"


def _asking(machine: Machine, folder: Path) -> str:
    ask = "COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0"
    model = {"name": "mine.asking"}
    return prove(Project(folder, settings(machine.device, model=model), asking=ASKING.format(ask=ask)), kills=1)


def _starting(machine: Machine, folder: Path) -> str:
    ask = "torch.zeros(1, device='cuda')"
    project = Project(
        folder, settings(machine.device, model={"name": "mine.starting"}), starting=ASKING.format(ask=ask)
    )
    said = project.run("prove-resume", project.experiment.name, "--kills", "1", expect=2)
    if "starting" not in said or "CUDA" not in said:
        raise Failed(f"the module that started CUDA is not named: {tail(said)}")
    return "rejected, and named"


def _visible(machine: Machine, folder: Path, kind: str) -> str:
    """Train with the id of a GPU or a MIG slice in CUDA_VISIBLE_DEVICES."""
    names = gpus.visible().values()
    ids = [name for name in names if name.startswith(f"{kind}-")]
    if not ids:
        raise Skipped(f"no id begins with {kind}-: {', '.join(names) or 'none is listed'}")
    project = Project(folder, settings("cuda", epochs=1))
    changes = {"CUDA_VISIBLE_DEVICES": ids[0]}
    project.prepare()
    project.run(*project.train_words(), changes=changes)
    trained = json.loads((folder / "run/train.json").read_text())["environment"]
    return f"trained on {trained['device_name']}"


def _no_nvml(machine: Machine, folder: Path) -> str:
    project = Project(folder, settings(machine.every_device))  # not named, so it is leased, by its device file
    hidden, empty = folder / "hidden", folder / "empty"
    hidden.mkdir()
    empty.mkdir()
    (hidden / "sitecustomize.py").write_text(NO_NVML)
    paths = f"{hidden}:{project.environment()['PYTHONPATH']}"
    return prove(project, kills=1, changes={"PYTHONPATH": paths, "PATH": str(empty)})


def _evaluation(machine: Machine, folder: Path) -> str:
    """Evaluate the same weights on the device and on the CPU."""
    project = Project(folder, settings(machine.device, model={"name": "mine.noting"}), noting=NOTING)
    project.prepare()
    project.run(*project.train_words())
    found: dict[str, dict[str, float]] = {}
    flags: dict[str, dict[str, Any]] = {}
    for device in dict.fromkeys((machine.device, "cpu")):
        chosen = settings(machine.device, model={"name": "mine.noting"}, evaluate={"device": device})
        place = Project(folder, chosen)  # the same folder, another device
        output, noted = folder / "run" / f"{device.partition(':')[0]}.json", folder / f"{device[:4]}-flags.json"
        words = ("evaluate", "--run", project.run_id, "--data", "data.json", "--model", "run/model.safetensors")
        place.run(*words, "--output", str(output), changes={"GPU_CHECK_FLAGS": str(noted)})
        result = json.loads(output.read_text())
        how = tuple(result[name] for name in ("device", "precision", "determinism"))
        if how != (device, "fp32", "strict"):
            raise Failed(f"evaluate.device: {device} was evaluated on {', '.join(how)}")
        found[device] = {name: metric["value"] for name, metric in result["metrics"].items()}
        flags[device] = json.loads(noted.read_text())
    noted_flags = flags[machine.device]
    if noted_flags.pop("device") != machine.device.partition(":")[0]:
        raise Failed("the model was evaluated on another device than evaluate.device says")
    if loose := [name for name, is_so in noted_flags.items() if not is_so and (machine.has_gpu or "TF32" not in name)]:
        raise Failed(f"evaluation is not strict fp32; missing: {', '.join(loose)}")
    differences = {name: abs(value - found["cpu"][name]) for name, value in found[machine.device].items()}
    worst = max(differences, key=differences.__getitem__)
    if differences[worst] > 5e-3:  # about one test sample
        raise Failed(f"{worst} is {found[machine.device][worst]} there and {found['cpu'][worst]} on the CPU")
    return f"largest difference of a metric {differences[worst]:.1e} ({worst}), strict fp32"


def _slow_compilation(machine: Machine, folder: Path) -> str:
    need_compiler(machine)
    seconds = 2 * HANG_S
    chosen = settings(
        machine.device, model={"name": "mine.slow"}, epochs=1, compile=True, runtime={"hang_timeout_s": HANG_S}
    )
    project = Project(folder, chosen, slow=SLOW_TO_COMPILE.format(seconds=seconds))
    project.prepare()
    begun = time.monotonic()
    project.run(*project.train_words())
    took = time.monotonic() - begun
    if took < seconds:
        raise Failed(f"the training took {took:.0f} s: the compilation was not slow")
    return f"{seconds:.0f} s of compilation with hang_timeout_s {HANG_S:.0f}: not taken for hung"


def _full_memory(machine: Machine, folder: Path) -> str:
    chosen = settings(machine.device, model={"name": "mine.large"}, epochs=2)
    project = Project(folder, chosen, large=LARGE)
    project.prepare()
    first, second = folder / "first", folder / "second"
    process = project.start(*project.train_words(), changes={"GPU_CHECK_TAKEN": str(first)})
    project.wait_for(first, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kind, size = first.read_text().split()
    if kind != machine.device.partition(":")[0] or (machine.has_gpu and int(size) < 1 << 30):
        raise Failed(f"{int(size) / 1e9:.2f} GB of the {kind}'s memory were taken: too little to tell anything")
    begun = time.monotonic()
    project.run(*project.train_words(), changes={"GPU_CHECK_TAKEN": str(second), "GPU_CHECK_SIZE": size})
    if not second.exists() or second.read_text() != first.read_text():
        raise Failed("the second attempt did not take the same memory")
    return f"{int(size) / 1e9:.1f} GB taken again at once after kill -9; finished in {time.monotonic() - begun:.0f} s"


HAZARDS = [
    Check("forks", "forks can start CUDA after each phase of the launcher", _forks),
    Check("model-asks", "a model that asks for devices when imported", _asking),
    Check("model-starts", "a model that starts CUDA when imported is rejected", _starting, needs_gpu=True),
    *(
        Check(
            f"visible-{name}",
            f"CUDA_VISIBLE_DEVICES holds the id of a {what}, which is leased",
            partial(_visible, kind=kind),
            needs_gpu=True,
        )
        for name, kind, what in (("uuid", "GPU", "GPU"), ("mig", "MIG", "MIG slice"))
    ),
    Check("no-nvml", "without NVML and nvidia-smi, as in containers", _no_nvml),
    Check("evaluation", "strict fp32 in evaluation, and metrics compared with the CPU", _evaluation),
    Check("slow-compilation", "a compilation longer than hang_timeout_s", _slow_compilation),
    Check("full-memory", "kill -9 at 90 % of the memory, restart at once", _full_memory, is_alone=True),
]

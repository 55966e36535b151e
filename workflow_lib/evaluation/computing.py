"""Device and arithmetic of an evaluation: strict fp32 with deterministic kernels.

In the precision of the training, a test would also measure the hardware: bfloat16, or TF32, which cuDNN uses by
default. In strict fp32 the results of two runs can be compared, wherever each was trained and evaluated.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from workflow_lib.errors import ConfigError, TryAgain
from workflow_lib.runtime.batch_job import job_id
from workflow_lib.runtime.determinism import NO_KERNEL
from workflow_lib.runtime.device import VISIBLE, visible_cuda
from workflow_lib.runtime.device_lease import lease_devices

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
logger = logging.getLogger(__name__)
ENVIRONMENT = {  # variables that libraries read when CUDA starts, and their allowed values
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVIDIA_TF32_OVERRIDE": ("0",),
}


@contextmanager
def device_of(name: str, setting: str = "evaluate.device") -> Iterator[torch.device]:
    """Yield the device of this name. Without a number, a GPU is leased, so that no other local job uses it.

    ``auto`` uses a GPU only if the evaluation can lease it at once: a GPU that SLURM gave to its job, or a GPU of this
    machine. ``cuda`` waits for a GPU as a training does. Raises ConfigError if the machine does not have the device.
    """
    import torch

    count = 0 if name == "cpu" else visible_cuda()
    in_job = job_id() is not None
    if name == "cpu" or (name == "auto" and (count == 0 or (in_job and not os.environ.get(VISIBLE)))):
        yield torch.device("cpu")
        return
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        visible = f" ({VISIBLE}={os.environ[VISIBLE]!r})" if VISIBLE in os.environ else ""
        there = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
        where = "; the profile sets the partition of the rule evaluate" if in_job else ""
        raise ConfigError(f"{setting}: {name} is not on this machine. Here are: {there}{visible}{where}")
    if ":" in name:
        yield torch.device("cuda", number)
        return
    with ExitStack() as held:
        try:
            # `auto` does not wait: it must stop at once if no GPU is free, and then uses the CPU
            report = logger.debug if name == "auto" else logger.info
            lease = lease_devices(1, "an evaluation", must_stop=lambda: name == "auto", report=report)
            (leased,) = held.enter_context(lease)
        except (TryAgain, ConfigError):
            if name != "auto":
                raise
            logger.info("every GPU is in use: evaluating on the CPU")
            yield torch.device("cpu")
            return
        given = os.environ.get(VISIBLE)
        ids = [id.strip() for id in given.split(",")] if given else [str(index) for index in range(count)]
        yield torch.device("cuda", ids.index(leased.strip()))


@contextmanager
def strict_fp32(*, is_deterministic: bool = True) -> Iterator[None]:
    """Switch torch to IEEE fp32 with deterministic kernels inside the block; restore the old switches after it.

    An operation without a deterministic kernel raises RuntimeError; if ``is_deterministic`` is False, it uses its
    nondeterministic kernel, and all other operations stay deterministic.
    """
    import torch

    backends: Any = torch.backends
    cuda, cpu = backends.cudnn, backends.mkldnn
    operations = (backends.cuda.matmul, cuda.conv, cuda.rnn, cpu.matmul, cpu.conv, cpu.rnn)
    deterministic: Any = torch.utils.deterministic
    debug, fills = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    cudnn = {name: getattr(cuda, name) for name in ("deterministic", "benchmark")}
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    old, new = _older_switches(), [operation.fp32_precision for operation in operations]
    try:
        for name, allowed in ENVIRONMENT.items():
            if os.environ.get(name) not in allowed:
                os.environ[name] = allowed[0]
        # torch has two sets of switches, and a model's module may have used either: the newer set takes precedence
        _switch({"matmul": "highest", "cudnn": False})
        for operation in operations:
            operation.fp32_precision = "ieee"
        cuda.deterministic, cuda.benchmark = True, False
        deterministic.fill_uninitialized_memory = False
        torch.set_deterministic_debug_mode("error" if is_deterministic else "warn")
        with warnings.catch_warnings():
            if not is_deterministic:
                warnings.filterwarnings("ignore", NO_KERNEL.pattern)
            yield
    finally:
        torch.set_deterministic_debug_mode(debug)
        deterministic.fill_uninitialized_memory = fills
        _switch(old)
        for operation, value in zip(operations, new, strict=True):
            operation.fp32_precision = value
        for name, value in cudnn.items():
            setattr(cuda, name, value)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _older_switches() -> dict[str, Any]:
    """Return the older switches that can be read: torch raises if the newer set contradicts them."""
    import torch

    found: dict[str, Any] = {}
    for name, read in (
        ("matmul", torch.get_float32_matmul_precision),
        ("cudnn", lambda: torch.backends.cudnn.allow_tf32),
    ):
        with suppress(RuntimeError):
            found[name] = read()
    return found


def _switch(switches: dict[str, Any]) -> None:
    import torch

    if "matmul" in switches:
        torch.set_float32_matmul_precision(switches["matmul"])
    if "cudnn" in switches:
        torch.backends.cudnn.allow_tf32 = switches["cudnn"]


def judged(judge: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Call the function in strict fp32; return its result, and the precision and determinism that were used.

    If the model has an operation without a deterministic kernel, the function is called again with such operations
    allowed. Two evaluations may then differ in the last bits; the log and the result say so.
    """
    try:
        with strict_fp32():
            return judge(), {"precision": "fp32", "determinism": "strict"}
    except RuntimeError as error:
        found = NO_KERNEL.search(str(error))
        if found is None:
            raise
        operation = found[1] or "cuBLAS"
    logger.warning("%s has no deterministic kernel here: another evaluation may differ in the last bits", operation)
    with strict_fp32(is_deterministic=False):
        return judge(), {"precision": "fp32", "determinism": "standard", "not_deterministic": operation}

"""The only place that uses private parts of torch: undocumented names, attributes and overrides.

Each says why the documented interface is not enough, and when it can be dropped. All are needed with torch 2.10 to
2.13.
"""

from __future__ import annotations

import copy
import functools
import re
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

core: Any = torch._C

# modules that torch imports when it exports the first model, in over a second: a process that is forked for each run
# imports them before. To be dropped when torch has public names for them.
IMPORTED_LATE = ("torch._dynamo", "torch.export._trace")

# Operations on lists of tensors: a few kernels for all tensors of a model instead of one for each. torch's optimizers
# use them. To be dropped when torch has public names for the whole family.
foreach_lerp = torch._foreach_lerp
foreach_lerp_ = torch._foreach_lerp_
foreach_sign_ = torch._foreach_sign_
foreach_mul_ = torch._foreach_mul_
foreach_add_ = torch._foreach_add_


def count_gpus_by_nvml() -> int:
    """Return the number of visible GPUs by NVML, without CUDA; negative if NVML cannot tell.

    `torch.cuda.device_count` starts CUDA where NVML cannot tell. To be dropped when it does not.
    """
    counted: int = torch.cuda._device_count_nvml()
    return counted


def replace_gpu_count(count: Callable[[], int]) -> None:
    """Let torch call ``count`` where it would count GPUs by CUDA. A second call changes nothing.

    The user's modules call `torch.cuda.device_count` and `is_available`, so it is torch that must not start CUDA. To be
    dropped when torch counts GPUs without CUDA in every case (MIG devices, containers without NVML).
    """
    # `device_count` and `is_available` both end in this function of the C++ library; builds for CPUs do not have it
    if hasattr(core, "_cuda_getDeviceCount") and not hasattr(core, "_everstep_count"):
        core._everstep_count, core._cuda_getDeviceCount = core._cuda_getDeviceCount, count


def restore_gpu_count() -> None:
    """Undo ``replace_gpu_count``."""
    if hasattr(core, "_everstep_count"):
        core._cuda_getDeviceCount = core._everstep_count
        del core._everstep_count


def storage_address(tensor: torch.Tensor) -> int:
    """Return a number that tensors share if, and only if, they share their memory, also on the meta device.

    `data_ptr` is 0 there. To be dropped when a storage has a documented identity.
    """
    address: int = tensor.untyped_storage()._cdata
    return address


# what torch says where a computation needs the values of a tensor on the meta device, which has none
WITHOUT_VALUES = re.compile(
    r"\bmeta (?:tensors?|device|kernel|\w+ tensor|and)\b|\b(?:devices?|and) meta\b|'Meta' backend"
    r"|register_meta function|unsupported format string passed to Tensor",
    re.IGNORECASE,
)


def needs_numbers(error: BaseException | None) -> bool:
    """Return True if the error, or one that it was raised from, says that a tensor on the meta device has no values.

    torch has no type of error for this. To be dropped when it has.
    """
    while error is not None:
        if isinstance(error, RuntimeError | TypeError) and WITHOUT_VALUES.search(str(error)):
            return True
        error = error.__cause__
    return False


def unwrapped_step(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return ``optimizer.step`` without its wrappers: the same arithmetic in less time.

    The wrappers serve the profiler, hooks and torch's compiler. They import the compiler at the first call, which takes
    a second, and cost a small model a tenth of each step. To be dropped when `step` imports no compiler.
    """
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    unwrapped: Callable[[], None] = torch.no_grad()(functools.partial(step, optimizer))
    return unwrapped


def unwrap_optimizer_methods() -> None:
    """Keep the other methods of optimizers from importing the compiler, for the same reason.

    `torch/_compile.py` looks for a wrapper here before it makes one. To be dropped with ``unwrapped_step``.
    """
    for method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, method), "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain


def keep_export_table() -> None:
    """Let the exporter make its table of operators once in this process and its forks, instead of for each model.

    For the table, onnxscript translates the source of 497 functions, of which only the domain is read: half of the time
    that the export of a small model takes. Where torch or onnxscript has other names, nothing changes. To be dropped
    when onnxscript reads the domain without the source, and torch keeps the table.
    """
    try:
        from onnxscript._internal.values import TracedOnnxFunction
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        table: Any = ONNXRegistry
        make, whole = table.from_torchlib.__func__, TracedOnnxFunction.function_ir
    except (ImportError, AttributeError):
        return
    if hasattr(make, "__wrapped__"):
        return
    kept: dict[str, Any] = {}

    @functools.wraps(make)
    def from_torchlib(registry: Any, *given: Any, **named: Any) -> Any:
        asked = repr((given, named))  # the version of the operators
        if asked not in kept:
            traced: Any = TracedOnnxFunction
            traced.function_ir = property(lambda function: types.SimpleNamespace(domain=function.opset.domain))
            try:
                kept[asked] = make(registry, *given, **named)
            finally:
                traced.function_ir = whole
        copied = copy.copy(kept[asked])  # conversions add functions of their own
        copied.functions = {name: list(found) for name, found in copied.functions.items()}
        return copied

    table.from_torchlib = classmethod(from_torchlib)


def configure_compiler(*, is_strict: bool) -> None:
    """Let the compiler work in this process only and, if strict, choose no kernel by its measured speed.

    The settings have no documented names. To be dropped when `torch.compile` takes them as documented options.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1
    inductor.deterministic = is_strict


def import_compiler() -> None:
    """Import the compiler, so that forked processes inherit it. To be dropped with ``unwrapped_step``."""
    import torch._dynamo  # noqa: F401


def is_compiler_error(error: Exception) -> bool:
    """Return True for an error of torch's compiler, which has no public base class. To be dropped when it has one."""
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))


def scaler_tensors(scaler: torch.amp.GradScaler) -> list[torch.Tensor]:
    """Return the tensors of the scaler's state, in its own memory; none before its first step, or if it is disabled.

    `state_dict` waits for the device and returns numbers. To be dropped when it can return the tensors.
    """
    found: tuple[torch.Tensor | None, ...] = (scaler._scale, scaler._growth_tracker) if scaler.is_enabled() else ()
    return [tensor for tensor in found if tensor is not None]


def abandon_scaled_step(scaler: torch.amp.GradScaler) -> None:
    """Forget a step between `unscale_` and `update`, which would make the next `unscale_` fail.

    To be dropped when the scaler has a documented way to abandon a step.
    """
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()


def is_batch_norm(module: nn.Module) -> bool:
    """Return True for a batch norm of any dimension, lazy or synchronized: they have no public base class."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


class ShardedScaler(torch.amp.GradScaler):
    """Gradient scaler that skips a step on all ranks if one rank finds an infinity in its part of the gradients.

    torch's ShardedGradScaler adds the flags of the ranks. The sum may be 2, and fused optimizers skip a step only at 1.
    To be dropped when it takes their maximum.
    """

    def _unscale_grads_(self, *given: Any) -> dict[torch.device, torch.Tensor]:
        found = super()._unscale_grads_(*given)
        for flag in found.values():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return found

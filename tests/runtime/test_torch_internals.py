"""Shortcuts through private parts of torch give what torch gives."""

from __future__ import annotations

from typing import Any

from workflow_lib.runtime.torch_internals import keep_export_table

VERSION = 18  # of the operators


def told(table: Any) -> dict[str, list[tuple[Any, ...]]]:
    return {
        str(name): [
            (each.onnx_function, repr(each.signature), each.is_complex, each.opset_introduced) for each in found
        ]
        for name, found in table.functions.items()
    }


def test_the_kept_table_of_exports_is_that_of_torch() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    keep_export_table()
    make: Any = ONNXRegistry.from_torchlib
    kept = make(opset_version=VERSION)
    assert told(kept) == told(make.__wrapped__(ONNXRegistry, opset_version=VERSION))
    name = next(iter(kept.functions))
    kept.functions[name].clear()  # as a conversion with functions of its own may change it
    assert make(opset_version=VERSION).functions[name]

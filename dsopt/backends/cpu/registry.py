"""The converters by operator: functions that write the ONNX form of one node."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from torch import fx

from dsopt.ir.torch_private import is_operator

if TYPE_CHECKING:
    pass

Converter = Callable[..., Any]
"""(emitter, *args of the node, **kwargs of the node) -> Value, or a tuple of Value | None for an operator with several results."""

CONVERTERS: dict[str, Converter] = {}
"""Operator key -> converter; filled when `load_converters` has imported the families."""

_FAMILIES = (
    "activation",
    "arithmetic",
    "attention",
    "casting",
    "comparison",
    "convolution",
    "creation",
    "dynamic",
    "functions",
    "indexing",
    "joining",
    "linear",
    "normalization",
    "padding",
    "pooling",
    "quantization",
    "quantized_recurrent",
    "recurrent",
    "reduction",
    "resize",
    "scatter",
    "shape",
    "sizes",
    "sorting",
    "sparse_attention",
)


class RefusalError(Exception):
    """A node that has no ONNX form here: why, and the nearest form that has one."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


_Function = TypeVar("_Function", bound=Converter)


def converter(*keys: str) -> Callable[[_Function], _Function]:
    """Register a converter under operator keys such as "aten.conv2d.default" or "operator.add"."""

    def register(function: _Function) -> _Function:
        for key in keys:
            assert key not in CONVERTERS, key
            CONVERTERS[key] = function
        return function

    return register


def operator_key(target: Any) -> str:
    """Return the key of a node's target: "aten.relu.default", "operator.add", "torch.sym_max", "math.floor"."""
    if is_operator(target):
        return str(target)
    module = str(getattr(target, "__module__", "")).lstrip("_")
    return f"{module}.{getattr(target, '__name__', str(target))}"


def find_converter(node: fx.Node) -> Converter | None:
    """Return the converter of a call_function node, None if there is none."""
    load_converters()
    return CONVERTERS.get(operator_key(node.target))


def load_converters() -> None:
    """Import all families, once."""
    for family in _FAMILIES:
        import_module(f"dsopt.backends.cpu.ops.{family}")

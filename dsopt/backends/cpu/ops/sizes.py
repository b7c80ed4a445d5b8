"""Arithmetic on sizes that vary, on int64 vectors of one element; results of tuples; numbers read from tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter, Extent
from dsopt.backends.cpu.expressions import arithmetic
from dsopt.backends.cpu.registry import RefusalError, converter


@converter("operator.getitem")
def convert_getitem(cx: Emitter, values: fx.Node, index: int) -> Value:
    """Pick one of several results."""
    found = cx.results(values)[index]
    assert found is not None, f"result {index} of {values} was not emitted"
    return found


@converter("aten.sym_size.int")
def convert_sym_size(cx: Emitter, x: fx.Node, dim: int) -> Extent:
    """Read a size."""
    return cx.extent(x, cx.axis(dim, cx.rank(x)))


@converter("aten.sym_numel.default")
def convert_sym_numel(cx: Emitter, x: fx.Node) -> Extent:
    """Multiply all sizes."""
    return cx.op("Reshape", cx.op("Size", cx.value(x), dtype=torch.int64), cx.vector([1]))


def _register_arithmetic(key: str, op_type: str) -> None:
    @converter(key)
    def convert(cx: Emitter, a: Any, b: Any) -> Value:
        left, right = cx.size(a), cx.size(b)
        if _is_float(left) or _is_float(right):
            return cx.op(op_type, _as_double(cx, left), _as_double(cx, right))
        return arithmetic(cx, op_type, left, right)


for _key, _op_type in (
    ("operator.add", "Add"),
    ("operator.sub", "Sub"),
    ("operator.mul", "Mul"),
    ("operator.floordiv", "Div"),
    ("operator.mod", "Mod"),
    ("torch.sym_max", "Max"),
    ("torch.sym_min", "Min"),
):
    _register_arithmetic(_key, _op_type)


@converter("operator.neg")
def convert_neg(cx: Emitter, a: Any) -> Value:
    """Negate."""
    value = cx.size(a)
    assert isinstance(value, Value)
    return cx.op("Neg", value)


@converter("operator.truediv")
def convert_truediv(cx: Emitter, a: Any, b: Any) -> Value:
    """Divide as floats of 64 bits, as Python does."""
    return cx.op("Div", _as_double(cx, cx.size(a)), _as_double(cx, cx.size(b)))


@converter("operator.pow")
def convert_pow(cx: Emitter, a: Any, b: Any) -> Value:
    """Raise to a power."""
    return cx.op("Pow", cx.sizes([cx.size(a)]), cx.sizes([cx.size(b)]))


@converter("torch.sym_float")
def convert_sym_float(cx: Emitter, a: Any) -> Value:
    """Take a size as a float of 64 bits."""
    return _as_double(cx, cx.size(a))


@converter("math.floor", "math.trunc", "torch.sym_int")
def convert_floor(cx: Emitter, a: Any) -> Value:
    """Round down; sizes are not negative."""
    return cx.cast(cx.op("Floor", _as_double(cx, cx.size(a))), torch.int64)


@converter("math.ceil")
def convert_ceil(cx: Emitter, a: Any) -> Value:
    """Round up."""
    return cx.cast(cx.op("Ceil", _as_double(cx, cx.size(a))), torch.int64)


@converter("builtins.round")
def convert_round(cx: Emitter, a: Any) -> Value:
    """Round to the nearest, halves to even."""
    return cx.cast(cx.op("Round", _as_double(cx, cx.size(a))), torch.int64)


@converter("math.sqrt", "torch._sym_sqrt")
def convert_sqrt(cx: Emitter, a: Any) -> Value:
    """Take the square root as a float of 64 bits."""
    return cx.op("Sqrt", _as_double(cx, cx.size(a)))


def _is_float(size: Any) -> bool:
    return isinstance(size, float) or (isinstance(size, Value) and size.dtype.is_floating_point)


def _as_double(cx: Emitter, size: Any) -> Value:
    return cx.cast(size, torch.float64) if isinstance(size, Value) else cx.constant([float(size)], torch.float64)


@converter("aten.item.default", "aten._local_scalar_dense.default")
def convert_item(cx: Emitter, x: fx.Node) -> Value:
    """Read the only element of a tensor as a size."""
    if cx.value(x).dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise RefusalError("a float or bool is read from a tensor into Python", "keep it a tensor")
    return cx.op("Reshape", cx.cast(cx.value(x), torch.int64), cx.vector([1]))

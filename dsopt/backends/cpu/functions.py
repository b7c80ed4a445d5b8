"""ONNX functions: operators of dsopt whose meaning stands in the model itself, written with standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dsopt.backends.cpu.builder import GraphBuilder, Value

DSOPT = "dsopt"
"""The domain of the functions that a model defines."""


@dataclass(frozen=True)
class Function:
    """A function by name: its inputs and outputs are names in `body`, whose stored tensors become Constant nodes.

    meaning: what it computes, for who has a faster way.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: FunctionBuilder
    meaning: Any = None


class FunctionBuilder(GraphBuilder):
    """A graph builder with short words for what bodies of functions do over and over. Sizes are known; 0 in `reshape` copies one."""

    def input(self, name: str, dtype: torch.dtype) -> Value:
        """Take a name for an input of the function."""
        return Value(self.unique(name), dtype)

    def function(self, name: str, inputs: Sequence[Value], output: Value) -> Function:
        """Return what was written as a function of one result."""
        self.prune([output.name])
        used = {name for node in self.nodes for each in node.walk() for name in each.inputs}
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in used}
        return Function(name, tuple(each.name for each in inputs), (output.name,), self)

    # ---- constants ----

    def whole(self, data: Any) -> Value:
        """Store int64 numbers in the shape of `data`."""
        return self.constant(np.asarray(data, dtype=np.int64), torch.int64)

    def number(self, data: float, like: Value) -> Value:
        """Store a scalar of the dtype of another value."""
        return self.constant(data, like.dtype)

    # ---- layout ----

    def reshape(self, value: Value, *sizes: int) -> Value:
        """Give another shape; one size may be -1."""
        return self.op("Reshape", value, self.vector(sizes))

    def unsqueeze(self, value: Value, *axes: int) -> Value:
        """Insert axes of size 1, counted in the result."""
        return self.op("Unsqueeze", value, self.vector(axes))

    def transpose(self, value: Value, *order: int) -> Value:
        """Permute axes."""
        return self.op("Transpose", value, perm=list(order))

    def slice(self, value: Value, axis: int, start: int, end: int) -> Value:
        """Take start..end along an axis."""
        return self.op("Slice", value, self.vector([start]), self.vector([end]), self.vector([axis]))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Join along an axis."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

    def expand(self, value: Value, *sizes: Value | int) -> Value:
        """Repeat along axes of size 1. sizes: numbers, and int64 vectors of one element."""
        parts = [self.vector([size]) if isinstance(size, int) else size for size in sizes]
        return self.op("Expand", value, self.concat(parts, 0))

    def size(self, value: Value, axis: int) -> Value:
        """Read a size at run time, as a vector of one element."""
        return self.op("Shape", value, dtype=torch.int64, start=axis, end=axis + 1)

    # ---- arithmetic ----

    def add(self, left: Value, right: Value) -> Value:
        """Add."""
        return self.op("Add", left, right)

    def times(self, left: Value, right: Value) -> Value:
        """Multiply."""
        return self.op("Mul", left, right)

    def matmul(self, left: Value, right: Value) -> Value:
        """Multiply matrices."""
        return self.op("MatMul", left, right)

    def sum(self, value: Value, axis: int, keepdims: int = 0) -> Value:
        """Add up along an axis."""
        return self.op("ReduceSum", value, self.vector([axis]), keepdims=keepdims)

    def test(self, op_type: str, left: Value, right: Value) -> Value:
        """Compare, or combine bools."""
        return self.op(op_type, left, right, dtype=torch.bool)

    def where(self, condition: Value, yes: Value, no: Value) -> Value:
        """Choose element by element."""
        return self.op("Where", condition, yes, no, dtype=yes.dtype)

    # ---- picking ----

    def gather(self, value: Value, index: Value, axis: int = 0) -> Value:
        """Take slices along an axis."""
        return self.op("Gather", value, index, axis=axis)

    def pick(self, value: Value, place: Value, axis: int) -> Value:
        """Take elements along an axis, for each place of the other axes its own."""
        return self.op("GatherElements", value, place, axis=axis)

    def top(self, value: Value, count: int, largest: bool = True) -> tuple[Value, Value]:
        """Return the first `count` along the last axis in order, and their places; of equal elements the first comes first."""
        found = self.ops("TopK", value, self.vector([count]), dtypes=(None, torch.int64), axis=-1,
                         largest=int(largest), sorted=1)  # fmt: skip
        return found[0], found[1]

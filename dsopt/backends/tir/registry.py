"""Which operator becomes which loop nests: one function per operator, found by the operator's name.

    @lowering("aten.relu.default")
    def relu(context: Context, x: Buffer) -> Buffer: ...

A lowering takes the operator's arguments in the order of its schema, defaults filled in; tensors are buffers, lists may hold
buffers, sizes are ints. It opens kernels on the context, and returns its result: a buffer, or a tuple of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.program import Buffer

Result: TypeAlias = "Buffer | tuple[Buffer | None, ...] | None"
Lowering: TypeAlias = Callable[..., Result]

LOWERINGS: dict[str, Lowering] = {}
"""Operator name, such as "aten.conv2d.default" -> its lowering."""


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of operators."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            assert name not in LOWERINGS, name
            LOWERINGS[name] = function
        return function

    return register


class RefusedError(Exception):
    """A lowering cannot take these arguments: why, and the nearest form that it can."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


class UnsuitedError(Exception):
    """A better lowering does not fit these arguments, and says why; raised before it has declared or opened anything."""


@dataclass(frozen=True)
class Layout:
    """A strided view of a contiguous buffer: shape, strides and offset in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def is_whole(self, elements: int) -> bool:
        """Return whether the view walks through all `elements` elements of the buffer in order."""
        if self.offset or math.prod(self.shape) != elements:
            return False
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Session(Protocol):
    """What a context needs of the program being lowered."""

    def add_buffer(
        self, hint: str, shape: Sequence[int], dtype: str, alias_of: str | None, channels_last: bool = False, offset: int = 0
    ) -> Buffer:  # fmt: skip
        """Declare a temporary buffer under a free name. offset: the byte of `alias_of` at which it begins."""

    def add_constant(self, hint: str, values: np.ndarray[Any, Any]) -> Buffer:
        """Declare a weight under a free name."""

    def add_kernel(self, builder: KernelBuilder, multiply_adds: int) -> None:
        """Append a finished kernel."""

    def free_name(self, hint: str) -> str:
        """Return a C identifier that no kernel has yet."""

    def root(self, target: Buffer) -> Buffer:
        """Return the buffer that owns the bytes of `target`."""

    def constant(self, target: Buffer) -> np.ndarray[Any, Any] | None:
        """Return the values of a weight; None for a buffer whose values are not known yet."""

    def layouts(self) -> tuple[Layout, ...]:
        """Return the results of the node being lowered, a view in torch, as strided views of its contiguous first argument."""

    def may_overwrite(self, target: Buffer) -> bool:
        """Return whether the node being lowered is the last to see the bytes of `target`, and may change them."""

    def adopt(self, part: Buffer, whole: Buffer, offset: int) -> bool:
        """Have a value lie in `whole` from a byte on where only the node being lowered reads it. Returns whether it does."""

    def move_ahead(self, count: int, target: Buffer) -> None:
        """Have the last kernels run before the first other that writes `target`, if there is by then what they read."""

    def readers(self) -> tuple[str, ...]:
        """Return the operators that read the result of the node being lowered, "output" among them if it is one."""


class Context:
    """One node being lowered: declare its buffers, open its kernels."""

    def __init__(
        self,
        session: Session,
        operator: str,
        label: str,
        outputs: Sequence[tuple[tuple[int, ...], str] | None],
        is_tuple: bool,
    ) -> None:
        """label: name of the kernels, from layer and operator. outputs: (shape, dtype) of each result, None for no tensor."""
        self.session = session
        self.operator = operator
        self.label = label
        self.outputs = outputs
        self.is_tuple = is_tuple

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the (first) result."""
        return self._output(0)[0]

    @property
    def dtype(self) -> str:
        """Return the dtype of the (first) result."""
        return self._output(0)[1]

    def _output(self, number: int) -> tuple[tuple[int, ...], str]:
        found = self.outputs[number]
        assert found is not None
        return found

    def result(self, number: int = 0, channels_last: bool = False) -> Buffer:
        """Declare the buffer of a result."""
        shape, dtype = self._output(number)
        return self.session.add_buffer(self.label, shape, dtype, None, channels_last)

    def temp(self, hint: str, shape: Sequence[int], dtype: str) -> Buffer:
        """Declare another buffer, for values between kernels or for scratch."""
        return self.session.add_buffer(f"{self.label}_{hint}", shape, dtype, None)

    def weight(self, hint: str, values: np.ndarray[Any, Any]) -> Buffer:
        """Declare numbers that are known now, in an order of the lowering's own."""
        return self.session.add_constant(f"{self.label}_{hint}", values)

    def view(self, source: Buffer, shape: Sequence[int] | None = None) -> Buffer:
        """Return the bytes of `source` in another shape, by default the result's; no kernel is needed."""
        view = tuple(self.shape if shape is None else shape)
        return (
            source
            if view == source.shape
            else self.session.add_buffer(f"{source.name}_view", view, source.dtype, source.name)
        )

    def layouts(self) -> tuple[Layout, ...]:
        """Return the results of a view operator as strided views of its contiguous first argument."""
        return self.session.layouts()

    def root(self, target: Buffer) -> Buffer:
        """Return the buffer that owns the bytes of `target`."""
        return self.session.root(target)

    def constant(self, target: Buffer) -> np.ndarray[Any, Any] | None:
        """Return the values of a weight, so that a kernel may be written for them; None where they are known only at run time."""
        return self.session.constant(target)

    def may_overwrite(self, target: Buffer) -> bool:
        """Return whether this node may write its result over `target`, whose bytes nobody reads afterwards."""
        return self.session.may_overwrite(target)

    def readers(self) -> tuple[str, ...]:
        """Return the operators that read the result, "output" among them if the model returns it."""
        return self.session.readers()

    @contextmanager
    def kernel(self, suffix: str = "", multiply_adds: int = 0) -> Iterator[KernelBuilder]:
        """Open a kernel; it is appended to the program when the block ends."""
        builder = KernelBuilder(self.session.free_name(f"{self.label}_{suffix}" if suffix else self.label))
        yield builder
        self.session.add_kernel(builder, multiply_adds)


def identifier(text: str) -> str:
    """Make a C identifier of any text: "features.0.conv" -> "features_0_conv", "0.conv" -> "layer_0_conv"."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "value"
    return f"layer_{name}" if name[0].isdigit() else name


def normalize_dim(dim: int, rank: int) -> int:
    """Count a dim from the front; `rank` 0 is taken as 1."""
    return dim % max(rank, 1)

"""LoopProgram: a model as loop nests over flat buffers, in the order in which they run. What the mcu and cuda backends share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

BufferKind = Literal["input", "output", "state", "weight", "temp"]

ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
"""The dtypes of buffers, and the bytes of one element."""


def channels_to_end(shape: Sequence[int]) -> tuple[int, ...]:
    """Return (B, C, *spatial) as (B, *spatial, C)."""
    return (shape[0], *shape[2:], shape[1])


@dataclass(frozen=True)
class Buffer:
    """A contiguous array. `alias_of` names the buffer whose bytes it shares, from byte `offset` of it on, seen in another shape.

    kind "output" is written by a kernel and stays whole to the end of a run; an output of the model that is an alias of an
    input, state or weight keeps the kind of what it shares.  channels_last: whether dim 1 of `shape` is the innermost of the bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: BufferKind
    alias_of: str | None = None
    channels_last: bool = False
    offset: int = 0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape in the order of the bytes: (B, *spatial, C) for channels last."""
        return channels_to_end(self.shape) if self.channels_last else self.shape

    @property
    def elements(self) -> int:
        """Return the number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the array."""
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class MicroKernel:
    """A C function that loop nests call: its text defines a static function `name`, or what else has to stand before others."""

    name: str
    text: str


@dataclass(frozen=True)
class Overlap:
    """`output` may lie over `input`, which nothing reads later, if it starts at least `shift` bytes before it.

    exact: only if it starts where the input starts.
    """

    output: str
    input: str
    shift: int
    exact: bool = False


@dataclass(frozen=True)
class Kernel:
    """One loop nest. `func` takes the buffers `inputs`, `outputs`, `scratch` in this order, as views of their bytes.

    func: an S-TIR PrimFunc: loops over a grid of independent steps around one spatial block. A buffer that is both read and
    updated in place is an output only. name: a C identifier made of the user's module path. multiply_adds: of one run.
    micro: the functions that it calls.  overlaps: results that may lie over operands.  choice: how it was written, in words, and
    `why` it was not written in the best way for the target; both empty for operators that have one way only.  is_glue: whether the
    time goes into functions that it calls, so that its own loops should be small rather than fast.
    """

    name: str
    func: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scratch: tuple[str, ...]
    layer: str
    source: str
    node: str
    multiply_adds: int = 0
    micro: tuple[MicroKernel, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    choice: str = ""
    why: str = ""
    is_glue: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the buffers in the order of the function's parameters."""
        return self.inputs + self.outputs + self.scratch


@dataclass(frozen=True)
class State:
    """A state of the model: the buffer that holds it, and the buffer that holds its next value after the kernels have run.

    Where `update` is the state's own buffer (or an alias of it), the kernels update it in place; otherwise the caller copies.
    """

    name: str
    buffer: str
    update: str


@dataclass(frozen=True)
class Grid:
    """The real numbers that the integers of a buffer stand for: scale * (q - zero_point), q in low..high."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class LoopProgram:
    """Kernels in order, every buffer by name, and the values of weights and the first values of states.

    inputs, outputs: buffer names in the order of the model's signature; an output may be an alias of any other buffer.
    constants: array of each weight buffer that a kernel or an output uses, and of each state buffer (its first value).
    results: the buffer with the (first) result of each graph node that has kernels, by the node's name.
    grids: of inputs and outputs that are integers here and real numbers in the program.
    """

    kernels: tuple[Kernel, ...]
    buffers: Mapping[str, Buffer]
    constants: Mapping[str, np.ndarray[Any, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[State, ...]
    results: Mapping[str, str]
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def root(self, name: str) -> Buffer:
        """Return the buffer that owns the bytes of `name`, following aliases."""
        found = self.buffers[name]
        while found.alias_of is not None:
            found = self.buffers[found.alias_of]
        return found

    def offset(self, name: str) -> int:
        """Return the byte of its root at which a buffer begins."""
        found, offset = self.buffers[name], 0
        while found.alias_of is not None:
            found, offset = self.buffers[found.alias_of], offset + found.offset
        return offset

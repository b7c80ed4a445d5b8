"""An ONNX graph in the making: nodes, stored tensors, constants, names; casts where ONNX Runtime lacks a kernel for a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dsopt.backends.cpu.kernels import KERNEL_DTYPES, NARROW, WIDER, Typed
from dsopt.backends.cpu.registry import RefusalError

if TYPE_CHECKING:
    from dsopt.backends.cpu.functions import Function

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Value:
    """A tensor in the ONNX graph, by name."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Body:
    """The graph inside of a Scan, which also sees the values around it."""

    nodes: list[Node]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass
class Node:
    """One operator call; an absent optional input is ""."""

    op_type: str
    name: str
    inputs: list[str]
    outputs: list[str]
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def walk(self) -> Iterator[Node]:
        """Yield the node, and those of the graphs inside of it."""
        yield self
        for value in self.attributes.values():
            if isinstance(value, Body):
                for node in value.nodes:
                    yield from node.walk()


class GraphBuilder:
    """Collect nodes and stored tensors. Converters call `op`; names follow the current `scope`, the user's module path.

    narrow: the dtypes of stored tensors that have one of `NARROW` in the file.  functions: by name, those that nodes call.
    dtypes: of the results of nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.functions: dict[str, Function] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.initializers: dict[str, Tensor] = {}
        self.narrow: dict[str, torch.dtype] = {}
        self.scope = ""
        self._taken: set[str] = set()
        self._constants: dict[tuple[torch.dtype, tuple[int, ...], bytes], Value] = {}

    # ---- names ----

    def unique(self, name: str) -> str:
        """Return `name`, with a number appended if it is taken, and take it."""
        candidate, count = name, 1
        while candidate in self._taken:
            candidate, count = f"{name}_{count}", count + 1
        self._taken.add(candidate)
        return candidate

    # ---- stored tensors ----

    def store(self, name: str, tensor: Tensor, narrow: torch.dtype | None = None) -> Value:
        """Store a tensor under a name of its own; the same name again gives the same value. narrow: one of `NARROW`."""
        if name not in self.initializers:
            self._taken.add(name)
            self.initializers[name] = tensor.detach()
            if narrow is not None:
                self.narrow[name] = narrow
        return Value(name, self.stored_dtype(name))

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a stored tensor has in the file."""
        return self.narrow.get(name, self.initializers[name].dtype)

    def constant(self, data: Any, dtype: torch.dtype) -> Value:
        """Store a small tensor (numbers, nested lists, numpy or torch), shared by all that use an equal one."""
        narrow = dtype if dtype in NARROW else None
        tensor = torch.as_tensor(
            np.float64(data) if isinstance(data, float) else data
        )  # as torch.float64, not as torch's default
        tensor = tensor.to(torch.int8 if narrow else dtype)
        key = (dtype, tuple(tensor.shape), tensor.contiguous().view(-1).numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self.store(self.unique(f"constant.{len(self._constants)}"), tensor, narrow)
        return self._constants[key]

    def vector(self, numbers: Iterable[int]) -> Value:
        """Store a 1-d int64 constant: axes, sizes, starts."""
        return self.constant(np.asarray(list(numbers), dtype=np.int64), torch.int64)

    # ---- nodes ----

    def op(
        self, op_type: str, *inputs: Value | None, dtype: torch.dtype | None = None, domain: str = "", **attributes: Any
    ) -> Value:
        """Append a node with one result, of `dtype` or else of its first input's dtype; attributes that are None are left out."""
        return self.ops(op_type, *inputs, dtypes=(dtype,), domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: Value | None,
        dtypes: Sequence[torch.dtype | None],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Append a node with `len(dtypes)` results.

        Where ONNX Runtime has no kernel for the inputs' dtype, computes in a wider one. Raises RefusalError if there is none.
        """
        typed = KERNEL_DTYPES.get(op_type)
        native = _typed_dtype(typed, inputs)
        work = native if typed is None else self._work_dtype(op_type, typed, native)
        if typed is not None and work != native:
            inputs = tuple(
                self.cast(each, work) if each is not None and typed.covers(number) and each.dtype == native else each
                for number, each in enumerate(inputs)
            )
        results: list[Value] = []
        name = self.unique(f"{self.scope}/{op_type}" if self.scope else op_type)
        for number, dtype in enumerate(dtypes):
            wanted = dtype or native
            results.append(
                Value(name if number == 0 else self.unique(f"{name}.{number}"), work if wanted == native else wanted)
            )
            self.dtypes[results[-1].name] = results[-1].dtype
        names = [each.name if each is not None else "" for each in inputs]
        while names and not names[-1]:
            names.pop()
        kept = {key: value for key, value in sorted(attributes.items()) if value is not None}
        self.nodes.append(Node(op_type, name, names, [result.name for result in results], domain, kept))
        if work == native:
            return tuple(results)
        return tuple(
            self.cast(result, native) if (dtype or native) == native else result
            for result, dtype in zip(results, dtypes, strict=True)
        )

    def _work_dtype(self, op_type: str, typed: Typed, native: torch.dtype) -> torch.dtype:
        dtype: torch.dtype | None = native
        while dtype is not None:
            if dtype in typed.dtypes or dtype == torch.float16:  # ONNX Runtime itself computes float16 in float32
                return dtype
            dtype = WIDER.get(dtype)
        raise RefusalError(
            f"ONNX Runtime has no {str(native).removeprefix('torch.')} kernel of {op_type}",
            "convert the model or this value to float32 before capturing",
        )

    # ---- what every family needs ----

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """Return the value in another dtype, as torch casts: floats to ints are truncated, numbers to bools are `!= 0`."""
        if value.dtype == dtype:
            return value
        stored = self.initializers.get(value.name)
        if stored is not None and stored.numel() <= 64 and value.name not in self.narrow:
            return self.constant(stored.to(dtype), dtype)
        name = self.unique(f"{self.scope}/Cast" if self.scope else "Cast")
        self.dtypes[name] = dtype
        self.nodes.append(Node("Cast", name, [value.name], [name], "", {"to": dtype}))
        return Value(name, dtype)

    def rename(self, value: Value, name: str, first: int = 0, is_node_renamed: bool = False) -> Value:
        """Give a value that a node from number `first` on produces, and perhaps that node, another name; others stay."""
        producer = next((node for node in self.nodes[first:] if value.name in node.outputs), None)
        if producer is None:
            return value
        if is_node_renamed:
            producer.name = name
        producer.outputs = [name if each == value.name else each for each in producer.outputs]
        self.dtypes[name] = self.dtypes.pop(value.name, value.dtype)
        for outer in self.nodes[first:]:
            for node in outer.walk():
                node.inputs = [name if each == value.name else each for each in node.inputs]
        return Value(name, value.dtype)

    @contextmanager
    def body(self) -> Iterator[list[Node]]:
        """Collect the nodes that are appended meanwhile into a list of their own, for a `Body`; stored tensors stay outside."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def prune(self, wanted: Iterable[str]) -> None:
        """Remove nodes whose results neither a node nor `wanted` reads."""
        needed = set(wanted)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(name for each in node.walk() for name in each.inputs)
                kept.append(node)
        self.nodes = kept[::-1]


def _typed_dtype(typed: Typed | None, inputs: Sequence[Value | None]) -> torch.dtype:
    for number, each in enumerate(inputs):
        if each is not None and (typed is None or typed.covers(number)):
            return each.dtype
    return torch.float32

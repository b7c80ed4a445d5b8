"""What converters see: the arguments of a program's node as ONNX values, sizes that vary, and the builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.builder import GraphBuilder, Value
from dsopt.backends.cpu.decompose import decompose
from dsopt.backends.cpu.expressions import SizeTerm, evaluate_text
from dsopt.backends.cpu.registry import RefusalError, find_converter, operator_key
from dsopt.errors import VerifyError
from dsopt.ir import Program
from dsopt.ir.torch_private import same_size

Dim = int | torch.SymInt
"""A size as recorded in the program."""

Extent = int | Value
"""A size in the ONNX graph: a number, or an int64 vector of one element."""

INT64_MAX = 2**63 - 1


class Emitter(GraphBuilder):
    """Convert a program node by node; `node` is the one being converted, `live` those that some output depends on."""

    def __init__(self, program: Program, live: Set[fx.Node]) -> None:
        super().__init__()
        self.program, self.live = program, live
        self.node: fx.Node = program.output_node
        self._values: dict[fx.Node, Any] = {}
        self._weight_names: dict[fx.Node, str] = {}
        self._stored_names: dict[fx.Node, str] = {}
        self._made: dict[tuple[Any, ...], Any] = {}
        self._derived: dict[str, Value] = {}
        self._shapes: dict[tuple[str, int], Value] = {}
        self._symbols: dict[str, tuple[Value, int]] = {}
        self._reshaped: dict[str, tuple[Value, tuple[Dim, ...]]] = {}
        self._permuted: dict[str, tuple[Value, Sequence[int]]] = {}

    # ---- placing values ----

    def bind(self, node: fx.Node, value: Any) -> None:
        """Record the ONNX value (or tuple of values) of a program node."""
        self._values[node] = value

    def rebind(self, old: Value, new: Value) -> None:
        """Record that a value has been renamed."""
        self._values = {node: new if value == old else value for node, value in self._values.items()}

    def bind_weight(self, node: fx.Node, name: str) -> None:
        """Record a placeholder that stands for a stored weight; it is written when first used."""
        self._weight_names[node] = name
        self._stored_names[node] = self.unique(name)

    def bind_symbol(self, name: str, value: Value, axis: int) -> None:
        """Record an input axis that a varying dim can be read from."""
        self._symbols.setdefault(name, (value, axis))

    def has(self, node: fx.Node) -> bool:
        """Tell whether a node has been converted."""
        return node in self._values

    def convert(self, node: fx.Node) -> None:
        """Convert one call_function node in the scope of its layer. Raises RefusalError."""
        function = find_converter(node)
        if function is None:
            self._convert_parts(node)
            return
        before = self.node, self.scope
        first = len(self.nodes)
        self.node = node
        base = operator_key(node.target).split(".")[1]
        name = "/".join(part for part in (self.program.layer(node), base) if part)
        self.scope = self.unique(name)
        try:
            result = function(self, *node.args, **node.kwargs)
            if isinstance(result, Value) and isinstance(node.meta["val"], Tensor):
                result = self._take_scope_name(result, first)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
            raise VerifyError(
                "DS0502",
                f"the ONNX converter of {operator_key(node.target)} failed on {node.args} {node.kwargs}",
                where=self.program.where(node),
                why=f"{type(problem).__name__}: {problem}",
                fix="report this as a bug of dsopt",
            ) from problem
        finally:
            self.node, self.scope = before
        self.bind(node, result)

    def _convert_parts(self, node: fx.Node) -> None:
        """Convert a node that has no converter by the simpler operators that torch lowers it to."""
        key = operator_key(node.target)
        if node.graph is not self.program.graph or not isinstance(node.meta["val"], (Tensor, tuple, list)):
            raise RefusalError(f"there is no ONNX form of {key} in dsopt", "write it with other operators")
        graph = decompose(node)
        placeholders = [each for each in graph.nodes if each.op == "placeholder"]
        for placeholder, given in zip(placeholders, node.all_input_nodes, strict=True):
            if given in self._weight_names:
                self._weight_names[placeholder] = self._weight_names[given]
                self._stored_names[placeholder] = self._stored_names[given]
            else:
                self.bind(placeholder, self.value(given) if isinstance(given.meta["val"], Tensor) else self.size(given))
        for each in graph.nodes:
            if each.op == "call_function" and isinstance(each.meta["val"], (Tensor, tuple, list)):
                try:
                    self.convert(each)
                except RefusalError as problem:
                    raise RefusalError(
                        f"torch lowers it to {operator_key(each.target)}: {problem.why}", problem.fix
                    ) from problem
        result: Any = graph.output_node().args[0]
        self.bind(node, self.value(result) if isinstance(result, fx.Node) else tuple(map(self.optional, result)))

    def _take_scope_name(self, result: Value, first: int) -> Value:
        """Name the result of the current node after its layer and operator."""
        renamed = self.rename(result, self.scope, first, is_node_renamed=True)
        if renamed != result and result.name in self._reshaped:
            self._reshaped[renamed.name] = self._reshaped.pop(result.name)
        if renamed != result and result.name in self._permuted:
            self._permuted[renamed.name] = self._permuted.pop(result.name)
        return renamed

    # ---- reading arguments ----

    @property
    def out(self) -> Any:
        """Return what the program records of the current node: fake tensor, size, or tuple of them."""
        return self.node.meta["val"]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the current node's (first) result."""
        first = self.out[0] if isinstance(self.out, (tuple, list)) else self.out
        dtype: torch.dtype = first.dtype
        return dtype

    def value(self, arg: Any) -> Value:
        """Return the ONNX value of a tensor argument."""
        assert isinstance(arg, fx.Node), arg
        if arg in self._weight_names:
            return self.store(self._stored_names[arg], self.program.weights[self._weight_names[arg]])
        value = self._values[arg]
        assert isinstance(value, Value), f"{arg} has several results"
        return value

    def results(self, arg: fx.Node) -> tuple[Value | None, ...]:
        """Return the ONNX values of a node with several results."""
        values: tuple[Value | None, ...] = self._values[arg]
        return values

    def optional(self, arg: Any) -> Value | None:
        """Return the ONNX value of an argument, None for None."""
        return None if arg is None else self.value(arg)

    def weight(self, arg: Any) -> Tensor | None:
        """Return the stored tensor of an argument that is a weight, else None."""
        name = self._weight_names.get(arg) if isinstance(arg, fx.Node) else None
        return None if name is None else self.program.weights[name].detach()

    def derive(self, name: str, tensor: Tensor, narrow: torch.dtype | None = None) -> Value:
        """Store a tensor made of weights; the same name again gives the same value. narrow: see `store`."""
        if name not in self._derived:
            self._derived[name] = self.store(self.unique(name), tensor, narrow)
        return self._derived[name]

    def weight_name(self, arg: fx.Node) -> str:
        """Return the name under which a weight argument is stored: its qualified name, if no input or output has it."""
        return self._stored_names[arg]

    def operand(self, arg: Any, dtype: torch.dtype) -> Value:
        """Return an elementwise argument in `dtype`: a tensor, a number, or a size, the last two as tensors of rank 0."""
        if isinstance(arg, fx.Node):
            if isinstance(arg.meta["val"], Tensor):
                return self.cast(self.value(arg), dtype)
            size = self.size(arg)
            if isinstance(size, Value):
                return self.cast(self.op("Reshape", size, self.vector([])), dtype)
            arg = size
        return self.constant(arg, dtype)

    def shape(self, arg: fx.Node) -> tuple[Dim, ...]:
        """Return the recorded shape of a tensor argument."""
        return tuple(arg.meta["val"].shape)

    def rank(self, arg: fx.Node) -> int:
        """Return the rank of a tensor argument."""
        rank: int = arg.meta["val"].dim()
        return rank

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        return axis % max(rank, 1)

    def used(self, index: int) -> bool:
        """Tell whether anything that an output depends on reads result `index` of the current node."""
        return any(
            user.args[1:] == (index,) and (user in self.live or user.graph is not self.program.graph)
            for user in self.node.users
        )

    def fixed(self, size: Any, what: str) -> int:
        """Return a size that must not vary. Raises RefusalError."""
        if isinstance(size, fx.Node):
            size = size.meta["val"]
        if isinstance(size, int):
            return size
        raise RefusalError(
            f"{what} varies ({self.program.size(size)})", "fix this size when capturing, or with --dim NAME=VALUE"
        )

    # ---- sizes ----

    def size(self, arg: Any) -> Extent:
        """Return a size argument: a number, or an int64 vector of one element."""
        if isinstance(arg, fx.Node):
            recorded = arg.meta["val"]
            if isinstance(recorded, (int, float)):
                return recorded  # type: ignore[return-value]
            if isinstance(recorded, Tensor):
                return self.op("Reshape", self.cast(self.value(arg), torch.int64), self.vector([1]))
            if not self.has(arg):
                self.convert(arg)
            value = self._values[arg]
            assert isinstance(value, (int, Value))
            return value
        assert isinstance(arg, (int, float)), arg
        return arg  # type: ignore[return-value]

    def extent(self, arg: fx.Node, axis: int) -> Extent:
        """Return the size of a tensor argument along an axis."""
        recorded = self.shape(arg)[axis]
        if isinstance(recorded, int):
            return recorded
        found = self._symbols.get(str(self.program.size(recorded)))
        return self.measured(*found) if found else self.measured(self.value(arg), axis)

    def measured(self, value: Value, axis: int) -> Value:
        """Read a size at run time, once for all who ask."""
        key = value.name, axis
        if key not in self._shapes:
            scope, self.scope = self.scope, "sizes"
            self._shapes[key] = self.op("Shape", value, dtype=torch.int64, start=axis, end=axis + 1)
            self.scope = scope
        return self._shapes[key]

    def symbolic(self, size: Dim) -> Extent:
        """Compute a recorded size from the inputs. Raises RefusalError where its expression is not one of + - * // %."""
        if isinstance(size, int):
            return size
        text = str(self.program.size(size))
        terms = {name: SizeTerm(self, self.measured(*found)) for name, found in self._symbols.items()}
        return evaluate_text(text, terms)

    def sizes(self, extents: Sequence[Extent]) -> Value:
        """Return an int64 vector of sizes: a constant where all are numbers."""
        if all(isinstance(each, int) for each in extents):
            return self.vector(extents)  # type: ignore[arg-type]
        parts: list[Value] = []
        numbers: list[int] = []
        for each in extents:
            if isinstance(each, int):
                numbers.append(each)
                continue
            if numbers:
                parts.append(self.vector(numbers))
                numbers = []
            parts.append(each)
        if numbers:
            parts.append(self.vector(numbers))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def shape_of(self, arg: fx.Node) -> Value:
        """Return the shape of a tensor argument as an int64 vector."""
        return self.sizes([self.extent(arg, axis) for axis in range(self.rank(arg))])

    # ---- relayouts ----

    def reshape(self, value: Value, before: Sequence[Dim], after: Sequence[Dim], extents: Any = None) -> Value:
        """Reshape with a constant where at most one size cannot be copied from `before`; else with computed sizes.

        extents: the sizes as `size` gives them, where the caller has them; else they are computed from the inputs.
        A reshape of a reshape is one.
        """
        value, before = self._reshaped.get(value.name, (value, tuple(before)))
        if len(before) == len(after) and all(same_size(a, b) for a, b in zip(before, after, strict=True)):
            return value
        has_zero = any(isinstance(size, int) and size == 0 for size in after)
        sizes = self._reshape_sizes(before, after, extents, has_zero)
        result = self.op("Reshape", value, sizes, allowzero=1 if has_zero else None)
        self._reshaped[result.name] = value, tuple(before)
        return result

    def _reshape_sizes(self, before: Sequence[Dim], after: Sequence[Dim], extents: Any, has_zero: bool) -> Value:
        """Return the second argument of Reshape, in which 0 copies a size and -1 is what remains."""
        plan: list[Extent] = []
        unknown: list[int] = []
        for axis, size in enumerate(after):
            if isinstance(size, int):
                plan.append(size)
            elif not has_zero and axis < len(before) and same_size(size, before[axis]):
                plan.append(0)
            else:
                unknown.append(axis)
                plan.append(-1)
        for axis in unknown if has_zero else unknown[:-1]:
            given = extents[axis] if extents is not None else None
            plan[axis] = given if isinstance(given, Value) else self.symbolic(after[axis])
        return self.sizes(plan)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Permute axes; a permutation of a permutation is one, and the identity is none."""
        value, first = self._permuted.get(value.name, (value, range(len(order))))
        combined = [first[axis] for axis in order]
        if combined == sorted(combined):
            return value
        result = self.op("Transpose", value, perm=combined)
        self._permuted[result.name] = value, combined
        return result

    def order_of(self, value: Value) -> list[int]:
        """Return the permutation that made a value, [] if none did."""
        return list(self._permuted[value.name][1]) if value.name in self._permuted else []

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return what `make` gave the first time that this was asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def unsqueeze(self, value: Value, *axes: int) -> Value:
        """Insert axes of size 1, counted in the result."""
        return self.op("Unsqueeze", value, self.vector(axes)) if axes else value

    def squeeze(self, value: Value, *axes: int) -> Value:
        """Remove axes of size 1."""
        return self.op("Squeeze", value, self.vector(axes)) if axes else value

    def slice(self, value: Value, axis: int, start: Extent, end: Extent, step: int = 1) -> Value:
        """Take start..end along one axis, clamped as Python does."""
        steps = self.vector([step]) if step != 1 else None
        return self.op("Slice", value, self.sizes([start]), self.sizes([end]), self.vector([axis]), steps)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Join along an axis."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

"""Program -> LoopProgram: look up the lowering of every node, and keep track of buffers and aliases."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from dsopt.backends.base import Blocker
from dsopt.backends.tir import ops  # noqa: F401  registers the lowerings
from dsopt.backends.tir.arguments import buffers_of, free_name, nearest, on_meta, tir_dtype
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.decompose import decompose
from dsopt.backends.tir.labels import label
from dsopt.backends.tir.ports import integer_inputs, integer_outputs, rounds_input
from dsopt.backends.tir.program import Buffer, BufferKind, Grid, Kernel, LoopProgram, State, channels_to_end
from dsopt.backends.tir.registry import LOWERINGS, Context, Layout, Lowering, RefusedError, UnsuitedError
from dsopt.backends.tir.tvm_adapter import element
from dsopt.ir import Program
from dsopt.ir.torch_private import named_arguments


def lower(program: Program, special: Mapping[str, Lowering] | None = None, integer_ports: bool = False) -> LoopProgram:
    """Lower every node. Raises ValueError listing the blockers; ask `blockers` first to show them to a user.

    special: better lowerings for a target, by operator; where one raises UnsuitedError, the generic one takes over. They may
    take and give buffers with channels last, which generic lowerings get in the order of their shape.  integer_ports: inputs that
    are only rounded to one grid, and outputs that are only read off one, become integers themselves.
    """
    lowerer = _Lowerer(program, special or {}, integer_ports)
    lowerer.run()
    if lowerer.blockers:
        raise ValueError("; ".join(map(str, lowerer.blockers)))
    return lowerer.finish()


def blockers(program: Program) -> tuple[Blocker, ...]:
    """Return every node that has no lowering, or whose lowering refuses its arguments, in the order of the graph."""
    lowerer = _Lowerer(program, {}, False)
    lowerer.run()
    return tuple(lowerer.blockers)


_WORD_BYTES = 4
"""Values begin at multiples of it, as kernels load words of them."""


class _DependsError(RefusedError):
    """A node needs the result of one that was refused; only the first is shown to the user."""


_CHECKS = frozenset(
    {"aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten.sym_constrain_range_for_size.default"}
)
"""Checks of what the exporter assumed: true by construction once the sizes are fixed."""


class _Lowerer:
    def __init__(self, program: Program, special: Mapping[str, Lowering], integer_ports: bool) -> None:
        self.program = program
        self.special = special
        self.ports = integer_inputs(program) | integer_outputs(program) if integer_ports else {}
        self.grids: dict[str, Grid] = {}
        self.blockers: list[Blocker] = []
        self.kernels: list[Kernel] = []
        self.buffers: dict[str, Buffer] = {}
        self.values: dict[fx.Node, Any] = {}
        self._kernel_names: set[str] = set()
        self._buffer_names: set[str] = set()
        self._extra: dict[str, Any] = {}
        self._stored: dict[tuple[str, tuple[int, ...], bytes], Buffer] = {}
        self._weights: dict[str, fx.Node] = {}
        self._read: dict[str, np.ndarray[Any, Any]] = {}
        self._nested = 0
        self._why = ""
        self._order = {node: number for number, node in enumerate(program.graph.nodes)}
        self._node: fx.Node = program.output_node
        self._current: fx.Node = program.output_node

    # ---- the protocol of Context ----

    def free_name(self, hint: str) -> str:
        return free_name(self._kernel_names, hint)

    def add_buffer(
        self, hint: str, shape: Sequence[int], dtype: str, alias_of: str | None, channels_last: bool = False, offset: int = 0
    ) -> Buffer:  # fmt: skip
        kind: BufferKind = "temp" if alias_of is None else self.buffers[alias_of].kind
        return self._declare(hint, shape, dtype, kind, alias_of, channels_last, offset)

    def add_constant(self, hint: str, values: np.ndarray[Any, Any]) -> Buffer:
        key = str(values.dtype), values.shape, values.tobytes()
        if key not in self._stored:  # every constant once
            self._stored[key] = self._declare(hint, values.shape, str(values.dtype), "weight", None)
            self._extra[self._stored[key].name] = values
        return self._stored[key]

    def add_kernel(self, builder: KernelBuilder, multiply_adds: int) -> None:
        names = {group: tuple(b.name for b in builder.buffers(group)) for group in ("input", "output", "scratch")}
        self.kernels.append(
            Kernel(builder.name, builder.build(), names["input"], names["output"], names["scratch"], self.program.layer(self._node),
                   self.program.source(self._node), self._node.name, multiply_adds, tuple(builder.micro), tuple(builder.overlaps),
                   builder.choice, self._why, builder.is_glue)
        )  # fmt: skip

    def constant(self, target: Buffer) -> np.ndarray[Any, Any] | None:
        root = self.root(target)
        values = self._weight_values(root.name) if root.kind == "weight" else None
        return None if values is None else values.reshape(target.shape)

    def layouts(self) -> tuple[Layout, ...]:
        node = self._current
        arguments = [on_meta(value) for value in node.args]
        options = {key: on_meta(value) for key, value in node.kwargs.items()}
        results = node.target(*arguments, **options)  # type: ignore[operator]
        views = results if isinstance(results, (tuple, list)) else [results]
        return tuple(Layout(tuple(v.shape), tuple(v.stride()), int(v.storage_offset())) for v in views)

    def may_overwrite(self, target: Buffer) -> bool:
        root = self.root(target)
        if self._nested or root.kind not in ("temp", "state"):
            return False
        if root.kind == "state" and not any(
            state.update is self._node and self.values[state.placeholder].name == root.name
            for state in self.program.states
        ):
            return False
        now = self._order[self._node]
        return all(
            self._order[user] <= now
            for node, value in self.values.items()
            if any(self.root(each).name == root.name for each in buffers_of(value))
            for user in node.users
        )

    def adopt(self, part: Buffer, whole: Buffer, offset: int) -> bool:
        root = self.root(part)
        if self._nested or root.kind != "temp" or root.size_bytes != part.size_bytes or offset % _WORD_BYTES:
            return False
        values = [
            node
            for node, value in self.values.items()
            if any(self.root(b).name == root.name for b in buffers_of(value))
        ]
        if {user for node in values for user in node.users} != {self._node}:
            return False
        self.buffers[root.name] = replace(root, alias_of=whole.name, offset=offset)
        return True

    def move_ahead(self, count: int, target: Buffer) -> None:
        others, moved = self.kernels[: len(self.kernels) - count], self.kernels[len(self.kernels) - count :]
        written = [{self.root(self.buffers[name]).name for name in kernel.outputs} for kernel in others]
        first = next((at for at, names in enumerate(written) if self.root(target).name in names), len(others))
        read = {self.root(self.buffers[name]).name for kernel in moved for name in kernel.inputs}
        if not any(names & read for names in written[first:]):
            self.kernels[first:] = [*moved, *others[first:]]

    def readers(self) -> tuple[str, ...]:
        return tuple(str(user.target) for user in self._current.users)

    # ---- the walk ----

    def run(self) -> None:
        for node in self.program.graph.nodes:
            self._node = node
            try:
                if node.op == "placeholder" and (node.users or self.program.weight_name(node) is None):
                    self._placeholder(node)
                elif node.op == "call_function":
                    self.values[node] = self._call(node)
            except _DependsError:
                self.values[node] = None
            except RefusedError as refusal:
                self.blockers.append(Blocker.of(self.program, node, refusal.why, refusal.fix))
                self.values[node] = self._stand_in(node)

    def _stand_in(self, node: fx.Node) -> Any:
        """Return buffers for the result of a refused node, so that what follows it is judged too; None if they have no type."""
        value = node.meta.get("val")
        try:
            if isinstance(value, (tuple, list)):
                return [self._declare("refused", *self._typed(each), "temp", None) for each in value]
            return self._declare("refused", *self._typed(value), "temp", None) if value is not None else None
        except (RefusedError, AttributeError):
            return None

    def _inline(self, node: fx.Node) -> Any:
        """Lower an operator without a lowering through the simpler operators that torch defines it by."""
        name = str(node.target)
        traced = decompose(node)
        if traced is None:
            raise RefusedError(f"{name} has no loop form yet", nearest(name))
        leaves = pytree.tree_leaves((node.args, dict(node.kwargs)))
        given = iter(
            leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), torch.Tensor)
        )
        self._nested += 1
        try:
            for inner in traced.graph.nodes:
                if inner.op == "placeholder":
                    self.values[inner] = self.planar(self._argument(next(given)))
                elif inner.op == "get_attr":
                    self.values[inner] = self._constant(inner, getattr(traced, str(inner.target)))
                elif inner.op == "call_function":
                    self.values[inner] = self._call(inner)
        except _DependsError:
            raise
        except RefusedError as refusal:
            raise RefusedError(
                f"{name} is made of operators without a loop form: {refusal.why}", nearest(name)
            ) from refusal
        finally:
            self._nested -= 1
        results = traced.graph.output_node().args[0]
        return self._argument(results)

    def _constant(self, node: fx.Node, value: torch.Tensor) -> Buffer:
        shape, dtype = self._typed(value)
        assert tir_dtype(value.dtype) == dtype
        return self.add_constant(f"constant_{node.target}", value.detach().contiguous().numpy().reshape(shape))

    def _declare(
        self, hint: str, shape: Sequence[int], dtype: str, kind: BufferKind, alias_of: str | None, last: bool = False, offset: int = 0,
    ) -> Buffer:  # fmt: skip
        buffer = Buffer(free_name(self._buffer_names, hint), tuple(shape), dtype, kind, alias_of, last, offset)
        self.buffers[buffer.name] = buffer
        return buffer

    def root(self, buffer: Buffer) -> Buffer:
        buffer = self.buffers[buffer.name]  # since it was given away, it may have become a part of another
        while buffer.alias_of is not None:
            buffer = self.buffers[buffer.alias_of]
        return buffer

    def _placeholder(self, node: fx.Node) -> None:
        shape, dtype = self._typed(node.meta["val"])
        weight = self.program.weight_name(node)
        states = {state.placeholder: state.name for state in self.program.states}
        if weight is not None:
            buffer = self.values[node] = self._declare(weight, shape, dtype, "weight", None)
            self._weights[buffer.name] = node
        elif node in states:
            self.values[node] = self._declare(states[node], shape, dtype, "state", None)
        else:
            name = self.program.signature.inputs[self.program.inputs.index(node)].name
            if node in self.ports:
                dtype = tir_dtype(next(iter(node.users)).meta["val"].dtype)
                self.grids[name] = self.ports[node]
            self.values[node] = self._declare(name, shape, dtype, "input", None)

    def _typed(self, value: torch.Tensor) -> tuple[tuple[int, ...], str]:
        sizes: list[int] = []
        for size in value.shape:
            if not isinstance(size, int):
                if not self.program.dims:
                    raise RefusedError(
                        f"its shape {tuple(map(str, value.shape))} depends on values, and generated loops need fixed sizes",
                        "use a form with a fixed size, such as torch.where or masked_fill in place of indexing with a mask",
                    )
                known = ", ".join(f"--dim {name}={max(dim.min, 1)}" for name, dim in sorted(self.program.dims.items()))
                raise RefusedError(
                    f"shape {self.program.shape(self._node)} varies, and generated loops need fixed sizes",
                    f"fix the varying dims, as with {known}",
                )
            sizes.append(int(size))
        if 0 in sizes:
            raise RefusedError(f"shape {tuple(sizes)} holds no element", "keep every size at least 1")
        return tuple(sizes), tir_dtype(value.dtype)

    def _call(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (int, float, bool)):
            return value
        if any(self.values.get(source) is None for source in node.all_input_nodes):
            raise _DependsError("")
        if node.target is operator.getitem:
            source = self._argument(node.args[0])
            return source[node.args[1]]
        name = str(node.target)
        if name in _CHECKS:
            return None
        if node in self.ports or rounds_input(node, self.ports):
            source = self.planar(self._argument(node.args[0]))
            if node in self.ports:
                self.grids[source.name] = self.ports[node]
            return source
        function = LOWERINGS.get(name)
        outputs = value if isinstance(value, (tuple, list)) else [value]
        if not any(isinstance(each, torch.Tensor) for each in outputs) and value is not None:
            raise RefusedError(f"the value of {name} is not known when compiling", "fix the varying dims with --dim")
        arguments = [self._argument(each) for each in named_arguments(node).values()]
        self._current, self._why = node, ""
        typed = [self._typed(each) if isinstance(each, torch.Tensor) else None for each in outputs]
        context = Context(self, name, self._label(node), typed, isinstance(value, (tuple, list)))
        if name in self.special:
            try:
                return self.special[name](context, *arguments)
            except UnsuitedError as reason:
                self._why = str(reason)
        if function is None:
            return self._inline(node)
        return function(context, *(self.planar(each) for each in arguments))

    def planar(self, value: Any) -> Any:
        """Return a buffer, or a list of them, with the bytes in the order of the shape: copied where they are not."""
        if isinstance(value, list):
            return [self.planar(each) for each in value]
        if not isinstance(value, Buffer) or not value.channels_last:
            return value
        if value.shape[1] == 1 or math.prod(value.shape[2:]) == 1:
            return self.add_buffer(f"{value.name}_view", value.shape, value.dtype, value.name)
        target = self.add_buffer(f"{value.name}_planar", value.shape, value.dtype, None)
        builder = KernelBuilder(self.free_name(f"{self._label(self._current)}_planar"))
        x = builder.read("x", value, value.stored_shape)
        y = builder.write("y", target)
        with builder.grid(**{f"i{n}": size for n, size in enumerate(target.shape)}) as index:
            builder.store(y, element(x, *channels_to_end(index)), *index)
        self.add_kernel(builder, 0)
        return target

    def _label(self, node: fx.Node) -> str:
        return label(self.program.layer(node), str(node.target))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            found = self.values.get(value)
            if found is None:
                raise _DependsError("")
            return found
        if isinstance(value, (list, tuple)):
            return [self._argument(each) for each in value]
        return value

    # ---- the result ----

    def finish(self) -> LoopProgram:
        self._why = ""
        outputs = [self._owned(node) for node in self.program.outputs]
        states = tuple(self._state(index) for index in range(len(self.program.states)))
        for name in {self.root(output).name for output in outputs}:
            for buffer in list(self.buffers.values()):
                if self.root(buffer).name == name and buffer.kind == "temp":
                    self.buffers[buffer.name] = replace(buffer, kind="output")
        inputs = [self.values[node].name for node in self.program.inputs]
        used = {name for kernel in self.kernels for name in kernel.arguments}
        used |= (
            {output.name for output in outputs}
            | {state.buffer for state in states}
            | {state.update for state in states}
        )
        roots = {self.root(self.buffers[name]).name for name in used}
        kept = {
            name: buffer for name, buffer in self.buffers.items() if self.root(buffer).name in roots or name in inputs
        }
        produced = {kernel.node for kernel in self.kernels}
        found = {node.name: buffers_of(self.values.get(node)) for node in self.program.graph.nodes}
        results = {name: buffers[0].name for name, buffers in found.items() if buffers and name in produced}
        return LoopProgram(
            tuple(self.kernels),
            kept,
            self._constants(roots),
            tuple(inputs),
            tuple(o.name for o in outputs),
            states,
            results,
            {name: grid for name, grid in self.grids.items() if name in kept},
        )

    def _owned(self, node: fx.Node) -> Buffer:
        """Return the buffer of an output; the old value of a state is copied, since the state changes under it."""
        self._node = self._current = node
        value: Buffer = self.planar(self.values[node])
        root = self.root(value)
        changed = {
            self.values[s.placeholder].name: s.update for s in self.program.states if s.update is not s.placeholder
        }
        if (
            root.kind == "state"
            and root.name in changed
            and self.root(self.values[changed[root.name]]).name != root.name
        ):
            return self._copy(node, value)
        return value

    def _state(self, index: int) -> State:
        state = self.program.states[index]
        self._node = self._current = state.update
        buffer, update = self.values[state.placeholder], self.planar(self.values[state.update])
        root = self.root(update)
        if root.kind == "state" and root.name != buffer.name:
            update = self._copy(state.update, update)
        return State(state.name, buffer.name, update.name)

    def _copy(self, node: fx.Node, source: Buffer) -> Buffer:
        self._node = node
        target = self.add_buffer(f"{source.name}_copy", source.shape, source.dtype, None)
        builder = KernelBuilder(self.free_name(f"net_copy_{source.name}"))
        x = builder.read("x", source, (source.elements,))
        y = builder.write("y", target, (source.elements,))
        with builder.grid(i=source.elements) as (i,):
            builder.store(y, x[i], i)
        self.add_kernel(builder, 0)
        return target

    def _weight_values(self, name: str) -> np.ndarray[Any, Any] | None:
        if name in self._weights and name not in self._read:  # each part of a layer asks again
            weight = self.program.weight(self._weights[name])
            assert weight is not None
            self._read[name] = weight.detach().contiguous().numpy()
        return self._read[name] if name in self._weights else self._extra.get(name)

    def _constants(self, roots: set[str]) -> dict[str, Any]:
        known = [name for name in (*self._extra, *self._weights) if name in roots]
        constants: dict[str, Any] = {name: self._weight_values(name) for name in known}
        for state in self.program.states:
            constants[self.values[state.placeholder].name] = (
                self.program.weights[state.name].detach().contiguous().numpy()
            )
        return constants

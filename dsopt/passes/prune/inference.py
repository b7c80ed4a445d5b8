"""Axis inference: give every dimension of every tensor of a program an axis expression, operator by operator.

Each operator has a rule (`rules/`) that says which dimensions of its operands are kept alike and what those of its result are made of.
An operator without a rule, or called in a form that its rule does not know, pins all it touches. Nothing here looks at modules.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from dsopt.ir import Program
from dsopt.ir.torch_private import is_operator, named_arguments
from dsopt.passes.prune.axes import Algebra, Axes, Expr, Length, fixed, is_fixed, length, same
from dsopt.passes.prune.rules import Result, Unknown, rule_of
from dsopt.passes.prune.slots import Pin
from dsopt.passes.prune.zeros import Zeros


class AxisInference:
    """The axis expressions of one program, and what rules may do with them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.algebra = Algebra()
        self.unknown: dict[fx.Node, Pin] = {}
        """Operators without a rule, or in a form that their rule does not know, in the order of the program."""
        self.statistics: dict[fx.Node, tuple[Expr, ...]] = {}
        """Operators that compute over channels: how many there are changes what they give."""
        self.memory: dict[tuple[fx.Node, str], Expr] = {}
        """What rules remember of an operator for when its arguments are written anew."""
        self.zeros = Zeros(self)
        """Values that are zero where channels are gone."""
        self._axes: dict[fx.Node, list[Expr | None]] = {}
        self._parts: dict[fx.Node, tuple[Any, ...]] = {}
        self._node: fx.Node | None = None
        self._weights = set(program.placeholders[: len(program.signature.weights)])
        for node in program.graph.nodes:
            self._infer(node)

    # ---- reading ----

    def shape(self, node: fx.Node) -> tuple[Length, ...]:
        """Return the recorded shape of a tensor."""
        return tuple(node.meta["val"].shape)

    def dim(self, node: fx.Node, index: int) -> Expr:
        """Return one dimension of a tensor; a weight's that nothing is known of yet becomes free channels."""
        axes = self._axes[node]
        found = axes[index]
        if found is None:
            found = axes[index] = self.algebra.fresh(self.shape(node)[index])
        return found

    def axes(self, node: fx.Node) -> Axes:
        """Return all dimensions of a tensor."""
        return tuple(self.dim(node, index) for index in range(len(self._axes[node])))

    def has_axes(self, node: fx.Node) -> bool:
        """Tell whether a node is a single tensor."""
        return node in self._axes

    def parts(self, node: fx.Node) -> tuple[Axes, ...]:
        """Return the dimensions of each tensor that a node gives, a single one in a tuple of its own."""
        return (self.axes(node),) if node in self._axes else self._parts.get(node, ())

    def tensors(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the operands that are single tensors."""
        return tuple(each for each in node.all_input_nodes if each in self._axes)

    def is_open(self, node: fx.Node, index: int) -> bool:
        """Tell whether nothing is known yet of a dimension of a weight."""
        return self._axes[node][index] is None

    def holds_channels(self, expr: Expr) -> bool:
        """Tell whether an index of a dimension may go."""
        slots = self.algebra.slots
        return any(factor.slots is not None and not slots.is_pinned(factor.slots).all() for factor in expr)

    def slots_of(self, expr: Expr) -> set[int]:
        """Return the slots that decide over the indices of a dimension and may go."""
        slots = self.algebra.slots
        roots = {
            int(root) for factor in expr if factor.slots is not None for root in np.unique(slots.find(factor.slots))
        }
        return {leaf for root in roots for leaf in slots.leaves(root) if leaf not in slots.pins}

    # ---- saying ----

    def fresh(self, size: Length) -> Expr:
        """Return a dimension of which nothing is known."""
        return self.algebra.fresh(size)

    def tie(self, node: fx.Node, index: int, expr: Expr) -> None:
        """Let a dimension of a tensor be kept as `expr` is."""
        axes = self._axes[node]
        found = axes[index]
        if found is None:
            axes[index] = expr
        else:
            self.unify(found, expr)

    def unify(self, left: Expr, right: Expr) -> None:
        """Let two dimensions be kept alike."""
        if left is not right:
            self.algebra.unify(left, right, self._pin("it meets an axis that holds no channels"))

    def pin(self, expr: Expr, why: str, inner: bool = False) -> None:
        """Keep all of a dimension, for the operator at hand."""
        self.algebra.pin(expr, self._pin(why, inner))

    def pin_dims(self, node: fx.Node, dims: Iterable[int], why: str, inner: bool = False) -> None:
        """Keep all of some dimensions of a tensor."""
        for index in dims:
            self.pin(self.dim(node, index), why, inner)

    def regroup(self, expr: Expr, *sizes: Length) -> Axes:
        """Take a dimension apart; where the sizes do not nest, it is kept."""
        found = self.algebra.regroup(expr, sizes, self._pin("it is taken apart into rows"))
        if found is None:
            self.pin(expr, "it is taken apart across its own parts")
            return tuple(fixed(size) for size in sizes)
        return found

    def reshaped(self, axes: Axes, sizes: Sequence[Length]) -> Axes:
        """Return the dimensions after a row-major reshape; where the two shapes do not nest, all are kept."""
        factors = [factor for expr in axes for factor in expr]
        found = self.algebra.regroup(factors, sizes, self._pin("it is reshaped"))
        if found is None:
            self.pin(tuple(factors), "it is reshaped across the borders of its axes")
            return tuple(fixed(size) for size in sizes)
        return found

    def concat(self, parts: Sequence[Expr]) -> Expr:
        """Return the dimension of tensors joined along it."""
        return self.algebra.concat(parts, self._pin("it is joined to one index"))

    def take(self, expr: Expr, start: int, stop: int) -> Expr:
        """Return a slice of a dimension."""
        return self.algebra.take(expr, start, stop, self._pin("one index of it is taken"))

    def broadcast(self, nodes: Sequence[fx.Node], shape: Sequence[Length]) -> Axes:
        """Hold tensors equal index by index as broadcasting aligns them, and return the dimensions of the result."""
        return tuple(self._broadcast_dim(nodes, index - len(shape), size) for index, size in enumerate(shape))

    def _broadcast_dim(self, nodes: Sequence[fx.Node], index: int, size: Length) -> Expr:
        if isinstance(size, int) and size == 1:
            return ()
        holders = [node for node in nodes if len(self._axes[node]) >= -index]
        holders = [node for node in holders if not same(self.shape(node)[index], 1)]
        known = [node for node in holders if self._axes[node][index] is not None]
        if not holders:
            return fixed(size)
        result = self.dim((known or holders)[0], index)
        if is_fixed(result) and len(known) > 1:
            result = next((self.dim(node, index) for node in known if not is_fixed(self.dim(node, index))), result)
        for node in holders:
            self.tie(node, index, result)
        return result

    def remember(self, key: str, expr: Expr) -> None:
        """Keep an expression for when the arguments of the operator at hand are written anew."""
        assert self._node is not None
        self.memory[self._node, key] = expr

    def uses_statistics(self, *exprs: Expr) -> None:
        """Say that the operator at hand computes over these dimensions."""
        if self._node is not None and not all(is_fixed(expr) for expr in exprs):
            self.statistics[self._node] = exprs

    def sums_over(self, expr: Expr, *operands: fx.Node) -> None:
        """Say that the operator at hand multiplies its operands and sums over a dimension: what is gone must give nothing."""
        if self.holds_channels(expr) and not any(operand in self.zeros for operand in operands):
            self.pin(expr, "it is summed over, and without their weights its channels would not be zero")

    def _pin(self, why: str, inner: bool = False) -> Pin:
        return Pin(self._node, why, inner)

    # ---- walking ----

    def _infer(self, node: fx.Node) -> None:
        self._node = node
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            self._axes[node] = [None if node in self._weights else fixed(size) for size in value.shape]
            self.zeros.add(node)
        elif node.op == "output":
            for result in node.all_input_nodes:
                for axes in self.parts(result):
                    for expr in axes:
                        self.pin(expr, "it is an output of the program")
        elif node.op == "call_function":
            self._call(node, value)

    def _call(self, node: fx.Node, value: Any) -> None:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            source: Any = self._parts.get(node.args[0], ())
            if source and isinstance(value, Tensor):
                self._axes[node] = list(source[node.args[1]])
                if node.args[0] in self.zeros:
                    self.zeros.add(node)
            return
        result = self._apply_rule(node)
        values = value if isinstance(value, (tuple, list)) else [value]
        if not any(isinstance(each, Tensor) for each in values):
            return
        if result is None:
            result = [tuple(fixed(size) for size in each.shape) if isinstance(each, Tensor) else () for each in values]
        if isinstance(value, Tensor):
            self._axes[node] = list(result[0])
        else:
            self._parts[node] = tuple(result)
        if node not in self.unknown and is_operator(node.target):
            self.zeros.learn(node, named_arguments(node))

    def _apply_rule(self, node: fx.Node) -> list[Axes] | None:
        rule = rule_of(node) if is_operator(node.target) else None
        if rule is not None:
            try:
                result: Result = rule(self, node, named_arguments(node))
                if result is None:
                    return []
                results = list(result) if isinstance(result, list) else [result]
                self._check(node, results)
                return results
            except Unknown as form:
                self._pin_all(node, str(form))
                return None
        self._pin_all(node, "what it does with its operands is not known")
        return None

    def _check(self, node: fx.Node, results: list[Axes]) -> None:
        """Believe a rule only if what it says of the result has the recorded shape. Raises Unknown."""
        value = node.meta["val"]
        for axes, each in zip(results, value if isinstance(value, (tuple, list)) else [value], strict=False):
            sizes = tuple(each.shape) if isinstance(each, Tensor) else ()
            if len(axes) != len(sizes) or not all(map(same, map(length, axes), sizes)):
                raise Unknown("its rule and its recorded shape differ")

    def _pin_all(self, node: fx.Node, why: str) -> None:
        operands = [axes for each in node.all_input_nodes for axes in self.parts(each)]
        self.unknown[node] = self._pin(why)
        for axes in operands:
            for expr in axes:
                self.pin(expr, why)


def describe(program: Program, pin: Pin) -> str:
    """Return a reason with the operator, layer and source line that it comes from."""
    if pin.node is None:
        return pin.why
    where = "the output" if pin.node.op == "output" else program.where(pin.node)
    return f"{where}: {pin.why}"

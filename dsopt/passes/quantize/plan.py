"""Decide which values of a program become integers: the sites at which a value is rounded, and what stays float and why."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dsopt.ir import Program
from dsopt.passes.quantize.precision import Precision
from dsopt.passes.quantize.semantics import (
    RECURRENT,
    Operation,
    Unsupported,
    clamp_bounds,
    describe,
    is_move,
    softmax_scores,
)

_ATEN = torch.ops.aten


@dataclass(eq=False)
class Site:
    """A value that is rounded to integers of `bits`.

    value: the node whose result is rounded.  readers: the users that read the rounded value; None for all.  fixed: its grid, where
    the operator knows it.  tied: the site whose grid this one shares.  operator: what computes the value, None for an input or a float.
    """

    value: fx.Node
    bits: int
    readers: set[fx.Node] | None = None
    fixed: tuple[float, int] | None = None
    tied: Site | None = None
    operator: fx.Node | None = None

    @property
    def owner(self) -> Site:
        """Return the site whose grid this one has."""
        site = self
        while site.tied is not None:
            site = site.tied
        return site


@dataclass(frozen=True)
class WeightUse:
    """A stored weight that an operator reads as integers. is_result: the operator's result has the weight's grid (an embedding)."""

    weight: fx.Node
    user: fx.Node
    axis: int
    bits: int
    per: str
    is_result: bool = False


@dataclass
class Plan:
    """sites: by value.  weights: in the order of the graph.  recurrent: layers whose own grid is to be calibrated.

    floats: operators that stay float, and why.
    """

    sites: dict[fx.Node, Site] = field(default_factory=dict)
    weights: list[WeightUse] = field(default_factory=list)
    recurrent: list[fx.Node] = field(default_factory=list)
    floats: list[tuple[fx.Node, str]] = field(default_factory=list)


def make_plan(program: Program, precision: Precision) -> Plan:
    """Plan the quantisation of a normalised program (see `normalize`)."""
    planner = _Planner(program, precision)
    planner.find_operations()
    planner.find_results()
    planner.place_sites()
    planner.tie_parts()
    planner.tie_states()
    planner.plan_weights()
    return planner.plan


class _Planner:
    def __init__(self, program: Program, precision: Precision) -> None:
        self.program, self.precision = program, precision
        self.plan = Plan()
        self.operations: dict[fx.Node, Operation] = {}
        self.results: dict[fx.Node, fx.Node] = {}  # the value that is rounded -> the operator that it belongs to
        self.readers: dict[fx.Node, set[fx.Node]] = {}  # value -> the operators that compute with it as integers
        self.is_embedded: set[fx.Node] = set()

    # ---- which operators compute with integers ----

    def find_operations(self) -> None:
        absorbed: set[fx.Node] = set()
        for node in reversed(list(self.program.graph.nodes)):
            finding = None if node in absorbed else describe(self.program, node)
            if isinstance(finding, Operation) and self.precision.is_kept(self.program, node):
                finding = Unsupported("it is kept in float, as the option says")
            if isinstance(finding, Unsupported):
                self.plan.floats.append((node, finding.why))
            elif isinstance(finding, Operation):
                self.operations[node] = finding
                absorbed.update(softmax_scores(node).between if finding.kind == "softmax" else ())
        self.operations = dict(reversed(self.operations.items()))
        self.plan.floats.reverse()

    def find_results(self) -> None:
        """Find where the result of each operator is rounded: after the batch norm and the clamp that it absorbs."""
        for node, operation in list(self.operations.items()):
            if node not in self.operations:
                continue
            value = node
            if operation.kind in ("convolution", "linear"):
                value = self._absorb_norm(value)
            if operation.may_clamp:
                value = self._absorb_clamp(value)
            if operation.kind != "recurrent":
                self.results[value] = node

    def _absorb_norm(self, node: fx.Node) -> fx.Node:
        user = _only_user(node)
        if user is None or user.target is not _ATEN.batch_norm.default or user not in self.operations:
            return node
        if node.target is _ATEN.linear.default and node.meta["val"].dim() != 2:
            return node
        del self.operations[user]
        return user

    def _absorb_clamp(self, node: fx.Node) -> fx.Node:
        user = _only_user(node)
        if user is None or clamp_bounds(user) is None or self.precision.is_kept(self.program, user):
            return node
        self.operations.pop(user, None)
        return user

    # ---- where values are rounded ----

    def _root(self, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        """Return the value that moves have brought to `node`, and the first of those moves."""
        first: fx.Node | None = None
        while node not in self.results and is_move(node):
            source: Any = node.args[0]
            if node.target is _ATEN.relu.default and self._is_float(source):
                break  # a ReLU of a float is computed before rounding, so that no step is spent on what it drops
            first, node = node, source
        return node, first

    def _is_float(self, node: fx.Node) -> bool:
        root, _ = self._root(node)
        return root not in self.results and not _is_recurrent_result(root, self.operations)

    def place_sites(self) -> None:
        reads: dict[
            fx.Node, list[tuple[fx.Node, fx.Node]]
        ] = {}  # value -> (the node that reads it, the operator it leads to)
        for node, operation in self.operations.items():
            for each in operation.inputs:
                root, first = self._root(each)
                direct = first or self._reader(node, operation)
                reads.setdefault(root, []).append((direct, node))
                self.readers.setdefault(root, set()).add(node)
        for node in self.program.graph.nodes:
            if node in self.results:
                self._result_site(node)
            elif node in reads and not _is_recurrent_result(node, self.operations):
                bits = max(self.precision.activation_bits(self.program, user) for _, user in reads[node])
                if self.program.weight(node) is not None:
                    bits = min(bits, 16)
                self.plan.sites[node] = Site(node, bits, {direct for direct, _ in reads[node]})
            elif node in self.operations and node.target in RECURRENT:
                self.plan.recurrent.append(node)

    def _reader(self, node: fx.Node, operation: Operation) -> fx.Node:
        """Return the node that reads an operation's activation: the first of those that a softmax has absorbed, or itself."""
        between = softmax_scores(node).between if operation.kind == "softmax" else ()
        return between[-1] if between else node

    def _result_site(self, value: fx.Node) -> None:
        node = self.results[value]
        operation = self.operations[node]
        bits = self.precision.activation_bits(self.program, node)
        if operation.kind == "embedding" and self._embedding_shares_grid(node):
            self.is_embedded.add(node)
            return
        readers = self.readers.get(value, set())
        if (
            readers
            and all(self.operations[reader].kind == "softmax" for reader in readers)
            and self._serves_only(value, readers)
        ):
            bits = 16  # logits and scores: the exponential makes one step of 8 bits a factor
        fixed = operation.fixed
        if fixed is not None and bits == 16:
            fixed = (2.0**-15, 0)
        self.plan.sites[value] = Site(value, bits, None, fixed, operator=node)

    def _embedding_shares_grid(self, node: fx.Node) -> bool:
        return (
            self.precision.weight_bits(self.program, node) == 8
            and self.precision.activation_bits(self.program, node) == 8
        )

    def _serves_only(self, value: fx.Node, readers: set[fx.Node]) -> bool:
        """Tell whether nothing but `readers` sees a value, through moves or directly."""
        pending = list(value.users)
        while pending:
            user = pending.pop()
            if user in readers or any(
                user in softmax_scores(each).between for each in readers if self._is_softmax(each)
            ):
                continue
            if user.op == "output" or not is_move(user):
                return False
            pending += list(user.users)
        return True

    def _is_softmax(self, node: fx.Node) -> bool:
        return self.operations[node].kind == "softmax"

    def tie_parts(self) -> None:
        """Let what is only concatenated or chosen from be rounded once, to the grid of the result."""
        for value, site in self.plan.sites.items():
            node = self.results.get(value)
            if node is None or self.operations[node].kind not in ("concat", "choice"):
                continue
            for part in self.operations[node].inputs:
                root, _ = self._root(part)
                other = self.plan.sites.get(root)
                if other is None or root not in self.results or other.fixed or other.bits != site.bits:
                    continue
                if other.owner is not site.owner and self._serves_only(root, {node}):
                    other.owner.tied = site.owner

    def tie_states(self) -> None:
        """Keep the grid of a state from one run to the next, so that it can be stored as integers."""
        for state in self.program.states:
            root, _ = self._root(state.update)
            before, after = self.plan.sites.get(state.placeholder), self.plan.sites.get(root)
            if before and after and before.owner is not after.owner and before.bits == after.bits:
                before.owner.tied = after.owner

    # ---- weights ----

    def plan_weights(self) -> None:
        for node, operation in self.operations.items():
            bits = self.precision.weight_bits(self.program, node)
            for weight, axis in operation.weights:
                per = self.precision.per
                if node in self.is_embedded:
                    self.plan.weights.append(WeightUse(weight, node, 0, 8, "tensor", is_result=True))
                    continue
                if per == "group" and (axis != 0 or operation.kind == "recurrent"):
                    per = "channel"  # groups run along the inputs of a channel, which here are no axis of their own
                if per == "tensor" and any(user.target is _ATEN.batch_norm.default for user in node.users):
                    per = "channel"  # folding the norm will scale each channel by itself
                self.plan.weights.append(WeightUse(weight, node, axis, bits, per))


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _is_recurrent_result(node: fx.Node, operations: dict[fx.Node, Operation]) -> bool:
    source: Any = node.args[0] if node.target is operator.getitem else None
    return source in operations and source.target in RECURRENT

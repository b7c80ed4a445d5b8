"""Rewriter: the only way to edit a program, so that every change is typed, counted and traced to its source line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import VerifyError
from dsopt.ir import torch_private as private
from dsopt.ir.interpret import infer
from dsopt.ir.program import Program, set_weights
from dsopt.ir.signature import WeightKind, WeightSpec


class Rewriter:
    """Edit one program. `changes` and `skips` tell in words what was done and what was left alone, and why; `notes` what to mind."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.changes: list[str] = []
        self.skips: list[str] = []
        self.notes: list[str] = []

    def call(self, op: Callable[..., Any], *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Insert op(*args, **kwargs) before `like`, typed by its fake kernel, with the source and layer of `like`."""
        with self.program.graph.inserting_before(like):
            node = self.program.graph.call_function(op, args, kwargs)
        self._adopt(node, like)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Make every user of `old` (and the signature) use `new`; delete what is then dead. Shape and dtype must agree."""
        self._same_type(old, new)
        description = f"{_short(old)} -> {_short(new)}" + (
            f" in {self.program.layer(old)}" if self.program.layer(old) else ""
        )
        old.replace_all_uses_with(new)
        for key, fact in self.program.facts(old).items():
            self.program.facts(new).setdefault(key, fact)
        self._erase(old)
        self.changes.append(description)

    def wrap(
        self, node: fx.Node, op: Callable[..., Any], *args: Any, users: Iterable[fx.Node] | None = None
    ) -> fx.Node:
        """Insert op(node, *args) right after `node`, and make `users`, by default all, read it in the place of `node`."""
        readers = list(node.users if users is None else users)
        following = node.next
        while following.op == "placeholder":
            following = following.next
        with self.program.graph.inserting_before(following):
            wrapper = self.program.graph.call_function(op, (node, *args))
        self._adopt(wrapper, node)
        for reader in readers:
            reader.replace_input_with(node, wrapper)
        self.changes.append(f"{_short(node)} -> {_short(wrapper)}")
        return wrapper

    def set_argument(self, node: fx.Node, index: int, value: Any) -> None:
        """Give a node another positional argument; the types downstream are inferred again."""
        arguments = list(node.args)
        arguments[index] = value
        node.args = tuple(arguments)
        self.retype_from(node)
        self.changes.append(f"{_short(node)} argument {index} changed")

    def set_keyword(self, node: fx.Node, name: str, value: Any) -> None:
        """Give a node another keyword argument; the types downstream are inferred again."""
        node.kwargs = {**node.kwargs, name: value}
        self.retype_from(node)
        self.changes.append(f"{_short(node)} {name}={value}")

    def set_parameter(self, name: str, value: Tensor) -> None:
        """Store a weight, of another shape if need be; the types downstream are inferred again. Raises KeyError."""
        self.set_parameters({name: value})

    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Store several weights at once, for those whose shapes must change together. Raises KeyError."""
        self._store(values, set())

    def _store(self, values: Mapping[str, Tensor], changed: set[fx.Node]) -> None:
        nodes = {name: self.program.weight_node(name) for name in values}
        stored = {name: private.detached_copy(value) for name, value in values.items()}
        set_weights(self.program, {**self.program.weights, **stored}, self.program.signature)
        mode = private.fake_mode_of(self.program.graph)
        for name, node in nodes.items():
            before, after = node.meta["val"], stored[name]
            if tuple(before.shape) != tuple(after.shape) or before.dtype != after.dtype:
                node.meta["val"] = private.fake_tensor(mode, tuple(after.shape), after.dtype)
                changed.update(node.users)
        self._retype(changed)

    def resize(self, values: Mapping[str, Tensor], calls: Mapping[fx.Node, tuple[Any, Mapping[str, Any]]]) -> None:
        """Store weights of other shapes and write calls anew, as (operator, arguments by name), that fit together only at once.

        The types downstream are inferred again. Raises KeyError for an unknown weight.
        """
        for node, (op, named) in calls.items():
            node.target = op
            node.args, node.kwargs = private.call_arguments(op, named)
        self._store(values, set(calls))

    def store_state(self, name: str, first: Tensor, update: fx.Node) -> None:
        """Give a state another first value, of the same shape but perhaps another dtype, and another node as its next value.

        The caller sees to it that the readers of the state fit. Raises KeyError for an unknown state.
        """
        program = self.program
        number = [state.name for state in program.signature.states].index(name)
        placeholder = program.states[number].placeholder
        stored = private.detached_copy(first)
        set_weights(program, {**program.weights, name: stored}, program.signature)
        mode = private.fake_mode_of(program.graph)
        placeholder.meta["val"] = private.fake_tensor(mode, tuple(stored.shape), stored.dtype)
        results = list(program.output_node.args[0])  # type: ignore[arg-type]
        results[number] = update
        program.output_node.args = (tuple(results),)
        self.changes.append(f"state {name} -> {str(stored.dtype).removeprefix('torch.')}")

    def add_weight(self, name: str, value: Tensor, kind: WeightKind = "parameter") -> fx.Node:
        """Store a new weight and return its placeholder; a taken name gets a number. The caller uses the node at once."""
        program = self.program
        unique, number = name, 1
        while unique in program.weights:
            unique, number = f"{name}_{number}", number + 1
        first = program.placeholders[len(program.signature.weights) :]
        before = first[0] if first else next(iter(program.graph.nodes))
        with program.graph.inserting_before(before):
            node = program.graph.placeholder("p_" + unique.replace(".", "_"))
        stored = private.detached_copy(value)
        mode = private.fake_mode_of(program.graph)
        node.meta = {"val": private.fake_tensor(mode, tuple(stored.shape), stored.dtype), "layer": unique.rpartition(".")[0], "source": "",
                     "custom": {"dsopt": {}}}  # fmt: skip
        weights = (*program.signature.weights, WeightSpec(unique, kind))
        set_weights(program, {**program.weights, unique: stored}, replace(program.signature, weights=weights))
        return node

    def skip(self, node: fx.Node, why: str) -> None:
        """Record why a candidate was left alone. `dsopt compile --explain` and the tests read it."""
        self.skips.append(f"{self.program.where(node)}: {why}")

    def note(self, node: fx.Node, what: str) -> None:
        """Record what a user should know of a node although the pass went on. `dsopt compile` prints it."""
        self.notes.append(f"{self.program.where(node)}: {what}")

    def erase_dead(self) -> int:
        """Delete nodes that nothing uses and weights that no node reads; return how many nodes went."""
        before = len(self.program.graph.nodes)
        for node in reversed(list(self.program.graph.nodes)):
            if node.op == "call_function" and not node.users:
                self.program.graph.erase_node(node)
        self._drop_unused_weights()
        return before - len(self.program.graph.nodes)

    def retype_from(self, start: fx.Node) -> None:
        """Infer the types of a node and of all that depends on it; where they come out unchanged the walk ends."""
        self._retype({start})

    def _retype(self, pending: set[fx.Node]) -> None:
        for node in list(self.program.graph.nodes) if pending else ():
            if node not in pending or node.op != "call_function":
                continue
            before, after = node.meta.get("val"), infer(node)
            node.meta["val"] = after
            if not _equal_types(before, after):
                pending.update(node.users)

    def _adopt(self, node: fx.Node, like: fx.Node) -> None:
        node.meta = {
            "layer": like.meta.get("layer", ""),
            "source": like.meta.get("source", ""),
            "custom": {"dsopt": {}},
        }
        try:
            node.meta["val"] = infer(node)
        except (RuntimeError, ValueError, TypeError, IndexError) as problem:
            text = node.format_node() or node.name
            self.program.graph.erase_node(node)
            raise VerifyError(
                "DS0210",
                f"a pass inserted a node that cannot be: {text}",
                where=self.program.where(like),
                why=str(problem),
            ) from problem

    def _same_type(self, old: fx.Node, new: fx.Node) -> None:
        if not _equal_types(old.meta.get("val"), new.meta.get("val")):
            raise VerifyError(
                "DS0211", f"a pass replaced {_short(old)}, {_type_text(old)}, by {_short(new)}, {_type_text(new)}",
                where=self.program.where(old), fix="this is a bug of the pass: insert a cast or a reshape",
            )  # fmt: skip

    def _erase(self, old: fx.Node) -> None:
        pending = [old]
        while pending:
            node = pending.pop()
            if node.op != "call_function" or node.users:
                continue
            sources = list(node.all_input_nodes)
            self.program.graph.erase_node(node)
            pending += sources
        self._drop_unused_weights()

    def _drop_unused_weights(self) -> None:
        program = self.program
        nodes = program.placeholders[: len(program.signature.weights)]
        kept = [(node, spec) for node, spec in zip(nodes, program.signature.weights, strict=True) if node.users]
        if len(kept) == len(nodes):
            return
        for node in nodes:
            if not node.users:
                program.graph.erase_node(node)
        names = {spec.name for _, spec in kept} | {state.name for state in program.signature.states}
        weights = {name: value for name, value in program.weights.items() if name in names}
        set_weights(program, weights, replace(program.signature, weights=tuple(spec for _, spec in kept)))


def _equal_types(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same_rank = left.dtype == right.dtype and left.dim() == right.dim()
        return same_rank and all(private.same_size(a, b) for a, b in zip(left.shape, right.shape, strict=True))
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(_equal_types(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, (int, torch.SymInt)) and isinstance(right, (int, torch.SymInt)):
        return private.same_size(left, right)
    return type(left) is type(right)


def _short(node: fx.Node) -> str:
    target = str(node.target).removesuffix(".default") if node.op == "call_function" else node.op
    return f"%{node.name} {target}"


def _type_text(node: fx.Node) -> str:
    value = node.meta.get("val")
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

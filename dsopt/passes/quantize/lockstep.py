"""Run the float program that a prepared one came from, and the prepared one itself, side by side over all calibration data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.ir.interpret import argument_values
from dsopt.passes.base import PassContext
from dsopt.passes.quantize.calibrate import FLOAT_RECURRENT, inputs_of, run_on_data
from dsopt.passes.quantize.layer import layer_of
from dsopt.passes.quantize.reference import float_value

_FAKE = torch.ops.dsopt.fake_quantize.default

Substitutes = dict[Any, Callable[..., Any]]
_Batch = dict[fx.Node, Any]


def _as_it_is(x: Tensor, *grid: Any) -> Tensor:
    return x


UNROUNDED: Substitutes = {_FAKE: _as_it_is, **FLOAT_RECURRENT}
"""What stands for operators that round, to have the float program."""


class Lockstep:
    """One walk over the graph of a prepared program, in which each value is at hand twice, for every batch of the calibration data.

    Values that depend on stored weights alone are computed when they are read, so that a layer whose weights were changed on the
    walk is seen with the new ones. Values are freed after their last use.
    """

    def __init__(self, program: Program, context: PassContext) -> None:
        self.program, self.context = program, context
        self._values = self._first_values()
        self._varying = _varying(program)

    def walk(self, visit: Callable[[fx.Node], None], what: str) -> None:
        """Show each operator to `visit` when its real value is known but its rounded one is not, though its arguments are."""
        nodes = [node for node in self.program.graph.nodes if node.op == "call_function" and node in self._varying]
        readers = {node: len([user for user in node.users if user in self._varying]) for node in self._varying}
        with torch.no_grad():
            for number, node in enumerate(nodes):
                self.context.progress(number, len(nodes), what)
                self._store(node, 0)  # before the visit, which may change what the float program must not see
                visit(node)
                self._store(node, 1)
                for used in node.all_input_nodes:
                    readers[used] = readers.get(used, 0) - 1
                    if readers[used] == 0:
                        for values in (*self._values[0], *self._values[1]):
                            values.pop(used, None)

    def knows(self, node: fx.Node) -> bool:
        """Tell whether a node's values are at hand."""
        return node not in self._varying or all(node in values for values in self._values[1])

    def real(self, node: fx.Node) -> list[Any]:
        """Return what a node, whose arguments are known, is in the float program: one value for each batch."""
        return self._known(node, 0)

    def rounded(self, node: fx.Node) -> list[Any]:
        """Return what a node is in the prepared program: one value for each batch."""
        return self._known(node, 1)

    def _known(self, node: fx.Node, side: int) -> list[Any]:
        if node in self._varying and all(node not in values for values in self._values[side]):
            return self._compute(node, side)
        return [self._value(node, values, side) for values in self._values[side]]

    def _store(self, node: fx.Node, side: int) -> None:
        for values, result in zip(self._values[side], self._compute(node, side), strict=True):
            values[node] = result

    def _compute(self, node: fx.Node, side: int) -> list[Any]:
        function = self._function(node, side)
        read = node.all_input_nodes
        constants = {each: self._value(each, {}, side) for each in read if each not in self._varying}
        results = []
        for values in self._values[side]:
            known = {each: values[each] for each in read if each in self._varying}
            args, kwargs = argument_values(node, known | constants)
            results.append(function(*args, **kwargs))
        return results

    def _function(self, node: fx.Node, side: int) -> Any:
        return node.target if side else UNROUNDED.get(node.target, node.target)

    def _value(self, node: fx.Node, values: _Batch, side: int) -> Any:
        """Return a value of one batch, or one that is the same for all."""
        if node in values:
            return values[node]
        stored = self.program.weight(node) if side else float_value(self.program, node)
        if stored is not None:
            return stored.detach()
        args, kwargs = argument_values(node, {each: self._value(each, values, side) for each in node.all_input_nodes})
        return self._function(node, side)(*args, **kwargs)

    def _first_values(self) -> tuple[list[_Batch], list[_Batch]]:
        """Return inputs and states of each batch. States are those that the two programs have after the batches before."""
        program, batches = self.program, self.context.calibration
        inputs = [dict(zip(program.inputs, inputs_of(program, batch), strict=True)) for batch in batches]
        real, rounded = ([dict(batch) for batch in inputs] for _ in range(2))
        if program.states:
            for states, values in ((self._real_states(), real), (_states(program, self.context, {}), rounded)):
                for placeholder in (state.placeholder for state in program.states):
                    for batch, value in zip(values, states[placeholder.name], strict=True):
                        batch[placeholder] = value
        return real, rounded

    def _real_states(self) -> dict[str, list[Any]]:
        copy = self.program.clone()
        values = {copy.weight_name(node): float_value(copy, node) for node in copy.placeholders}
        Rewriter(copy).set_parameters({name: value for name, value in values.items() if name and value is not None})
        return _states(copy, self.context, UNROUNDED)


def _states(program: Program, context: PassContext, substitutes: Substitutes) -> dict[str, list[Any]]:
    """Return each state, by its placeholder's name, as it is before each batch."""
    found: dict[str, list[Any]] = {state.placeholder.name: [] for state in program.states}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in found:
            found[node.name].append(value)

    run_on_data(program, context, see, "running the calibration data", substitutes)
    return found


def _varying(program: Program) -> set[fx.Node]:
    """Return the nodes whose values differ from batch to batch."""
    found = {*program.inputs, *(state.placeholder for state in program.states)}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def refuse_unprepared(program: Program, context: PassContext, name: str) -> None:
    """Raise UsageError where there is nothing to compare, or nothing to compare it on."""
    if not context.calibration:
        raise UsageError(
            "DS0330", f"{name} needs calibration data: it compares the rounded model with the float one",
            fix="give inputs that are typical of use: --data calib.npz, or PassContext(calibration=...)",
        )  # fmt: skip
    if not any(node.target is _FAKE for node in program.graph.nodes):
        raise UsageError(
            "DS0331", "no value of the program is rounded",
            fix=f"run quantize-prepare before {name}, and quantize-convert after it",
        )  # fmt: skip
    _refuse_norms(program, name)


def _refuse_norms(program: Program, name: str) -> None:
    norms = [
        program.where(node)
        for node in program.graph.nodes
        if node.target is torch.ops.aten.batch_norm.default
        and (layer := layer_of(program, node.args[0])) is not None
        and layer.is_rounded
    ]
    if norms:
        raise UsageError(
            "DS0334", "a batch norm still follows a rounded weight; folding it later would undo what is chosen now",
            where="\n".join(norms[:10]), fix=f"run fold-batch-norm before quantize-prepare and {name}",
        )  # fmt: skip


def refuse_infinite(program: Program, node: fx.Node, *values: Tensor) -> None:
    """Raise UsageError if what was measured of a layer is no number."""
    if not all(bool(value.isfinite().all()) for value in values):
        raise UsageError(
            "DS0332", "a layer's results were NaN or infinite on the calibration data", where=program.where(node),
            fix="mend the data or the layer; a layer may be kept in float with keep=...",
        )  # fmt: skip

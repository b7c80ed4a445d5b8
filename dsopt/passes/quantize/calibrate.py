"""Run a program on calibration data and watch its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate_in_turn
from dsopt.ops.recurrent import float_gru, float_lstm
from dsopt.passes.base import PassContext
from dsopt.passes.quantize.observer import Observer
from dsopt.passes.quantize.precision import Precision

_DSOPT = torch.ops.dsopt

FLOAT_RECURRENT: dict[Any, Callable[..., Any]] = {
    _DSOPT.fake_quantized_lstm.default: float_lstm,
    _DSOPT.fake_quantized_gru.default: float_gru,
}
"""What stands for recurrent layers whose grids are not known yet."""

Watch = Callable[[fx.Node, Any], None]


def run_on_data(
    program: Program,
    context: PassContext,
    watch: Watch,
    what: str,
    substitutes: Mapping[Any, Callable[..., Any]] = FLOAT_RECURRENT,
) -> None:
    """Run the float program on every calibration batch, states carried from one to the next, and show each value to `watch`."""
    if not context.calibration:
        raise UsageError(
            "DS0311", "quantisation needs calibration data: a range for each activation",
            fix="give inputs that are typical of use: --data calib.npz, or PassContext(calibration=...); quantize-dynamic needs none",
        )  # fmt: skip
    count = len(context.calibration)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for number, batch in enumerate(context.calibration):
            context.progress(number, count, what)
            yield inputs_of(program, batch)

    evaluate_in_turn(program, batches(), watch, substitutes)


def inputs_of(program: Program, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return a batch in the order of the program's inputs. Raises UsageError for one that is missing."""
    missing = [spec.name for spec in program.signature.inputs if spec.name not in batch]
    if missing:
        raise UsageError(
            "DS0312",
            f"the calibration data lacks the input {missing[0]!r}",
            fix="it must hold one array for each input",
        )
    return tuple(batch[spec.name] for spec in program.signature.inputs)


def count_samples(program: Program, batches: Sequence[Mapping[str, Tensor]]) -> int:
    """Return the number of samples: batches, each counted as many times as its first size that varies says."""
    total = 0
    for batch in batches:
        sizes = program.sizes_of(inputs_of(program, batch))
        first = [
            str(size) for node in program.inputs for size in node.meta["val"].shape[:1] if not isinstance(size, int)
        ]
        total += sizes.get(program.symbols.get(first[0], ""), 1) if first else _leading(batch)
    return total


def _leading(batch: Mapping[str, Tensor]) -> int:
    shapes = [tuple(value.shape) for value in batch.values()]
    return max((shape[0] for shape in shapes if len(shape) > 1), default=1)


def observe(
    program: Program, context: PassContext, nodes: Mapping[fx.Node, int], precision: Precision
) -> dict[fx.Node, Observer]:
    """Return an observer of each node, which is to be written with the given number of bits."""
    observers = {
        node: Observer(precision.observer, precision.quantile, (1 << bits) - 1) for node, bits in nodes.items()
    }

    def see(node: fx.Node, value: Any) -> None:
        if node in observers:
            observers[node].see(_first(value))

    def count(node: fx.Node, value: Any) -> None:
        if node in observers:
            observers[node].count(_first(value))

    run_on_data(program, context, see, "calibrating")
    refuse_nan(program, observers)
    if any(each.needs_histogram for each in observers.values()):
        run_on_data(program, context, count, "calibrating")
    return observers


def _first(value: Any) -> Tensor:
    """Return the sequence that a recurrent layer gives, or the one result of another operator."""
    result: Tensor = value[0] if isinstance(value, tuple) else value
    return result


def refuse_nan(program: Program, observers: Mapping[fx.Node, Observer]) -> None:
    """Raise UsageError naming each value that was NaN or infinite, the first one first: the ones after it follow from it."""
    bad = [
        f"{program.where(node)}: {each.nan} elements were NaN or infinite"
        for node, each in observers.items()
        if each.nan
    ]
    if bad:
        raise UsageError(
            "DS0313", "values of the float model were NaN or infinite on the calibration data", where="\n".join(bad[:10]),
            fix="mend the data or the layer; a layer may be kept in float with keep=...",
        )  # fmt: skip


def look_at(program: Program, context: PassContext, nodes: Iterable[fx.Node]) -> dict[fx.Node, list[Tensor]]:
    """Return the values of a few small nodes in every batch."""
    found: dict[fx.Node, list[Tensor]] = {node: [] for node in nodes}

    def keep(node: fx.Node, value: Any) -> None:
        if node in found:
            found[node].append(value)

    if found:
        run_on_data(program, context, keep, "looking at masks")
    return found

"""How far sparse attention is from dense, head by head, on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate_in_turn
from dsopt.ops.sparse_attention import sparse_attention
from dsopt.passes.base import PassContext

_SAMPLES = 4
"""Batches that are measured, at most."""

DENSE = -1.0


@dataclass
class Errors:
    """Of one attention, sums over all data. difference: budget -> (H,), squares of sparse less dense.  length: (H,), squares of dense."""

    difference: dict[float, Tensor] = field(default_factory=dict)
    length: Tensor | None = None

    def of_heads(self, budget: float) -> Tensor:
        """Return the relative L2 error of each head, 0 where there is nothing to be wrong."""
        assert self.length is not None
        if budget < 0:
            return torch.zeros_like(self.length)
        return (self.difference[budget] / self.length.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()

    def of_layer(self, budgets: Sequence[float]) -> float:
        """Return the relative L2 error of all heads together, each with its budget."""
        assert self.length is not None
        total = sum(float(self.difference[each][head]) for head, each in enumerate(budgets) if each >= 0)
        return float((total / max(float(self.length.sum()), torch.finfo(torch.float64).tiny)) ** 0.5)


def measure(
    program: Program, context: PassContext, ladders: Mapping[fx.Node, Sequence[float]]
) -> dict[fx.Node, Errors]:
    """Run the dense program on calibration data, and beside each attention its sparse form with every budget of its ladder.

    ladders: nodes of dsopt::sparse_attention, which nothing need use, and budgets of their unit.
    Raises UsageError without data.
    """
    names = [spec.name for spec in program.signature.inputs]
    missing = [name for batch in context.calibration for name in names if name not in batch]
    is_empty = not any(batch[name].numel() for batch in context.calibration for name in names if name in batch)
    if missing or is_empty:
        raise UsageError(
            "DS0394", f"the data lacks the input {missing[0]!r}" if missing else "sparse-attention needs data",
            why="it measures what each head of attention loses, and leaves dense what loses too much",
            fix="give inputs that are typical of use, with --data or PassContext(calibration=...); max_error=none goes without",
        )  # fmt: skip
    found = {node: Errors() for node in ladders}
    some = context.calibration[:_SAMPLES]

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for number, batch in enumerate(some):
            context.progress(number, len(some), "measuring sparse attention")
            yield tuple(batch[name] for name in names)

    evaluate_in_turn(program, batches(), substitutes={node: _Measured(ladders[node], found[node]) for node in ladders})
    spoilt = [
        node for node, each in found.items() if each.length is not None and not bool(each.length.isfinite().all())
    ]
    if spoilt:
        raise UsageError(
            "DS0394", "the data makes attention infinite or NaN", where=program.where(spoilt[0]),
            why="what sparse attention loses cannot be told from that", fix="look for NaN and infinity in the data",
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Measured:
    """Stands for a sparse attention: gives the dense result, and adds up how far each budget is from it."""

    ladder: Sequence[float]
    errors: Errors

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, *rest: Any
    ) -> Tensor:  # fmt: skip
        _, unit, tile, window = rest
        dense = sparse_attention(query, key, value, bias, causal, scale, [DENSE], "keys", tile, window)
        length = dense.double().square().sum((0, 2, 3))
        self.errors.length = length if self.errors.length is None else self.errors.length + length
        for budget in self.ladder:
            sparse = sparse_attention(query, key, value, bias, causal, scale, [budget], unit, tile, window)
            difference = (sparse.double() - dense.double()).square().sum((0, 2, 3))
            before = self.errors.difference.get(budget)
            self.errors.difference[budget] = difference if before is None else before + difference
        return dense

"""Add up, for each channel, numbers that stand beside the elements of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dsopt.ir import Program
from dsopt.passes.prune.channels import Channels, Use

Sums = NDArray[np.float64]
"""One number for each channel."""


def summed(channels: Channels, names: Iterable[str], values_of: Callable[[str], Tensor]) -> Sums:
    """Return for each channel the sum of `values_of(weight)` over all elements of these weights that go with it."""
    result, wanted = np.zeros(channels.count + 1), frozenset(names)
    known: tuple[str, Tensor | None] = ("", None)
    for use in channels.uses:  # those of one weight stand together
        if use.weight not in wanted:
            continue
        if known[0] != use.weight:
            known = (use.weight, values_of(use.weight).detach().double())
        assert known[1] is not None
        along = by_index(known[1], use).sum(1).numpy()
        for column in channels.cells[channels.rows[use.row]].T:
            np.add.at(result, column, along)
    return result[: channels.count]


def by_index(weight: Tensor, use: Use) -> Tensor:
    """Return a weight as (indices of the row, all that goes with one of them)."""
    moved = weight.movedim(use.dim, 0)
    rows = moved.reshape(use.outer, -1, use.inner, moved[0].numel())
    return rows.transpose(0, 1).reshape(rows.shape[1], -1)


def float_parameters(program: Program) -> list[str]:
    """Return the names of the parameters that training changes."""
    return [
        spec.name
        for spec in program.signature.weights
        if spec.kind == "parameter" and program.weights[spec.name].is_floating_point()
    ]

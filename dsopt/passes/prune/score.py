"""How much each channel matters: magnitudes of the weights that go with it.

l1, l2: Li et al. 2017, "Pruning filters for efficient convnets", summed over every weight that the channel touches, on both of its sides,
as coupled channels go together (Fang et al. 2023, "DepGraph").  bn: Liu et al. 2017, "Network slimming".
Scores are divided by the mean of their group, so that layers of different size and scale can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsopt.ir.torch_private import is_operator, named_arguments
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.rules.base import packet_name

Score = Literal["l1", "l2", "bn"]
SCORES: tuple[str, ...] = get_args(Score)

Scores = NDArray[np.float64]
"""One number for each channel; the mean of each group is 1."""


def score_channels(channels: Channels, score: Score) -> Scores:
    """Return what each channel matters."""
    result = _summed(channels, _parameters(channels), torch.square if score == "l2" else torch.abs)
    if score == "l2":
        result = np.sqrt(result)
    if score == "bn":
        scales = _summed(channels, _norm_scales(channels), torch.abs)
        for group in channels.groups:
            if (scales[group.channels] > 0).any():
                result[group.channels] = scales[group.channels]
    for group in channels.groups:
        mean = result[group.channels].mean()
        result[group.channels] = result[group.channels] / mean if mean > 0 else 1.0
    return result


def _parameters(channels: Channels) -> set[str]:
    program = channels.inference.program
    return {
        spec.name
        for spec in program.signature.weights
        if spec.kind == "parameter" and program.weights[spec.name].is_floating_point()
    }


def _norm_scales(channels: Channels) -> set[str]:
    """Return the names of the scales of batch normalisations."""
    program = channels.inference.program
    found = set()
    for node in program.graph.nodes:
        if is_operator(node.target) and packet_name(node) == "batch_norm":
            name = program.weight_name(named_arguments(node)["weight"]) if named_arguments(node)["weight"] else None
            if name is not None:
                found.add(name)
    return found


def _summed(channels: Channels, names: set[str], magnitude: Callable[[Tensor], Tensor]) -> Scores:
    """Return for each channel the sum of the magnitudes of all elements of these weights that go with it."""
    result = np.zeros(channels.count + 1)
    weights = channels.inference.program.weights
    by_weight: dict[str, Tensor] = {}
    for use in channels.uses:
        if use.weight not in names:
            continue
        if use.weight not in by_weight:
            by_weight = {use.weight: magnitude(weights[use.weight].detach().double())}
        values = by_weight[use.weight]
        others = [dim for dim in range(values.dim()) if dim != use.dim]
        along = values.sum(others) if others else values
        row = along.reshape(use.outer, -1, use.inner).sum((0, 2)).numpy()
        for column in channels.cells[channels.rows[use.row]].T:
            np.add.at(result, column, row)
    return result[: channels.count]

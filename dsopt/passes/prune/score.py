"""How much each channel matters, by its weights or by what it does to the outputs.

l1, l2: Li et al. 2017, "Pruning filters for efficient convnets", summed over every weight that the channel touches, on both of its sides,
as coupled channels go together (Fang et al. 2023, "DepGraph").  bn: the scales of batch normalisation, Liu et al. 2017, "Network
slimming".  fpgm: how far a channel is from the others, He et al. 2019.  taylor: how far the outputs move, Molchanov et al. 2019.
Scores are divided by the mean of their group, so that layers of different size and scale can be compared.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from dsopt.ir.torch_private import is_operator, named_arguments
from dsopt.passes.base import PassContext
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.distances import distances
from dsopt.passes.prune.rules.base import packet_name
from dsopt.passes.prune.sums import Sums, float_parameters, summed
from dsopt.passes.prune.taylor import output_changes

Score = Literal["l1", "l2", "bn", "fpgm", "taylor"]
SCORES: tuple[str, ...] = get_args(Score)


def score_channels(channels: Channels, score: Score, context: PassContext) -> Sums:
    """Return what each channel matters; the mean of each group is 1."""
    result = _raw(channels, score, context)
    for group in channels.groups:
        mean = result[group.channels].mean()
        result[group.channels] = result[group.channels] / mean if mean > 0 else 1.0
    return result


def _raw(channels: Channels, score: Score, context: PassContext) -> Sums:
    program = channels.inference.program
    names, weights = float_parameters(program), program.weights
    if score == "fpgm":
        return distances(channels)
    if score == "taylor":
        return output_changes(channels, context)
    if score == "l2":
        return np.asarray(np.sqrt(summed(channels, names, lambda name: weights[name].double().square())))
    magnitudes = summed(channels, names, lambda name: weights[name].abs())
    return magnitudes if score == "l1" else _by_norm_scales(channels, magnitudes)


def _by_norm_scales(channels: Channels, otherwise: Sums) -> Sums:
    """Return the scales of batch normalisations, and other scores where a group has none."""
    program, names = channels.inference.program, set[str]()
    for node in program.graph.nodes:
        if (
            is_operator(node.target)
            and packet_name(node) == "batch_norm"
            and named_arguments(node)["weight"] is not None
        ):
            names.add(program.weight_name(named_arguments(node)["weight"]) or "")
    scales = summed(channels, names, lambda name: program.weights[name].abs())
    result: Sums = np.array(otherwise)
    for group in channels.groups:
        if (scales[group.channels] > 0).any():
            result[group.channels] = scales[group.channels]
    return result

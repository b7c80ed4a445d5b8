"""FPGM: a channel that is near all others can be spared (He et al. 2019, "Filter pruning via geometric median").

The vector of a channel is all that goes with it in the weights that its group uses; its score is the sum of the distances to the others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsopt.passes.prune.channels import Channels, Group
from dsopt.passes.prune.sums import Sums, by_index, float_parameters


def distances(channels: Channels) -> Sums:
    """Return for each channel the sum of its distances to all others of its group."""
    result, names = np.zeros(channels.count), frozenset(float_parameters(channels.inference.program))
    for group in channels.groups:
        count = len(group.channels)
        squares = torch.zeros(count, count, dtype=torch.float64)
        for use in group.uses:
            if use.weight in names:
                weight = channels.inference.program.weights[use.weight].detach().double()
                squares += _squared_distances(_vectors(channels, group, by_index(weight, use), use.row))
        result[group.channels] = squares.clamp_min(0).sqrt().sum(1).numpy()
    return result


def _vectors(channels: Channels, group: Group, indices: Tensor, row: int) -> Tensor:
    """Return (channels of the group, numbers): the sum of the indices that share a channel would mix them, so they stand side by side."""
    cells = channels.cells[channels.rows[row]]
    places = [np.flatnonzero((cells == channel).any(axis=1)) for channel in group.channels.tolist()]
    most = max(len(own) for own in places)
    padded = torch.zeros(len(places), most, indices.shape[1], dtype=indices.dtype)
    for number, own in enumerate(places):
        padded[number, : len(own)] = indices[torch.from_numpy(own)]
    return padded.flatten(1)


def _squared_distances(vectors: Tensor) -> Tensor:
    products = vectors @ vectors.T
    lengths = products.diagonal()
    return lengths[:, None] + lengths[None] - 2 * products

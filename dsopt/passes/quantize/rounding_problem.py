"""The weights of one layer, to be rounded up or down: which choice brings the results nearest to those that are wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_STRETCH = (-0.1, 1.1)
"""The rectified sigmoid reaches 0 and 1 because it is cut from this range (Louizos et al. 2018)."""

_SHARPNESS = (20.0, 2.0)
"""The exponent of the regulariser, at first and at the end."""

_WARMUP = 0.2
"""The share of the iterations without a regulariser."""

_STRENGTH = 0.1
"""The weight of the regulariser, summed over all weights, beside the squared error as a share of that of nearest rounding.

With a tenth of it, small layers are still undecided at the end: the error of the stem of ResNet-8 at 4 bits is 0.04 of that of
nearest rounding before its choices are made final, and 0.5 to 0.65 after; with this it is 0.1 and stays so.
"""

_ROWS = 1024
"""Positions of results that one iteration looks at."""


@dataclass(frozen=True)
class Solution:
    """weight: (G, N, K) on its grid.  bias: (1, G, N).  before, after: mean squared errors of what there was, and of this."""

    weight: Tensor
    bias: Tensor
    before: float
    after: float


@dataclass(frozen=True)
class RoundingProblem:
    """cut(rows @ weight + bias + added) is to be close to cut(wanted), with each weight the multiple of its step above or below.

    rows: (P, G, K), in random order.  weight, present, step: (G, N, K), the weight before it was rounded, and as it is rounded now.
    added, wanted: (P, G, N).  bias: (1, G, N).  low, high: the least and the largest multiple.
    """

    rows: Tensor
    added: Tensor
    wanted: Tensor
    weight: Tensor
    present: Tensor
    step: Tensor
    low: int
    high: int
    bias: Tensor
    cut: Callable[[Tensor], Tensor]

    def solve(self, iterations: int, learning_rate: float) -> Solution:
        """Return the best of: what there is, nearest rounding with the bias that its mean error asks for, the choice by gradients.

        The choice: Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization", equations 21 to 25, with the
        bias learned beside it.
        """
        before = self._error(self.present, self.bias)
        if before == 0:
            return Solution(self.present, self.bias, 0.0, 0.0)
        nearest = self._on_grid(torch.round(self.weight / self.step))
        shifted = self.bias - self._excess(nearest)
        candidates = [(self.present, self.bias), (nearest, shifted), self._choose(iterations, learning_rate, shifted)]
        errors = [self._error(weight, bias) for weight, bias in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        return Solution(*candidates[best], before, errors[best])

    def _choose(self, iterations: int, learning_rate: float, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return a weight and a bias. bias: where the search starts."""
        down = torch.floor(self.weight / self.step)
        unit = math.sqrt(self._error(self._on_grid(torch.round(self.weight / self.step)), self.bias)) or 1.0
        choice = _logits(self.weight / self.step - down).requires_grad_()
        shift = (bias / unit).requires_grad_()
        optimizer = torch.optim.Adam([choice, shift], lr=learning_rate)
        warmup = int(_WARMUP * iterations)
        with torch.enable_grad():
            for number in range(iterations):
                share = _stretched(choice)
                error = self._loss(self._on_grid(down + share), shift * unit, self._part(number)) / unit**2
                if number >= warmup:
                    beta = _sharpness((number - warmup) / max(iterations - warmup, 1))
                    error = error + _STRENGTH * (1 - (2 * share - 1).abs().pow(beta)).sum()
                optimizer.zero_grad()
                error.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self._on_grid(down + (choice.detach() >= 0).to(down.dtype)), shift.detach() * unit

    def _on_grid(self, steps: Tensor) -> Tensor:
        return steps.clamp(self.low, self.high) * self.step

    def _part(self, number: int) -> slice:
        """Return the rows of an iteration; they are in random order already."""
        first = number % max(len(self.rows) // _ROWS, 1) * _ROWS
        return slice(first, first + _ROWS)

    def _parts(self) -> list[slice]:
        return [slice(first, first + _ROWS) for first in range(0, len(self.rows), _ROWS)]

    def _results(self, weight: Tensor, bias: Tensor, part: slice) -> Tensor:
        product = torch.bmm(self.rows[part].transpose(0, 1), weight.transpose(1, 2))
        return product.transpose(0, 1) + bias + self.added[part]

    def _loss(self, weight: Tensor, bias: Tensor, part: slice) -> Tensor:
        return (self.cut(self._results(weight, bias, part)) - self.cut(self.wanted[part])).pow(2).mean()

    def _error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the mean squared error over all rows."""
        parts = self._parts()
        total = sum(float(self._loss(weight, bias, part)) * len(self.rows[part]) for part in parts)
        return total / len(self.rows)

    def _excess(self, weight: Tensor) -> Tensor:
        """Return what a weight adds to the results on average, (1, G, N)."""
        sums = [
            (self._results(weight, self.bias, part) - self.wanted[part]).sum(0, keepdim=True) for part in self._parts()
        ]
        return torch.stack(sums).sum(0) / len(self.rows)


def _logits(share: Tensor) -> Tensor:
    """Return what the rectified sigmoid takes to `share`."""
    low, high = _STRETCH
    return torch.logit((share - low) / (high - low))


def _stretched(logits: Tensor) -> Tensor:
    """Return the rectified sigmoid."""
    low, high = _STRETCH
    return (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)


def _sharpness(share: float) -> float:
    """Return the exponent of the regulariser after a share of the iterations, linearly."""
    first, last = _SHARPNESS
    return first + (last - first) * share

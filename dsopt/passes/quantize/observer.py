"""Observers: what range a tensor has had over all calibration data, told at the end of one or two looks at it.

minmax      the least and the largest value
moving      their moving averages over the samples, momentum 0.1 (Jacob et al. 2018, section 3.1)
percentile  what lies between two quantiles, from a histogram
mse         the range whose grid has the least mean squared error, from a histogram (Sung et al. 2015; Banner et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

OBSERVERS = ("minmax", "moving", "percentile", "mse")

_BINS = 2048
_MOMENTUM = 0.1
_CANDIDATES = 60
"""Ranges that the mse observer tries: each side cut by up to nine tenths."""

Float = npt.NDArray[np.float64]


@dataclass
class Observer:
    """Watches one value. `see` it in every sample; if `needs_histogram`, `count` it in every sample again; then ask for `range`."""

    kind: str
    quantile: float
    levels: int
    samples: int = 0
    nan: int = 0
    low: float = np.inf
    high: float = -np.inf
    _average: tuple[float, float] | None = None
    _counts: Float = field(default_factory=lambda: np.zeros(_BINS))

    @property
    def needs_histogram(self) -> bool:
        """Tell whether a second look is needed."""
        return self.kind in ("percentile", "mse")

    def see(self, value: Tensor) -> None:
        """Take the least and the largest finite element of a sample."""
        flat = value.detach().reshape(-1)
        low, high = (float(each) for each in torch.aminmax(flat)) if flat.numel() else (np.inf, -np.inf)
        if not np.isfinite(low + high):
            finite = flat[flat.isfinite()]
            self.nan += flat.numel() - finite.numel()
            low, high = (float(each) for each in torch.aminmax(finite)) if finite.numel() else (np.inf, -np.inf)
        if low > high:
            return
        self.samples += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        before = self._average or (low, high)
        self._average = (
            before[0] + _MOMENTUM * (low - before[0]),
            before[1] + _MOMENTUM * (high - before[1]),
        )

    def count(self, value: Tensor) -> None:
        """Sort the elements of a sample into the histogram over the whole range."""
        if self.high > self.low:
            flat = value.detach().reshape(-1).float()
            self._counts += torch.histc(flat[flat.isfinite()], _BINS, self.low, self.high).double().numpy()

    def range(self) -> tuple[float, float]:
        """Return the range that the integers are to span; (inf, -inf) if no finite element was seen."""
        if self.kind == "moving" and self._average is not None:
            return self._average
        if self.needs_histogram and self._counts.sum() > 0:
            return self._quantiles() if self.kind == "percentile" else self._least_error()
        return self.low, self.high

    def _centres(self) -> Float:
        edges = np.linspace(self.low, self.high, _BINS + 1)
        centres: Float = (edges[1:] + edges[:-1]) / 2
        return centres

    def _quantiles(self) -> tuple[float, float]:
        share = np.cumsum(self._counts) / self._counts.sum()
        edges = np.linspace(self.low, self.high, _BINS + 1)
        first = int(np.searchsorted(share, 1 - self.quantile))
        last = int(np.searchsorted(share, self.quantile))
        return float(edges[first]), float(edges[min(last + 1, _BINS)])

    def _least_error(self) -> tuple[float, float]:
        """Cut the two sides of the range by turns, each to where the error is least for the other side as it is."""
        centres = self._centres()
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        factors = np.linspace(1.0, 0.1, _CANDIDATES)
        for _ in range(2):
            high = high if high <= 0 else self._best(centres, [(low, high * factor) for factor in factors])[1]
            low = low if low >= 0 else self._best(centres, [(low * factor, high) for factor in factors])[0]
        return low, high

    def _best(self, centres: Float, candidates: list[tuple[float, float]]) -> tuple[float, float]:
        errors = [self._error(centres, low, high) for low, high in candidates]
        return candidates[int(np.argmin(errors))]

    def _error(self, centres: Float, low: float, high: float) -> float:
        step = (high - low) / self.levels
        if step <= 0:
            return float("inf")
        rounded = np.clip(np.rint((centres - low) / step), 0, self.levels) * step + low
        return float(((centres - rounded) ** 2 * self._counts).sum())

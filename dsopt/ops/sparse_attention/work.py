"""A counter of multiply-adds, carried through the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Work:
    """Multiply-adds by what they are for; an addition or a comparison counts as one.

    pooling, scoring, sorting, residual, picks; `dense` is what dense attention would take, a causal mask taken into account.
    """

    parts: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("pooling", "scoring", "sorting", "residual", "picks"), 0.0)
    )
    dense: float = 0.0

    def add(self, part: str, multiply_adds: float | Tensor) -> None:
        """Count some."""
        self.parts[part] += float(multiply_adds)

    def sort(self, lengths: Tensor) -> None:
        """Count the comparisons of sorting lists of these lengths (any shape, int64)."""
        counts = lengths.double()
        self.parts["sorting"] += float((counts * counts.clamp(min=1).log2()).sum())

    @property
    def total(self) -> float:
        """Return the sum of the parts."""
        return sum(self.parts.values())

    @property
    def share(self) -> float:
        """Return the part of dense attention's work, 1.0 of nothing."""
        return self.total / self.dense if self.dense else 1.0


class Uncounted(Work):
    """Counts nothing, and looks at no tensor's value, so that what it is given to can be captured."""

    def add(self, part: str, multiply_adds: float | Tensor) -> None:
        """Count nothing."""

    def sort(self, lengths: Tensor) -> None:
        """Count nothing."""

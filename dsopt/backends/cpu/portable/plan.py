"""What is known before the numbers are: the shapes of one attention, and where its tiles lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dsopt.sparse_schedule import LEAF, Schedule, picked, schedule

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bias:
    """A bias (B or 1, H or 1, 1, S or 1). heads: H or 1.  keys: S or 1."""

    dtype: torch.dtype
    heads: int
    keys: int


@dataclass(frozen=True)
class Form:
    """One distinct attention: query (B, H, T, D), key (B, K, S, D), value (B, K, S, E), B at run time. The rest is the operator's own."""

    dtype: torch.dtype
    heads: int
    key_heads: int
    queries: int
    keys: int
    head: int
    value_head: int
    bias: Bias | None
    causal: str
    scale: float
    budget: tuple[float, ...]
    unit: str
    tile: int
    window: int

    @property
    def work_dtype(self) -> torch.dtype:
        """Return the dtype of the arithmetic."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def tables(self) -> int:
        """Return for how many heads keys are added up: those of keys, or of queries where a bias tells them apart."""
        return self.key_heads if self.bias is None or self.bias.heads == 1 else self.heads

    def groups(self) -> list[tuple[Schedule, list[int]]]:
        """Return the schedules in order, each with the heads that have it."""
        budgets = self.budget if len(self.budget) > 1 else self.budget * self.heads
        picks = [
            picked(each, self.unit, self.queries, self.keys, self.head, self.value_head, self.tile) for each in budgets
        ]
        found: dict[Schedule, list[int]] = {}
        for number in sorted(range(self.heads), key=lambda number: picks[number]):
            found.setdefault(schedule(self.keys, picks[number]), []).append(number)
        return list(found.items())

    def sees(self) -> Numbers:
        """Return how many keys each query may attend to, (T,)."""
        if self.causal == "none":
            return np.full(self.queries, self.keys, np.int64)
        offset = self.keys - self.queries if self.causal == "end" else 0
        return np.clip(np.arange(self.queries, dtype=np.int64) + offset + 1, 0, self.keys)

    def places(self) -> Places:
        """Return where the tiles lie."""
        count = -(-self.queries // self.tile)
        number = np.arange(count * self.tile)
        sees = self.sees()
        seen = np.concatenate([sees, np.repeat(sees[-1:], len(number) - self.queries)]).reshape(count, self.tile)
        first = np.arange(0, count * self.tile, self.tile)[:, None] + (
            self.keys - self.queries if self.causal == "end" else 0
        )
        near = first + (np.array([-self.window, self.tile + self.window]) if self.window else np.array([0, 0]))
        rows = (number < self.queries).reshape(count, self.tile).sum(1)
        return Places(seen, np.minimum(seen.min(1) // LEAF, self.keys // LEAF), near, rows, self.keys)


@dataclass(frozen=True)
class Places:
    """The tiles (t) of an attention. seen: (t, tile), keys that a query may attend to.  prefix: (t,), leaves that all of a tile may.

    near: (t, 2), the first key and the one behind the last that must be picked.  rows: (t,), queries that are not there to fill up.
    """

    seen: Numbers
    prefix: Numbers
    near: Numbers
    rows: Numbers
    keys: int
    own: Numbers = field(init=False)
    """(t, c): the keys behind the prefix that are attended to one by one; some may not be seen, or not be there."""

    def __post_init__(self) -> None:
        first = self.prefix * LEAF
        count = max(0, int((self.seen.max(1) - first).max()))
        object.__setattr__(self, "own", first[:, None] + np.arange(count, dtype=np.int64))

    @property
    def count(self) -> int:
        """Return t."""
        return len(self.prefix)

    @property
    def is_whole(self) -> bool:
        """Whether every query may attend to every key."""
        return bool((self.seen == self.keys).all())

    def complete(self, level: int) -> Numbers:
        """Return how many nodes of a level lie in the prefix, (t,)."""
        return self.prefix >> level

    def is_near(self, first: Numbers, size: int) -> npt.NDArray[np.bool_]:
        """Tell which nodes of `size` keys, from key `first` (n,) on, must be kept, (t, n)."""
        start, end = self.near[:, :1], self.near[:, 1:]
        return (first[None] < end) & (first[None] + size > start) & (start < end)

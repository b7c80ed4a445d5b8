"""The calls of the kernel of sparse attention for one set of shapes, prepared once: which tiles of which head, with what numbers, where.

Offsets are bytes from the beginning of an array, so that a call adds the addresses of its arrays and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsopt.runtime.sparse_layout import (
    DENSE_TILE,
    FLOAT_PARTS,
    INTEGER_PARTS,
    LENGTH,
    LEVEL_BASES,
    NUMBERS,
    cover_bound,
    padded,
    part_sizes,
    places,
)
from dsopt.sparse_schedule import LEAF, Schedule, levels, picked, schedule

_PARTS_A_THREAD = 4
"""Tiles of causal heads differ in work: a thread that is done early takes another part."""

_LEAST_ROWS = 2048
"""Queries of all heads below which one thread does all: waking another takes 0.2 ms, as long as 1,500 rows (Xeon, AVX-512)."""

_NOWHERE = 1 << 30
"""Keys further than any: kernels count in 32 bits."""

_POOLED = ("weight", "node_key", "node_value", "node_weight", "node_count", "node_log")
_READ = ("weight", "node_key", "node_value", "node_weight", "node_log")
"""Parts of a pyramid that the two functions are given, in their order."""


@dataclass(frozen=True)
class KernelConfig:
    """The attributes of one dsopt::sparse_attention, all of them plain, and what is fixed of its shapes.

    heads, key_heads: H and K.  head, value_head: D and E.  causal: "none", "start" or "end".  scale: None for 1/sqrt(D).
    budget: one number, or one a head, of `unit`.  has_bias: whether `run` is given a bias.
    """

    heads: int
    key_heads: int
    head: int
    value_head: int
    causal: str
    scale: float | None
    budget: tuple[float, ...]
    unit: str
    tile: int
    window: int
    has_bias: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "budget": list(self.budget)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KernelConfig:
        """Return what `as_dict` gave."""
        return cls(**{**values, "budget": tuple(values["budget"])})

    def factor(self) -> float:
        """Return what the products of queries and keys are multiplied by."""
        return self.scale if self.scale is not None else 1 / math.sqrt(self.head)

    def plans(self, queries: int, keys: int) -> list[Schedule]:
        """Return the schedule of each head for T queries and S keys."""
        budgets = self.budget if len(self.budget) > 1 else self.budget * self.heads
        found = {
            each: schedule(keys, picked(each, self.unit, queries, keys, self.head, self.value_head, self.tile))
            for each in set(budgets)
        }
        return [found[each] for each in budgets]


class Layout(NamedTuple):
    """Shape and strides (bytes) of an array; both empty where there is none."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[Any] | None) -> Layout:
        """Return an array's."""
        return cls((), ()) if array is None else cls(array.shape, array.strides)

    def at(self, batch: int, head: int) -> int:
        """Return where a head begins. A batch or a head that there is only once is that of all."""
        if not self.shape:
            return 0
        return min(batch, self.shape[0] - 1) * self.strides[0] + min(head, self.shape[1] - 1) * self.strides[1]


class Shapes(NamedTuple):
    """What the calls depend on. query (B, H, T, D), key (B, K, S, D), value (B, K, S, E), bias (B or 1, H or 1, S), out (B, H, T, E).

    is_traced: whether what each tile chose is written down.
    """

    query: Layout
    key: Layout
    value: Layout
    bias: Layout
    out: Layout
    is_traced: bool


class Pooling(NamedTuple):
    """One call that builds a pyramid. parts: offsets in the memory of pyramids; numbers: the address of the call's."""

    key: int
    value: int
    bias: int
    parts: tuple[int, ...]
    numbers: int


class Attending(NamedTuple):
    """One call for tiles first <= tile < last of a head. trace_row: elements that a tile's record takes, 0 for none."""

    query: int
    key: int
    value: int
    bias: int
    out: int
    parts: tuple[int, ...] | None
    numbers: int
    is_dense: bool
    batch: int
    head: int
    first: int
    last: int
    trace_row: int


Step = Pooling | Attending
Job = Sequence[Step]
"""Steps of one thread, one after the other."""


class Calls:
    """All calls for one set of shapes.

    phases: lists of jobs; those of a phase may run at the same time, and the next phase needs all of the one before.
    threads: how many are worth waking.
    pyramids: float32 elements of all pyramids.  floats, integers: elements of a thread's work memory.
    """

    def __init__(self, config: KernelConfig, shapes: Shapes, threads: int) -> None:
        self._config, self._shapes = config, shapes
        batches, self._heads, self._queries, self._head = shapes.query.shape
        _, self._groups, self._keys, self._value_head = shapes.value.shape
        self._plans = config.plans(self._queries, self._keys)
        self._held: list[NDArray[np.int64]] = []
        self._leaves = self._keys // LEAF
        self._bases = [0]
        for level in range(levels(self._keys)):
            self._bases.append(self._bases[-1] + (self._leaves >> level))
        # Heads that share keys share their pyramid, unless their biases differ.
        own_biases = len(shapes.bias.shape) > 1 and shapes.bias.shape[1] > 1
        self._shared = 1 if own_biases else self._heads // self._groups
        self._places, self._size = self._pyramid_places()
        found: dict[tuple[int, int], int] = {}
        pools: list[Pooling] = []
        for batch in range(batches):
            for head in (head for head, plan in enumerate(self._plans) if not plan.is_dense):
                if (batch, head // self._shared) not in found:
                    found[batch, head // self._shared] = len(pools)
                    pools.append(self._pooling(batch, head, len(pools)))
        self._pyramid_of = found
        self.pyramids = self._size * len(pools)
        self.floats = self.integers = 0
        self.threads = threads if batches * self._heads * self._queries >= _LEAST_ROWS else 1
        self.phases = self._phases(batches, pools, self.threads)

    def _phases(self, batches: int, pools: Sequence[Pooling], threads: int) -> list[list[Job]]:
        alone = batches * sum(plan.is_dense for plan in self._plans)
        if threads == 1 or len(pools) + alone >= _PARTS_A_THREAD * threads:
            # A head is attended to while its keys and its pyramid are still in the cache.
            together: dict[int | tuple[int, int], list[Step]] = {number: [pool] for number, pool in enumerate(pools)}
            for batch in range(batches):
                for head, plan in enumerate(self._plans):
                    owner = (batch, head) if plan.is_dense else self._pyramid_of[batch, head // self._shared]
                    together.setdefault(owner, []).extend(self._attending(batch, head, 1))
            return [list(together.values())]
        parts = -(-_PARTS_A_THREAD * threads // (batches * self._heads))
        split: list[Job] = [
            [step] for batch in range(batches) for head in range(self._heads) for step in self._attending(batch, head, parts)
        ]  # fmt: skip
        return [[[pool] for pool in pools], split]

    def _pyramid_places(self) -> tuple[dict[str, int], int]:
        nodes, weighted = self._bases[-1], bool(self._shapes.bias.shape)
        sizes = {
            "weight": self._keys if weighted else 0,
            "node_key": nodes * self._head,
            "node_value": nodes * self._value_head,
            **dict.fromkeys(("node_weight", "node_count", "node_log"), nodes if weighted else 0),
        }
        sizes = {name: padded(size, 16) for name, size in sizes.items()}
        return places(sizes, tuple(sizes))

    def _parts(self, number: int, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(4 * (number * self._size + self._places[name]) for name in names)

    def _pooling(self, batch: int, head: int, number: int) -> Pooling:
        group = head // (self._heads // self._groups)
        numbers = self._numbers(self._plans[head], 0, 0, 0, dict.fromkeys((*FLOAT_PARTS, *INTEGER_PARTS), 0))
        shapes = self._shapes
        return Pooling(
            shapes.key.at(batch, group), shapes.value.at(batch, group), shapes.bias.at(batch, head // self._shared),
            self._parts(number, _POOLED), numbers,
        )  # fmt: skip

    def _attending(self, batch: int, head: int, parts: int) -> list[Attending]:
        plan, shapes = self._plans[head], self._shapes
        tile = DENSE_TILE if plan.is_dense else self._config.tile
        sizes = part_sizes(plan, self._keys, tile, self._head, self._value_head)
        float_places, floats = places(sizes, FLOAT_PARTS)
        integer_places, integers = places(sizes, INTEGER_PARTS)
        self.floats, self.integers = max(self.floats, floats), max(self.integers, integers)
        row = 0
        if shapes.is_traced and not plan.is_dense:
            row = 2 * (1 + plan.picks + cover_bound(plan, self._leaves))
        group = head // (self._heads // self._groups)
        pyramid = None if plan.is_dense else self._parts(self._pyramid_of[batch, head // self._shared], _READ)
        tiles = -(-self._queries // tile)
        step = -(-tiles // min(parts, tiles))
        found = []
        for first in range(0, tiles, step):
            last = min(first + step, tiles)
            numbers = self._numbers(plan, first, last, row, {**float_places, **integer_places})
            found.append(Attending(
                shapes.query.at(batch, head), shapes.key.at(batch, group), shapes.value.at(batch, group),
                shapes.bias.at(batch, head), shapes.out.at(batch, head), pyramid, numbers, plan.is_dense, batch, head,
                first, last, row,
            ))  # fmt: skip
        return found

    def _numbers(self, plan: Schedule, first: int, last: int, trace_row: int, parts: Mapping[str, int]) -> int:
        """Return the address of the numbers of a call."""
        config, tile = self._config, DENSE_TILE if plan.is_dense else self._config.tile
        # without a window the range of near keys ends before it begins, so that no node has one
        before, behind = (config.window, tile + config.window) if config.window else (-_NOWHERE, 0)
        offset = self._keys - self._queries if config.causal == "end" else 0
        rows = [
            each.strides[2] // 4
            for each in (self._shapes.query, self._shapes.key, self._shapes.value, self._shapes.out)
        ]
        numbers = np.zeros(LENGTH, np.int64)
        numbers[: len(NUMBERS)] = [
            self._queries, self._keys, *rows, tile, first, last, config.causal != "none", offset, before, behind,
            plan.picks, plan.beam, plan.first, plan.top, plan.fine, self._leaves, len(self._bases) - 1, trace_row,
            *(parts[name] for name in (*FLOAT_PARTS, *INTEGER_PARTS)),
        ]  # fmt: skip
        numbers[LEVEL_BASES : LEVEL_BASES + len(self._bases)] = self._bases
        self._held.append(numbers)
        return int(numbers.ctypes.data)

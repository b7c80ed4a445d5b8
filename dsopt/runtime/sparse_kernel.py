"""Runs the compiled kernel of dsopt::sparse_attention on NumPy arrays: no TVM, no torch; threads are split here, outside the kernel."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsopt.errors import InputError
from dsopt.runtime.sparse_cpu import choose_level, load_library
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

Array = NDArray[Any]

_TASKS_A_THREAD = 4
"""Tiles of causal heads differ in work: a thread that is done early takes another part."""

_ALIGNMENT = 64


_NOWHERE = 1 << 30
"""Keys further than any: kernels count in 32 bits."""


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


@dataclass(frozen=True)
class Chosen:
    """What one tile attended to. picks: keys, ascending.  nodes: (level, number) of the cover, in the order of their keys."""

    picks: list[int]
    nodes: list[tuple[int, int]]


@dataclass
class _Memory:
    """Arrays that are used again: pyramids of a call, and the work memory of each thread."""

    size: int
    held: Array

    @classmethod
    def of(cls, size: int, dtype: type[np.generic]) -> _Memory:
        item = np.dtype(dtype).itemsize
        raw = np.empty(size + _ALIGNMENT // item, dtype)
        skip = -raw.ctypes.data % _ALIGNMENT // item
        return cls(size, raw[skip : skip + size])


class _Pool:
    """Memory between calls; calls at the same time each have their own."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._dtype, self._free, self._lock = dtype, list[_Memory](), Lock()

    def take(self, size: int) -> _Memory:
        with self._lock:
            for place, each in enumerate(self._free):
                if each.size >= size:
                    return self._free.pop(place)
            self._free.clear()  # too small for what is asked now: not kept beside it
        return _Memory.of(size, self._dtype)

    def give(self, memory: _Memory) -> None:
        with self._lock:
            self._free.append(memory)


class SparseKernel:
    """A compiled sparse attention. May be called from several threads at the same time.

    libraries: shared objects by level of the CPU, as `dsopt.backends.cpu.sparse.build` makes them; the best that fits is loaded.
    Raises ToolchainError if none fits the CPU, ArtifactError if it cannot be loaded.
    """

    def __init__(self, config: KernelConfig, libraries: Mapping[str, bytes | Path], threads: int = 1) -> None:
        self.config, self.level = config, choose_level(libraries)
        library = load_library(libraries[self.level])
        pointer = ctypes.c_void_p
        self._tiles, self._dense, self._build = library.dsopt_tiles, library.dsopt_dense, library.dsopt_pool
        for function in (self._tiles, self._dense):
            function.argtypes, function.restype = [pointer] * 15, None
        self._build.argtypes, self._build.restype = [pointer] * 10, None
        self._threads = max(threads, 1)
        self._executor = ThreadPoolExecutor(self._threads, "dsopt-attention") if self._threads > 1 else None
        self._pyramids, self._floats, self._integers = _Pool(np.float32), _Pool(np.float32), _Pool(np.int32)
        scale = config.scale if config.scale is not None else 1 / math.sqrt(config.head)
        self._settings = np.array([scale, 0.0], np.float32)

    def run(
        self, query: Array, key: Array, value: Array, bias: Array | None = None, out: Array | None = None,
        chosen: dict[tuple[int, int, int], Chosen] | None = None,
    ) -> Array:  # fmt: skip
        """Return attention (B, H, T, E), written into `out` if that is given.

        query: (B, H, T, D); key: (B, K, S, D); value: (B, K, S, E), float32 with any strides; copied unless the last axis is
        contiguous.  bias: broadcastable to (B, H, S), bool (True: attend) or added to the scores.  chosen: filled with what each
        (batch, head, tile) of the heads that search attended to. Raises InputError.
        """
        self._check(query, key, value, bias, out)
        batch, heads, queries = query.shape[:3]
        if out is None:
            out = np.empty((batch, heads, queries, self.config.value_head), np.float32)
        if 0 in (batch, heads, queries) or key.shape[2] == 0:
            out[...] = 0.0
            return out
        rows = [_rows(each) for each in (query, key, value)]
        is_direct = out.shape[3] % 8 == 0 and _is_rows(out)
        target = out if is_direct else np.empty((*out.shape[:3], padded(out.shape[3])), np.float32)
        added = _additive(bias, key.shape[2]) if self.config.has_bias else None
        _Call(self, (rows[0], rows[1], rows[2]), added, target, chosen).run()
        if not is_direct:
            out[...] = target[..., : out.shape[3]]
        return out

    def _check(self, query: Array, key: Array, value: Array, bias: Array | None, out: Array | None) -> None:
        config = self.config
        batch, queries, keys = (
            query.shape[0],
            query.shape[2] if query.ndim == 4 else 0,
            key.shape[2] if key.ndim == 4 else 0,
        )
        wanted = {
            "query": (query, (batch, config.heads, queries, config.head)),
            "key": (key, (batch, config.key_heads, keys, config.head)),
            "value": (value, (batch, config.key_heads, keys, config.value_head)),
            "out": (out, (batch, config.heads, queries, config.value_head)),
        }
        for name, (array, shape) in wanted.items():
            if array is not None and (array.shape != shape or array.dtype != np.float32):
                raise InputError(
                    "DS0393",
                    f"{name} of sparse attention is {array.dtype} {array.shape}",
                    why=f"it must be float32 {shape}",
                )
        if (bias is not None) != self.config.has_bias:
            raise InputError(
                "DS0393", "a bias must be given to sparse attention if and only if it was compiled with one"
            )
        if bias is not None and (
            bias.ndim != 3 or bias.shape[2] != keys or not _fits(bias.shape[:2], (batch, config.heads))
        ):
            raise InputError(
                "DS0393",
                f"the bias of sparse attention is {bias.shape}",
                why=f"it must fit {(batch, config.heads, keys)}",
            )

    def plans(self, queries: int, keys: int) -> list[Schedule]:
        """Return the schedule of each head for T queries and S keys."""
        config = self.config
        budgets = config.budget if len(config.budget) > 1 else config.budget * config.heads
        found = {
            each: schedule(keys, picked(each, config.unit, queries, keys, config.head, config.value_head, config.tile))
            for each in set(budgets)
        }
        return [found[each] for each in budgets]

    def map(self, function: Callable[[int], None], count: int) -> None:
        """Call a function for 0 <= n < count, in all threads."""
        if self._executor is None or count < 2:
            for number in range(count):
                function(number)
        else:
            list(self._executor.map(function, range(count)))


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return all(size in (1, most) for size, most in zip(shape, whole, strict=True))


def _is_rows(array: Array) -> bool:
    """Return whether rows are contiguous, and all strides whole elements."""
    contiguous = array.strides[-1] == array.itemsize or array.shape[-1] == 1
    return contiguous and all(stride % array.itemsize == 0 for stride in array.strides)


def _rows(array: Array) -> Array:
    """Return an array of rows of a multiple of 8 elements: the same one if it can be read as it is."""
    extra = -array.shape[3] % 8
    if extra:
        return np.pad(array, ((0, 0), (0, 0), (0, 0), (0, extra)))
    return array if _is_rows(array) else np.ascontiguousarray(array)


def _additive(bias: Array | None, keys: int) -> Array:
    """Return a contiguous float32 bias (B or 1, H or 1, S), its highest number in each head 0."""
    if bias is None:
        return np.zeros((1, 1, keys), np.float32)
    one = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in bias.strides[:2])
    part = bias[one]
    if part.dtype == np.bool_:
        found: Array = np.where(part, np.float32(0), np.float32(-np.inf))
        return found
    added = np.ascontiguousarray(part, np.float32)
    highest = added.max(2, keepdims=True)
    found = added - np.where(np.isneginf(highest), np.float32(0), highest)
    return found


class _Call:
    """One run: its pyramids, its parts of work, and the numbers that the kernel is told."""

    def __init__(
        self, kernel: SparseKernel, rows: tuple[Array, Array, Array], bias: Array | None, out: Array,
        chosen: dict[tuple[int, int, int], Chosen] | None,
    ) -> None:  # fmt: skip
        self.kernel, self.config = kernel, kernel.config
        self.query, self.key, self.value = rows
        self.bias, self.out, self.chosen = bias, out, chosen
        self.batch, self.heads, self.queries = self.query.shape[:3]
        self.groups, self.keys = self.key.shape[1:3]
        self.head, self.value_head = self.query.shape[3], self.value.shape[3]
        self.plans = kernel.plans(self.queries, self.keys)
        self.leaves, self.levels = self.keys // LEAF, levels(self.keys)
        self.bases = [0]
        for level in range(self.levels):
            self.bases.append(self.bases[-1] + (self.leaves >> level))
        # Heads that share keys share their pyramid, unless their biases differ.
        self.shared = 1 if bias is not None and bias.shape[1] > 1 else self.heads // self.groups
        nodes, weighted = self.bases[-1], bias is not None
        self.pyramid = {
            "weight": self.keys if weighted else 0,
            "node_key": nodes * self.head,
            "node_value": nodes * self.value_head,
            **dict.fromkeys(("node_weight", "node_count", "node_log"), nodes if weighted else 0),
        }
        self.pyramid = {name: padded(size, 16) for name, size in self.pyramid.items()}
        self.pyramid_places, self.pyramid_size = places(self.pyramid, tuple(self.pyramid))

    def run(self) -> None:
        kernel = self.kernel
        searching = sorted({self._pyramid(b, h) for b in range(self.batch) for h in self._searching()})
        self.order = {number: place for place, number in enumerate(searching)}
        self.memory = kernel._pyramids.take(self.pyramid_size * len(searching))
        try:
            kernel.map(lambda number: self._pool(searching[number]), len(searching))
            tasks = self._tasks()
            kernel.map(lambda number: self._attend(*tasks[number]), len(tasks))
        finally:
            kernel._pyramids.give(self.memory)

    def _searching(self) -> list[int]:
        return [head for head, plan in enumerate(self.plans) if not plan.is_dense]

    def _pyramid(self, batch: int, head: int) -> int:
        return int(batch * (self.heads // self.shared) + head // self.shared)

    def _tile(self, plan: Schedule) -> int:
        return DENSE_TILE if plan.is_dense else self.config.tile

    def _tasks(self) -> list[tuple[int, int, int, int]]:
        """Return (batch, head, first tile, tile behind the last), the parts of a head one behind the other."""
        threads = self.kernel._threads
        parts = 1 if threads == 1 else -(-_TASKS_A_THREAD * threads // (self.batch * self.heads))
        found = []
        for batch in range(self.batch):
            for head, plan in enumerate(self.plans):
                tiles = -(-self.queries // self._tile(plan))
                step = -(-tiles // min(parts, tiles))
                found += [(batch, head, first, min(first + step, tiles)) for first in range(0, tiles, step)]
        return found

    def _at(self, array: Array, batch: int, head: int) -> int:
        batch, head = (min(index, size - 1) for index, size in zip((batch, head), array.shape[:2], strict=True))
        return int(array.ctypes.data + batch * array.strides[0] + head * array.strides[1])

    def _in_pyramid(self, number: int, part: str) -> int:
        if number not in self.order:
            return 0
        start = self.order[number] * self.pyramid_size + self.pyramid_places[part]
        return int(self.memory.held.ctypes.data) + 4 * start

    def _bias(self, batch: int, head: int) -> int:
        return 0 if self.bias is None else self._at(self.bias, batch, head)

    def _numbers(self, plan: Schedule, first: int, last: int, trace_row: int, parts: Mapping[str, int]) -> Array:
        config, tile = self.config, self._tile(plan)
        # without a window the range of near keys ends before it begins, so that no node has one
        before, behind = (config.window, tile + config.window) if config.window else (-_NOWHERE, 0)
        offset = self.keys - self.queries if config.causal == "end" else 0
        rows = [each.strides[2] // 4 for each in (self.query, self.key, self.value, self.out)]
        numbers = np.zeros(LENGTH, np.int64)
        numbers[: len(NUMBERS)] = [
            self.queries, self.keys, *rows, tile, first, last, config.causal != "none", offset, before, behind,
            plan.picks, plan.beam, plan.first, plan.top, plan.fine, self.leaves, self.levels, trace_row,
            *(parts[name] for name in (*FLOAT_PARTS, *INTEGER_PARTS)),
        ]  # fmt: skip
        numbers[LEVEL_BASES : LEVEL_BASES + len(self.bases)] = self.bases
        return numbers

    def _pool(self, number: int) -> None:
        batch, head = divmod(number, self.heads // self.shared)
        group = head * self.shared // (self.heads // self.groups)
        parts = dict.fromkeys((*FLOAT_PARTS, *INTEGER_PARTS), 0)
        numbers = self._numbers(self.plans[0], 0, 0, 0, parts)
        self.kernel._build(
            self._at(self.key, batch, group), self._at(self.value, batch, group), self._bias(batch, head),
            *(self._in_pyramid(number, part) for part in ("weight", "node_key", "node_value", "node_weight", "node_count", "node_log")),
            numbers.ctypes.data,
        )  # fmt: skip

    def _attend(self, batch: int, head: int, first: int, last: int) -> None:
        plan, kernel = self.plans[head], self.kernel
        sizes = part_sizes(plan, self.keys, self._tile(plan), self.head, self.value_head)
        (float_places, floats), (integer_places, integers) = (
            places(sizes, each) for each in (FLOAT_PARTS, INTEGER_PARTS)
        )
        row = 0
        if self.chosen is not None and not plan.is_dense:
            row = 2 * (1 + plan.picks + cover_bound(plan, self.leaves))
        trace = np.zeros((last if row else 0, row), np.int32)
        numbers = self._numbers(plan, first, last, row, {**float_places, **integer_places})
        group, pyramid = head // (self.heads // self.groups), self._pyramid(batch, head)
        work, lists = kernel._floats.take(floats), kernel._integers.take(integers)
        try:
            (kernel._dense if plan.is_dense else kernel._tiles)(
                self._at(self.query, batch, head), self._at(self.key, batch, group), self._at(self.value, batch, group),
                self._bias(batch, head),
                *(self._in_pyramid(pyramid, part) for part in ("weight", "node_key", "node_value", "node_weight", "node_log")),
                self._at(self.out, batch, head), work.held.ctypes.data, kernel._settings.ctypes.data, lists.held.ctypes.data,
                trace.ctypes.data, numbers.ctypes.data,
            )  # fmt: skip
        finally:
            kernel._floats.give(work)
            kernel._integers.give(lists)
        if row and self.chosen is not None:
            for tile in range(first, last):
                self.chosen[batch, head, tile] = _read(trace[tile])


def _read(record: Array) -> Chosen:
    """Read a tile's record: two counts, a pair for each key (the second unused), and (level, number) of each node."""
    pairs = record.reshape(-1, 2).tolist()
    picks, nodes = pairs[0]
    return Chosen(
        [pair[0] for pair in pairs[1 : 1 + picks]], [tuple(pair) for pair in pairs[1 + picks : 1 + picks + nodes]]
    )

"""Runs the compiled kernel of dsopt::sparse_attention on NumPy arrays: no TVM, no torch; threads are split here, outside the kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsopt.errors import InputError
from dsopt.runtime.sparse_call import Calls, Job, KernelConfig, Layout, Pooling, Shapes
from dsopt.runtime.sparse_cpu import choose_level, load_library
from dsopt.runtime.sparse_layout import padded

Array = NDArray[Any]
Arrays: TypeAlias = Sequence[Array | None]
"""query, key, value, bias, out"""

_ALIGNMENT = 64

_SHAPES = 16
"""The calls for so many shapes are kept at hand."""

_no_record = np.zeros(1, np.int32)


@dataclass(frozen=True)
class Chosen:
    """What one tile attended to. picks: keys, ascending.  nodes: (level, number) of the cover, in the order of their keys."""

    picks: list[int]
    nodes: list[tuple[int, int]]


Picked: TypeAlias = dict[tuple[int, int, int], Chosen]
"""By batch, head and tile."""


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
        self._executor = ThreadPoolExecutor(self._threads - 1, "dsopt-attention") if self._threads > 1 else None
        self._pyramids, self._floats, self._integers = _Pool(np.float32), _Pool(np.float32), _Pool(np.int32)
        self._settings = np.array([config.factor(), 0.0], np.float32)
        self._calls = lru_cache(_SHAPES)(partial(Calls, config, threads=self._threads))

    def run(
        self, query: Array, key: Array, value: Array, bias: Array | None = None, out: Array | None = None,
        chosen: Picked | None = None,
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
        arrays = (*rows, added, target)
        q, k, v, b, o = map(Layout.of, arrays)
        calls = self._calls(Shapes(q, k, v, b, o, is_traced=chosen is not None))
        self._run(calls, arrays, chosen)
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

    def _run(self, calls: Calls, arrays: Arrays, chosen: Picked | None) -> None:
        bases = [0 if each is None else int(each.ctypes.data) for each in arrays]
        pyramids = self._pyramids.take(calls.pyramids)
        try:
            for jobs in calls.phases:
                left = iter(jobs)  # each thread takes the next one
                work = partial(self._work, calls, left, bases, int(pyramids.held.ctypes.data), chosen)
                others = (
                    [] if self._executor is None else [self._executor.submit(work) for _ in jobs[1 : calls.threads]]
                )
                try:
                    work()
                finally:
                    # What other calls have kept from beginning has nothing left to do.
                    begun = [each for each in others if not each.cancel()]
                    wait(begun)
                for each in begun:
                    each.result()
        finally:
            self._pyramids.give(pyramids)

    def _work(
        self, calls: Calls, left: Iterator[Job], bases: Sequence[int], pyramids: int, chosen: Picked | None
    ) -> None:  # fmt: skip
        """Do one job after the other, until none is left."""
        query, key, value, bias, out = bases
        floats, integers = self._floats.take(calls.floats), self._integers.take(calls.integers)
        work, lists, settings = (int(each.ctypes.data) for each in (floats.held, integers.held, self._settings))
        try:
            for job in left:
                for step in job:
                    if isinstance(step, Pooling):
                        parts = [pyramids + each for each in step.parts]
                        self._build(key + step.key, value + step.value, bias + step.bias, *parts, step.numbers)
                        continue
                    parts = [0] * 5 if step.parts is None else [pyramids + each for each in step.parts]
                    trace = _no_record if not step.trace_row else np.zeros((step.last, step.trace_row), np.int32)
                    (self._dense if step.is_dense else self._tiles)(
                        query + step.query, key + step.key, value + step.value, bias + step.bias, *parts, out + step.out,
                        work, settings, lists, int(trace.ctypes.data), step.numbers,
                    )  # fmt: skip
                    if chosen is not None and step.trace_row:
                        for tile in range(step.first, step.last):
                            chosen[step.batch, step.head, tile] = _read(trace[tile])
        finally:
            self._floats.give(floats)
            self._integers.give(integers)


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


def _read(record: Array) -> Chosen:
    """Read a tile's record: two counts, a pair for each key (the second unused), and (level, number) of each node."""
    pairs = record.reshape(-1, 2).tolist()
    picks, nodes = pairs[0]
    return Chosen(
        [pair[0] for pair in pairs[1 : 1 + picks]], [tuple(pair) for pair in pairs[1 + picks : 1 + picks + nodes]]
    )

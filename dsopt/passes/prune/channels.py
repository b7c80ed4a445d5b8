"""What axis inference has found, with all equalities resolved: channels, the indices that go with each, and the groups they form.

A channel is a slot that is neither pinned nor a conjunction. An index of a dimension goes when any of its channels goes: most have one,
those that are always kept none, and an index of (heads, head size) has two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from dsopt.ir.torch_private import hint_of
from dsopt.passes.prune.axes import Expr
from dsopt.passes.prune.inference import AxisInference, describe
from dsopt.passes.prune.slots import Ids

Keep = NDArray[np.bool_]
"""Whether each channel is kept."""


@dataclass(frozen=True)
class Extent:
    """The number of indices of a dimension: fixed * the number of kept indices in each row."""

    fixed: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """A row of a dimension of a weight in which channels are. inner: the indices of the dimension to each of the row."""

    weight: str
    dim: int
    row: int
    outer: int
    inner: int


@dataclass(frozen=True)
class Group:
    """Channels that are used in the same rows of the same weights, so that they are interchangeable but for their values.

    channels: by number.  uses: where.
    """

    channels: Ids
    uses: tuple[Use, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the names of the weights, each once, in the order of the program."""
        return tuple(dict.fromkeys(use.weight for use in self.uses))


class Channels:
    """The channels of a program.

    cells: (cells, most channels of one cell) channel numbers, filled up with `count`; a cell is a set of channels that indices share.
    rows: for each different row of indices, the cell of each index.
    """

    def __init__(self, inference: AxisInference, *, with_pinned: bool = False) -> None:
        self.inference = inference
        self.with_pinned = with_pinned
        self._slots = inference.algebra.slots
        self._cell_of_root: dict[int, int] = {}
        self._cell_sets: dict[tuple[int, ...], int] = {(): 0}
        self._channel_of_root: dict[int, int] = {}
        self.roots: list[int] = []
        self.rows: list[Ids] = []
        self._row_numbers: dict[bytes, int] = {}
        self.uses: list[Use] = []
        self._read_weights()
        self._read_values()
        self.count = len(self.roots)
        width = max(1, *(len(cell) for cell in self._cell_sets))
        padded = [[*cell, *[self.count] * (width - len(cell))] for cell in self._cell_sets]
        self.cells = np.array(padded, np.int32).reshape(len(padded), width)
        self.groups = self._groups()

    def extent(self, expr: Expr) -> Extent:
        """Return how the number of indices of a dimension depends on its channels; a varying size counts as in the example."""
        fixed_sizes = prod(hint_of(factor.size) for factor in expr if factor.slots is None)
        rows = tuple(self._row(factor.slots) for factor in expr if factor.slots is not None)
        return Extent(fixed_sizes, rows)

    def kept_cells(self, keep: Keep) -> Keep:
        """Tell of each cell whether all its channels are kept."""
        kept: Keep = np.asarray(np.append(keep, True)[self.cells].all(axis=1))
        return kept

    def kept_counts(self, keep: Keep) -> NDArray[np.int64]:
        """Return how many indices of each row are kept."""
        cells = self.kept_cells(keep)
        return np.array([np.count_nonzero(cells[row]) for row in self.rows], np.int64)

    def mask(self, expr: Expr, keep: Keep) -> Keep:
        """Tell of each index of a dimension of known size whether it is kept."""
        cells, result = self.kept_cells(keep), np.ones(1, np.bool_)
        for factor in expr:
            assert isinstance(factor.size, int)
            own = np.ones(factor.size, np.bool_) if factor.slots is None else cells[self.rows[self._row(factor.slots)]]
            result = (result[:, None] & own[None]).reshape(-1)
        return result

    def in_row(self, row: int) -> Ids:
        """Return the channels of a row, sorted."""
        found = np.unique(self.cells[self.rows[row]])
        return found[found < self.count]

    def _row(self, slots: Ids) -> int:
        """Return the number of a row of indices, numbering its cells and channels on the way."""
        roots = self._slots.find(slots)
        known, places = np.unique(roots, return_inverse=True)
        row = np.array([self._cell(root) for root in known.tolist()], np.int32)[places.reshape(-1)]
        key = row.tobytes()
        if key not in self._row_numbers:
            self._row_numbers[key] = len(self.rows)
            self.rows.append(row)
        return self._row_numbers[key]

    def _cell(self, root: int) -> int:
        found = self._cell_of_root.get(root)
        if found is None:
            leaves = [leaf for leaf in self._slots.leaves(root) if self._is_channel(leaf)]
            key = tuple(sorted({self._channel(leaf) for leaf in leaves}))
            found = self._cell_of_root[root] = self._cell_sets.setdefault(key, len(self._cell_sets))
        return found

    def _is_channel(self, leaf: int) -> bool:
        pin = self._slots.pins.get(leaf)
        return pin is None or (self.with_pinned and not pin.inner)

    def _channel(self, root: int) -> int:
        if root not in self._channel_of_root:
            self._channel_of_root[root] = len(self.roots)
            self.roots.append(root)
        return self._channel_of_root[root]

    def _read_weights(self) -> None:
        program = self.inference.program
        for node, spec in zip(program.placeholders, program.signature.weights, strict=False):
            for dim, expr in enumerate(self.inference.axes(node)):
                sizes = [hint_of(factor.size) for factor in expr]
                for place, factor in enumerate(expr):
                    if factor.slots is None:
                        continue
                    row = self._row(factor.slots)
                    outer, inner = prod(sizes[:place]), prod(sizes[place + 1 :])
                    self.uses.append(Use(spec.name, dim, row, outer, inner))

    def _read_values(self) -> None:
        """Number the rows of all other tensors, too: none of them may become empty."""
        for node in self.inference.program.graph.nodes:
            for axes in self.inference.parts(node):
                for expr in axes:
                    self.extent(expr)
        for expr in self.inference.memory.values():
            self.extent(expr)

    def _groups(self) -> tuple[Group, ...]:
        """Put channels with the same uses together: their uses are hashed to 64 bits."""
        hashes = np.zeros(self.count, np.uint64)
        members = [self.in_row(use.row) for use in self.uses]
        for number, channels in enumerate(members):
            mixed = np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
            hashes[channels] = hashes[channels] * np.uint64(0xD1342543DE82EF95) + mixed
        used = np.flatnonzero(hashes)
        _, first, group_of_used = np.unique(hashes[used], return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))
        group_of = np.full(self.count, -1, np.int64)
        group_of[used] = order[group_of_used]
        uses: list[list[Use]] = [[] for _ in first]
        for use, channels in zip(self.uses, members, strict=True):
            for group in np.unique(group_of[channels]).tolist():
                uses[group].append(use)
        sorted_channels = np.argsort(group_of, kind="stable").astype(np.int32)
        bounds = np.searchsorted(group_of[sorted_channels], np.arange(len(first) + 1))
        return tuple(
            Group(sorted_channels[low:high], tuple(own))
            for low, high, own in zip(bounds[:-1].tolist(), bounds[1:].tolist(), uses, strict=True)
        )

    def is_cut(self, exprs: Iterable[Expr], keep: Keep) -> bool:
        """Tell whether one of these dimensions loses an index."""
        cells = self.kept_cells(keep)
        return any(not cells[self.rows[row]].all() for expr in exprs for row in self.extent(expr).rows)

    def pin_texts(self, channels: Ids) -> list[str]:
        """Return the reasons why channels are kept, with operator, layer and source line; [] for free ones."""
        pins = [self._slots.pins.get(self.roots[channel]) for channel in channels.tolist()]
        return sorted({describe(self.inference.program, pin) for pin in pins if pin is not None})

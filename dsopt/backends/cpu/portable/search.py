"""Which keys a tile looks at one by one, and which nodes stand for all others: `dsopt.ops.sparse_attention.search` in ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.functions import FunctionBuilder
from dsopt.backends.cpu.portable.plan import Numbers, Places
from dsopt.backends.cpu.portable.pyramid import Keys, Level, Slots
from dsopt.sparse_schedule import LEAF, OPENED, Schedule


@dataclass(frozen=True)
class Chosen:
    """Indices (G, t, count) int64 and which of them are any (bool), None if all are. is_row: index is 0, 1, ... as (1, 1, count)."""

    index: Value
    is_valid: Value | None
    count: int
    is_row: bool = False


@dataclass(frozen=True)
class Cover:
    """Nodes of one level in the cover; several of these together have every key of the prefix once."""

    level: int
    nodes: Chosen


class Search:
    """Writes the searches of G heads. probe: (G, t, D), means of scaled queries.

    is_certain: no candidate is ever outside of the prefix or masked, so that whatever is found is something.
    """

    def __init__(
        self, f: FunctionBuilder, probe: Value, width: int, places: Places, keys: Keys, levels: Sequence[Level],
        slots: Slots,
    ) -> None:  # fmt: skip
        self.f, self.probe, self.width, self.places = f, probe, width, places
        self.keys, self.levels, self.slots = keys, levels, slots
        self.is_certain = places.is_whole and keys.bias is None
        self._lowest = f.number(-math.inf, probe)
        self._highest = f.number(math.inf, probe)

    # ---- keys ----

    def find_keys(self, plan: Schedule) -> Chosen | None:
        """Search from level to level for the `plan.picks` keys with the highest scores; None for no keys."""
        if plan.picks == 0:
            return None
        start = self._start(plan)
        found = self._complete(start)
        for level in range(start, -1, -1):
            if level < start:
                found = self._children(found, level)
            scores = self._node_scores(level, found)
            near = self._near(found, LEAF << level)
            scores = self._kept(scores, near, near and self.f.test("Greater", scores, self._lowest))
            found = self._best(found, scores, plan.beam)
        return self._best(*self._key_scores(found), plan.picks)

    def _start(self, plan: Schedule) -> int:
        """Return the first level of which a search keeps not all nodes: above it nothing is decided."""
        level = plan.first
        while level > 0 and self.levels[0].nodes >> level <= plan.beam:
            level -= 1
        return level

    def _key_scores(self, leaves: Chosen) -> tuple[Chosen, Value]:
        """Return the keys of some leaves and their scores."""
        f, tiles, count = self.f, self.places.count, leaves.count * LEAF
        nodes = self.levels[0].nodes
        if leaves.is_row:
            index = f.whole([[range(count)]])
            own = self.slots.whole(f, self._leaf_keys(), count, self.width)
            scores = f.matmul(self.probe, f.transpose(own, 0, 2, 1))
        else:
            index = f.add(f.times(f.unsqueeze(leaves.index, 3), f.whole(LEAF)), f.whole(range(LEAF)))
            index = f.reshape(index, 0, tiles, count)
            own = self.slots.rows(f, self._leaf_keys(), LEAF * self.width, nodes, leaves.index)
            scores = f.matmul(f.reshape(own, 0, tiles, count, self.width), f.unsqueeze(self.probe, 3))
            scores = f.reshape(scores, 0, tiles, count)
        keys = Chosen(index, leaves.is_valid, count, leaves.is_row)
        offset = self._key_offsets(leaves)
        if offset is not None:
            scores = f.add(scores, offset)
        return keys, self._kept(scores, self._near(keys, 1), offset and f.test("Greater", offset, self._lowest))

    def _leaf_keys(self) -> Value:
        count = self.levels[0].nodes * LEAF
        return self.keys.key if count == self.places.keys else self.f.slice(self.keys.key, 1, 0, count)

    def _key_offsets(self, leaves: Chosen) -> Value | None:
        """Return what is added to the scores of keys, -inf for those of leaves that are none; None for nothing."""
        f, bias, count = self.f, self.keys.bias, leaves.count * LEAF
        offset: Value | None = None
        if bias is not None:
            nodes = self.levels[0].nodes
            if nodes * LEAF < self.places.keys:
                bias = f.slice(bias, 1, 0, nodes * LEAF)
            offset = self.slots.rows(f, bias, LEAF, nodes, leaves.index)
        if leaves.is_valid is not None:
            zero = f.constant(np.zeros(LEAF), self.probe.dtype) if offset is None else offset
            offset = f.where(f.unsqueeze(leaves.is_valid, 3), zero, self._lowest)
        tiles = 1 if leaves.is_row and leaves.is_valid is None else self.places.count
        return offset and f.reshape(offset, 0, tiles, count)

    def _kept(self, scores: Value, near: Value | None, is_valid: Value | None) -> Value:
        """Give what must be found the highest score, if it is there at all."""
        f = self.f
        if near is None:
            return scores
        return f.where(near if is_valid is None else f.test("And", near, is_valid), self._highest, scores)

    def _near(self, found: Chosen, size: int) -> Value | None:
        """Tell which nodes of `size` keys must be kept, None if no tile has any."""
        f, near = self.f, self.places.near
        every = self.places.is_near(np.arange(0, self.places.keys, size), size)
        if not every.any():
            return None
        if found.is_row:
            return f.constant(every[None, :, : found.count], torch.bool)
        # index * size < behind and (index + 1) * size > first, with one rounded division each
        first, behind = near[:, :1] // size, -(-near[:, 1:] // size)
        return f.test(
            "And",
            f.test("GreaterOrEqual", found.index, f.whole(first[None])),
            f.test("Less", found.index, f.whole(behind[None])),
        )

    # ---- nodes ----

    def find_cover(self, plan: Schedule) -> list[Cover]:
        """Open the best nodes of each level; the others, and all of the finest, are the cover."""
        found: Chosen | None = self._complete(plan.top)
        parts: list[Cover] = []
        for level in range(plan.top, -1, -1):
            if level < plan.top:
                found = self._children(found, level) if found and level >= plan.fine else self._orphan(level)
            if found is None:
                continue
            if level > plan.fine:
                found, rest = self._opened(found, level)
                parts.append(Cover(level, rest))
            else:
                parts.append(Cover(level, found))
        return parts

    def _opened(self, found: Chosen, level: int) -> tuple[Chosen, Chosen]:
        """Return the best nodes, in order, and the rest, of which there is some: two nodes for each that was opened."""
        f = self.f
        scores = self._node_scores(level, found)
        _, order = f.top(scores, found.count)
        opened = f.top(f.slice(order, 2, 0, OPENED), OPENED, largest=False)[0]
        rest = f.slice(order, 2, OPENED, found.count)
        return self._chosen(found, scores, opened, OPENED), self._chosen(found, scores, rest, found.count - OPENED)

    def _best(self, found: Chosen, scores: Value, count: int) -> Chosen:
        """Return the candidates with the highest scores, of equal ones the first, in order."""
        f = self.f
        if count >= found.count:
            is_valid = None if self.is_certain else f.test("Greater", scores, self._lowest)
            return Chosen(found.index, is_valid, found.count, found.is_row)
        _, best = f.top(scores, count)
        return self._chosen(found, scores, f.top(best, count, largest=False)[0], count)

    def _chosen(self, found: Chosen, scores: Value, place: Value, count: int) -> Chosen:
        f = self.f
        index = place if found.is_row else f.pick(found.index, place, 2)
        is_valid = None if self.is_certain else f.test("Greater", f.pick(scores, place, 2), self._lowest)
        return Chosen(index, is_valid, count)

    def _node_scores(self, level: int, found: Chosen) -> Value:
        """Return the score of each node's mean key, with the logarithm of its mean weight; (G, t, c), -inf for none."""
        f, of, tiles = self.f, self.levels[level], self.places.count
        log_weight: Value | None = None
        if found.is_row:
            mean = self.slots.whole(f, of.mean, of.nodes, self.width)
            scores = f.matmul(self.probe, f.transpose(mean, 0, 2, 1))
            if of.log_weight is not None:
                log_weight = f.unsqueeze(self.slots.whole(f, of.log_weight, of.nodes), 1)
        else:
            mean = self.slots.rows(f, of.mean, self.width, of.nodes, found.index)
            scores = f.reshape(f.matmul(mean, f.unsqueeze(self.probe, 3)), 0, tiles, found.count)
            if of.log_weight is not None:
                log_weight = self.slots.rows(f, of.log_weight, 0, of.nodes, found.index)
        if log_weight is not None:
            scores = f.add(scores, log_weight)
        return scores if found.is_valid is None else f.where(found.is_valid, scores, self._lowest)

    def _complete(self, level: int) -> Chosen:
        count = self.levels[level].nodes
        index = self.f.whole([[range(count)]])
        complete = self.places.complete(level)
        is_valid = None if (complete == count).all() else self._below(index, complete)
        return Chosen(index, is_valid, count, is_row=True)

    def _below(self, index: Value, complete: Numbers) -> Value:
        return self.f.test("Less", index, self.f.whole(complete[None, :, None]))

    def _children(self, found: Chosen, level: int) -> Chosen:
        """Return both children of each node, and the last node of the level if its partner is outside of the prefix."""
        f, tiles, count = self.f, self.places.count, 2 * found.count
        index = f.add(f.times(f.unsqueeze(found.index, 3), f.whole(2)), f.whole([0, 1]))
        index = f.reshape(index, 0, tiles, count)
        is_valid = found.is_valid and f.unsqueeze(found.is_valid, 3)
        if is_valid is not None:
            is_valid = f.reshape(f.concat([is_valid, is_valid], 3), 0, tiles, count)
        orphan = self._orphan(level)
        if orphan is None:
            return Chosen(index, is_valid, count)
        if is_valid is not None:
            is_valid = f.concat([is_valid, self.spread(orphan.is_valid or f.constant([[[True]]], torch.bool))], 2)
        return Chosen(f.concat([index, self.spread(orphan.index)], 2), is_valid, count + 1)

    def _orphan(self, level: int) -> Chosen | None:
        """Return the last node of each tile's prefix if its partner is outside; None if no tile has such a node."""
        complete = self.places.complete(level)
        if not (complete % 2).any():
            return None
        index = self.f.whole(np.maximum(complete - 1, 0)[None, :, None])
        is_valid = None if (complete % 2).all() else self.f.constant((complete % 2 == 1)[None, :, None], torch.bool)
        return Chosen(index, is_valid, 1)

    def spread(self, value: Value) -> Value:
        """Return a value (G or 1, t or 1, c) as (G, t, c)."""
        f = self.f
        return f.expand(value, f.size(self.probe, 0), self.places.count, 1)

"""Sparse attention by plain loops in float64, written from what it is to be: slow, and with nothing of the operator but its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsopt.ops.sparse_attention import Selection
from dsopt.sparse_schedule import LEAF, OPENED, Schedule, picked, schedule

LEAST = 2.0**-14


@dataclass(frozen=True)
class Call:
    """Arguments of the operator."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    causal: str = "none"
    scale: float | None = None
    budget: tuple[float, ...] = (12.0,)
    unit: str = "log2"
    tile: int = 16
    window: int = 2

    @property
    def arguments(self) -> tuple[Any, ...]:
        given = (self.query, self.key, self.value, self.bias, self.causal, self.scale)
        return (*given, list(self.budget), self.unit, self.tile, self.window)

    def plan(self, head: int) -> Schedule:
        each = self.budget[head] if len(self.budget) > 1 else self.budget[0]
        (_, _, T, D), (_, _, S, E) = self.query.shape, self.value.shape
        return schedule(S, picked(each, self.unit, T, S, D, E, self.tile))

    def seen(self, number: int) -> int:
        """Return how many keys a query sees."""
        T, S = self.query.shape[2], self.key.shape[2]
        last = {"none": S - 1, "start": number, "end": number + S - T}[self.causal]
        return min(max(last + 1, 0), S)

    def head(self, batch: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scaled queries (T, D), keys (S, D), values (S, E) and what is added (S,) of one head, in float64."""
        shared = head // (self.query.shape[1] // self.key.shape[1])
        scale = 1 / math.sqrt(self.query.shape[3]) if self.scale is None else self.scale
        q, k, v = self.query[batch, head], self.key[batch, shared], self.value[batch, shared]
        added = torch.zeros(k.shape[0], dtype=torch.float64)
        if self.bias is not None:
            given = self.bias.expand(*self.query.shape[:2], 1, k.shape[0])[batch, head, 0]
            if given.dtype == torch.bool:
                added[~given] = -math.inf
            else:
                added = given.detach().double()
                highest = float(added.max()) if len(added) else 0.0
                added = added - (highest if math.isfinite(highest) else 0.0)
        return q.detach().double() * scale, k.detach().double(), v.detach().double(), added

    def tiles(self) -> list[range]:
        T = self.query.shape[2]
        return [range(first, min(first + self.tile, T)) for first in range(0, T, self.tile)]

    def asking(self, t: int) -> range:
        """Return the queries whose mean a tile searches with."""
        own = self.tiles()[t]
        return own if self.causal == "none" else range(max(own[0] - self.tile + 1, 0), own[0] + 1)


def dense(call: Call) -> Tensor:
    """Return dense attention (B, H, T, E) in float64, 0 for a query without any key."""
    B, H, T, _ = call.query.shape
    result = torch.zeros(B, H, T, call.value.shape[3], dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            q, k, v, added = call.head(b, h)
            for i in range(T):
                visible = (torch.arange(k.shape[0]) < call.seen(i)) & (added > -math.inf)
                if bool(visible.any()):
                    result[b, h, i] = (k[visible] @ q[i] + added[visible]).softmax(0) @ v[visible]
    return result


# ---- the softmax over what was selected ----


def parts(selection: Selection, b: int, h: int, t: int) -> tuple[list[int], list[range], range]:
    """Return the picked keys, the keys of each node, and the keys attended to exactly, of one tile."""
    picks, cover = selection.picks, selection.cover
    chosen = picks.index[b, h, t][picks.is_valid[b, h, t]].tolist()
    nodes = []
    columns = (each[b, h, t].tolist() for each in (cover.level, cover.index, cover.is_valid))
    for level, index, is_valid in zip(*columns, strict=True):
        if is_valid:
            size = LEAF * 2**level
            nodes.append(range(index * size, (index + 1) * size))
    first, end = selection.exact[b, h, t].tolist()
    return chosen, nodes, range(first, end)


def attend(call: Call, selection: Selection) -> Tensor:
    """Return (B, H, T, E) in float64 for a selection."""
    B, H, T, _ = call.query.shape
    result = torch.zeros(B, H, T, call.value.shape[3], dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            head = call.head(b, h)
            for t, queries in enumerate(call.tiles()):
                chosen, nodes, exact = parts(selection, b, h, t)
                keys, values, offsets = _rows(head, chosen, nodes)
                for i in queries:
                    own = [j for j in exact if j < call.seen(i)]
                    all_keys = torch.cat([keys, head[1][own]])
                    logits = all_keys @ head[0][i] + torch.cat([offsets, head[3][own]])
                    if bool((logits > -math.inf).any()):
                        result[b, h, i] = logits.softmax(0) @ torch.cat([values, head[2][own]])
    return result


def _rows(head: tuple[Tensor, Tensor, Tensor, Tensor], chosen: list[int], nodes: list[range]) -> tuple[Tensor, ...]:
    """Return keys, values and what is added to their scores, of picks and nodes."""
    _, k, v, added = head
    keys, values, offsets = [k[j] for j in chosen], [v[j] for j in chosen], [float(added[j]) for j in chosen]
    picked_ones = set(chosen)
    for node in nodes:
        left = [j for j in node if j not in picked_ones]
        weights = added[left].exp()
        total = float(weights.sum())
        if total > LEAST * float(added[list(node)].exp().sum()):
            keys.append(weights @ k[left] / total)
            values.append(weights @ v[left] / total)
            offsets.append(math.log(total))
    if not keys:
        return k[:0], v[:0], added[:0]
    return torch.stack(keys), torch.stack(values), torch.tensor(offsets, dtype=torch.float64)


# ---- the search ----


def search(call: Call, b: int, h: int, t: int) -> tuple[list[int], list[range]]:
    """Return the picked keys and the nodes, each by its keys, of one tile of a head that is not dense."""
    tree = _Tree(call, b, h, t)
    return tree.picks(), tree.cover()


class _Tree:
    def __init__(self, call: Call, b: int, h: int, t: int) -> None:
        q, self.k, _, added = call.head(b, h)
        queries = call.tiles()[t]
        asking = call.asking(t)
        self.probe = sum(q[i] for i in asking) / len(asking)
        self.added, self.weights = added, added.exp()
        self.plan, S = call.plan(h), self.k.shape[0]
        self.leaves = min(call.seen(i) for i in queries) // LEAF
        place = queries[0] + (S - call.query.shape[2] if call.causal == "end" else 0)
        self.near = range(place - call.window, place + call.tile + call.window) if call.window else range(0)

    def keys(self, level: int, index: int) -> range:
        size = LEAF * 2**level
        return range(index * size, (index + 1) * size)

    def score(self, level: int, index: int) -> float:
        """Score a node: its mean key, and how much its keys weigh on average."""
        members = self.keys(level, index)
        weights, keys = (each[members.start : members.stop] for each in (self.weights, self.k))
        total = float(weights.sum())
        if not total:
            return -math.inf
        return float(weights @ keys / total @ self.probe) + math.log(total / int((weights > 0).sum()))

    def level(self, level: int, above: list[int] | None) -> list[int]:
        """Return candidates: all complete nodes; or the children of some above, and a last one whose partner is not there."""
        complete = self.leaves >> level
        if above is None:
            return list(range(complete))
        return [child for node in above for child in (2 * node, 2 * node + 1)] + [complete - 1] * (complete % 2)

    def picks(self) -> list[int]:
        kept: list[int] | None = None
        for level in range(self.plan.first, -1, -1):
            scores = {node: self.score(level, node) for node in self.level(level, kept)}
            is_near = {node: _meet(self.near, self.keys(level, node)) for node in scores}
            kept = _highest(scores, is_near, self.plan.beam)
        candidates = [j for leaf in kept or [] for j in self.keys(0, leaf)]
        of_all = (self.k @ self.probe + self.added).tolist()
        scores = {j: of_all[j] for j in candidates}
        return _highest(scores, {j: j in self.near for j in candidates}, self.plan.picks)

    def cover(self) -> list[range]:
        found: list[range] = []
        opened: list[int] | None = None
        for level in range(self.plan.top, -1, -1):
            candidates = self.level(level, opened)
            opened = []
            if level > self.plan.fine:
                scores = {node: self.score(level, node) for node in candidates}
                opened = _highest(scores, dict.fromkeys(candidates, False), OPENED)
            found += [self.keys(level, node) for node in candidates if node not in opened]
        return sorted(found, key=lambda each: each.start)


def _meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _highest(scores: dict[int, float], is_first: dict[int, bool], count: int) -> list[int]:
    """Return some in ascending order: those that come first, then the highest scores, of equal ones the lowest; never one of -inf."""
    possible = [each for each in scores if scores[each] > -math.inf]
    order = sorted(possible, key=lambda each: (not is_first[each], 0.0 if is_first[each] else -scores[each], each))
    return sorted(order[:count])

"""Caches of keys and values for generating text token by token: one that looks at all of them, and one that looks for some.

Both are called in the same way, so that a model can have either. They are made of plain torch calls whose shapes do not depend on the
position, so that a model with them is captured, and runs wherever its operators do; buffers that a step changes become states.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.errors import InputError
from dsopt.ops.sparse_attention.attend import attend, node_rows, single_rows
from dsopt.ops.sparse_attention.pyramid import Level
from dsopt.ops.sparse_attention.search import Chosen, Tiles, find_cover, find_keys
from dsopt.ops.sparse_attention.work import Uncounted, Work
from dsopt.sparse_schedule import LEAF, levels, picked, schedule


class DenseCache(nn.Module):
    """The keys and values that one layer has seen: buffers (B, K, context, D) and (B, K, context, E), zero at first.

    Raises InputError for sizes below 1; and, but in compiled code, for a step that the cache cannot hold.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, heads: int, context: int, head: int, value_head: int | None = None, batch: int = 1) -> None:
        super().__init__()
        sizes = {"heads": heads, "context": context, "head": head, "value_head": value_head, "batch": batch}
        for name, size in sizes.items():
            if size is not None and (not isinstance(size, int) or size < 1):
                raise InputError("DS0352", f"{name} of a cache is {size!r}", fix="give a whole number from 1 on")
        self.register_buffer("keys", torch.zeros(batch, heads, context, head))
        self.register_buffer("values", torch.zeros(batch, heads, context, head if value_head is None else value_head))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, position: Tensor, scale: float | None = None
    ) -> Tensor:
        """Store a key and a value, and attend to all so far.

        query: (B, H, 1, D), H a multiple of K; key: (B, K, 1, D); value: (B, K, 1, E); position: (1,) int64, 0, 1, 2, ... from step to
        step; 0 begins a new text.  scale: None for 1/sqrt(D). Returns (B, H, 1, E).
        """
        self._check(query, key, value, position)
        keys, values = self._put(key, value, position)
        seen = torch.arange(keys.shape[2], device=position.device) <= position
        return F.scaled_dot_product_attention(
            query, keys, values, seen[None], scale=scale, enable_gqa=query.shape[1] != keys.shape[1]
        )

    def _check(self, query: Tensor, key: Tensor, value: Tensor, position: Tensor) -> None:
        batch, heads, context, head = self.keys.shape
        wanted = {
            "key": (key, (batch, heads, 1, head)),
            "value": (value, (batch, heads, 1, self.values.shape[3])),
            "position": (position, (1,)),
            "query": (
                query,
                (batch, query.shape[1] if isinstance(query, Tensor) and query.dim() > 1 else heads, 1, head),
            ),
        }
        for name, (given, shape) in wanted.items():
            if not isinstance(given, Tensor) or tuple(given.shape) != shape:
                found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise InputError("DS0352", f"{name} of a step is {found}", why=f"the cache takes a tensor {shape}")
        if query.shape[1] % heads:
            raise InputError(
                "DS0352", f"a step has {query.shape[1]} queries for {heads} heads", why="it must be a multiple"
            )
        if torch.compiler.is_compiling():
            return
        if not 0 <= int(position) < context:
            raise InputError(
                "DS0352", f"position {int(position)} is outside of the cache",
                why=f"it has places for {context} tokens, 0 to {context - 1}", fix="make it with a larger context, or begin again at 0",
            )  # fmt: skip

    def _put(self, key: Tensor, value: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        here = (torch.arange(self.keys.shape[2], device=position.device) == position)[:, None]
        self.keys.copy_(torch.where(here, key, self.keys))
        self.values.copy_(torch.where(here, value, self.values))
        return self.keys, self.values


class SparseCache(DenseCache):
    """A cache that keeps the pyramid of its keys and values too, and attends to what each query finds in it, in O(log context).

    budget, unit: of `context` keys (see `schedule.UNITS`); a text not longer than the budget is attended to exactly. Each step adds its
    key to one node of every level: buffers node_keys (B, K, N, D) and node_values (B, K, N, E) have all levels, leaves first.
    """

    node_keys: Tensor
    node_values: Tensor

    def __init__(
        self,
        heads: int,
        context: int,
        head: int,
        value_head: int | None = None,
        batch: int = 1,
        *,
        budget: float = 12.0,
        unit: str = "log2",
    ) -> None:
        super().__init__(heads, context, head, value_head, batch)
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
            raise InputError("DS0352", f"budget of a cache is {budget!r}", fix=f"give a number above 0, in {unit}")
        size = self.values.shape[3]
        self.plan = schedule(context, picked(budget, unit, context, context, head, size, 1))
        self._counts = [(context // LEAF) >> level for level in range(levels(context))]
        for name, part in (("node_keys", head), ("node_values", size)):
            self.register_buffer(name, torch.zeros(batch, heads, sum(self._counts), part))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, position: Tensor, scale: float | None = None, work: Work | None = None
    ) -> Tensor:  # fmt: skip
        """Store a key and a value, and attend to what the query finds: as `DenseCache.forward`. work: counts multiply-adds."""
        if self.plan.is_dense:
            return super().forward(query, key, value, position, scale)
        self._check(query, key, value, position)
        work = Uncounted() if work is None else work
        keys, values = self._put(key, value, position)
        self._grow(key, value, position, work)
        batch, heads, _, head = query.shape
        groups = heads // keys.shape[1]

        def each_head(x: Tensor) -> Tensor:
            return x.repeat_interleave(groups, 1).flatten(0, 1) if groups > 1 else x.flatten(0, 1)

        k, v = each_head(keys), each_head(values)
        pyramid = self._levels(each_head(self.node_keys), each_head(self.node_values))
        q = query.flatten(0, 1) * (1 / math.sqrt(head) if scale is None else scale)
        bias = k.new_zeros(k.shape[:2])
        prefix = (position + 1) // LEAF
        tiles = Tiles(q, prefix, torch.zeros(1, 2, dtype=torch.int64, device=q.device))
        picks = find_keys(tiles, pyramid, k, bias, self.plan, work)
        cover = find_cover(tiles, pyramid, self.plan, work)
        own = (prefix * LEAF)[:, None] + torch.arange(LEAF, device=q.device)
        exact = Chosen(
            own.clamp(max=k.shape[1] - 1).expand(k.shape[0], 1, -1), (own <= position).expand(k.shape[0], 1, -1)
        )
        singles = single_rows(picks, k, v, bias)
        rows = [singles, node_rows(cover, picks, singles, pyramid, work), single_rows(exact, k, v, bias)]
        mixed = attend(q[:, :, None], rows, [None, None, None], work)[:, 0]
        return mixed.view(batch, heads, 1, v.shape[2])

    def _grow(self, key: Tensor, value: Tensor, position: Tensor, work: Work) -> None:
        """Add a key and a value to their node of each level; the first of a text begins anew."""
        index = torch.cat([torch.arange(count, device=position.device) for count in self._counts])
        shift = torch.cat(
            [torch.full((count,), level, device=position.device) for level, count in enumerate(self._counts)]
        )
        here = (index == (position // LEAF) >> shift)[:, None]
        for nodes, added in ((self.node_keys, key), (self.node_values, value)):
            kept = torch.where(position == 0, torch.zeros_like(nodes), nodes)
            nodes.copy_(torch.where(here, kept + added, kept))
            work.add("pooling", len(self._counts) * added.numel())

    def _levels(self, keys: Tensor, values: Tensor) -> list[Level]:
        found = []
        for level, (k, v) in enumerate(
            zip(torch.split(keys, self._counts, 1), torch.split(values, self._counts, 1), strict=True)
        ):
            count = k.new_full(
                k.shape[:2], LEAF << level
            )  # of nodes that are not complete, which nothing looks at, too
            found.append(Level(count, count, k, v))
        return found

"""What the operator takes: what is refused, and the heads of one schedule put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsopt.sparse_schedule import UNITS, Schedule, picked, schedule

CAUSAL = ("none", "start", "end")
"""Which keys a query sees: all; those up to its own number; or, where the last query belongs to the last key, those up to its own place."""


@dataclass(frozen=True)
class Heads:
    """G = batch x heads with one schedule, in float32 or float64. Heads of queries that share keys have a copy each.

    members: their numbers among the heads of queries.  query: (G, T, D), scaled.  key, value: (G, S, D) and (G, S, E).
    bias: (G, S), added to the scores; -inf where masked.  seen: (T,) int64, how many keys a query may see.
    """

    members: tuple[int, ...]
    plan: Schedule
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor
    seen: Tensor

    @property
    def both(self) -> int:
        """Return D + E, the multiply-adds of a query and a key."""
        return self.query.shape[2] + self.value.shape[2]


def check(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, budget: Sequence[float], unit: str, tile: int, window: int
) -> None:  # fmt: skip
    """Raise ValueError for what no implementation takes."""
    if not query.dim() == key.dim() == value.dim() == 4:
        raise ValueError(f"query, key and value must have 4 dims, not {query.dim()}, {key.dim()} and {value.dim()}")
    heads, groups = query.shape[1], key.shape[1]
    if not (
        query.shape[0] == key.shape[0] == value.shape[0]
        and key.shape[1] == value.shape[1]
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3]
    ):
        raise ValueError(f"shapes do not fit: query {_shape(query)}, key {_shape(key)}, value {_shape(value)}")
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} heads of queries are no multiple of {groups} heads of keys")
    if not query.is_floating_point() or {key.dtype, value.dtype} != {query.dtype}:
        raise ValueError(f"dtypes must be one float type, not {query.dtype}, {key.dtype} and {value.dtype}")
    if bias is not None:
        _check_bias(bias, (query.shape[0], heads, 1, key.shape[2]))
    if causal not in CAUSAL:
        raise ValueError(f"causal is {causal!r} and must be one of {', '.join(CAUSAL)}")
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r} and must be one of {', '.join(UNITS)}")
    if len(budget) != 1 and (len(budget) != heads or heads == 0):
        raise ValueError(f"budget has {len(budget)} numbers and must have 1, or {heads}, one a head")
    if not all(math.isfinite(each) for each in budget):
        raise ValueError(f"budget is {list(budget)} and must be finite; a negative number stands for all keys")
    if tile < 1 or window < 0:
        raise ValueError(f"tile is {tile} and must be at least 1; window is {window} and must be at least 0")


def _check_bias(bias: Tensor, wanted: tuple[int, ...]) -> None:
    fits = bias.dim() == 4 and all(size in (1, full) for size, full in zip(bias.shape, wanted, strict=True))
    if not fits:
        raise ValueError(f"the bias must be (B or 1, H or 1, 1, S), the same for all queries, not {_shape(bias)}")
    if bias.dtype != torch.bool and not bias.is_floating_point():
        raise ValueError(f"the bias must be bool or float, not {bias.dtype}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def plans(
    query: Tensor, key: Tensor, value: Tensor, budget: Sequence[float], unit: str, tile: int
) -> tuple[Schedule, ...]:
    """Return the schedule of each head of queries."""
    sizes = query.shape[2], key.shape[2], query.shape[3], value.shape[3]
    found = [schedule(key.shape[2], picked(each, unit, *sizes, tile)) for each in budget]
    return tuple(found if len(found) > 1 else found * query.shape[1])


def offset(queries: int, keys: int, causal: str) -> int:
    """Return the place of the first query among the keys."""
    return keys - queries if causal == "end" else 0


def visible(queries: int, keys: int, causal: str, device: torch.device) -> Tensor:
    """Return how many keys each query sees, masks aside, (T,) int64: the first ones."""
    places = torch.arange(queries, device=device) + offset(queries, keys, causal)
    return (places + 1).clamp(0, keys) if causal != "none" else torch.full_like(places, keys)


def together(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, each: Sequence[Schedule]
) -> list[Heads]:  # fmt: skip
    """Put heads with the same schedule together. each: the schedules of the H heads; the other arguments are the operator's."""
    batch, count, queries, head = query.shape
    seen = visible(queries, key.shape[2], causal, query.device)
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = query.to(dtype) * (scale if scale is not None else 1 / math.sqrt(head))
    k, v = (part.to(dtype).repeat_interleave(count // part.shape[1], 1) for part in (key, value))
    b = _additive(bias, dtype, q).expand(batch, count, 1, key.shape[2])[:, :, 0]
    found = []
    for plan in dict.fromkeys(each):
        members = tuple(number for number, other in enumerate(each) if other == plan)
        some_q, some_k, some_v, some_b = (
            (part if len(members) == count else part[:, members]).flatten(0, 1) for part in (q, k, v, b)
        )
        found.append(Heads(members, plan, some_q, some_k, some_v, some_b, seen))
    return found


def _additive(bias: Tensor | None, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return the bias in floats, its highest number in each head 0: what is added to all scores changes nothing."""
    if bias is None:
        return like.new_zeros((1, 1, 1, 1))
    if bias.dtype == torch.bool:
        return torch.zeros_like(bias, dtype=dtype).masked_fill(~bias, -torch.inf)
    added = bias.to(dtype)
    return added - added.amax(3, keepdim=True).detach().nan_to_num(neginf=0.0) if added.shape[3] else added

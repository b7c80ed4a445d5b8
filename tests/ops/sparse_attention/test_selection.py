"""What a tile looks at: every key once, found as a search written with lists finds it, of equal keys the first."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsopt.ops.sparse_attention import select
from tests.ops.sparse_attention.oracle import Call, parts, search
from tests.ops.sparse_attention.samples import added, padding, sample


def all_parts(call: Call) -> list[tuple[int, int, int, list[int], list[range], range]]:
    selection = select(*call.arguments)
    B, H = call.query.shape[:2]
    return [(b, h, t, *parts(selection, b, h, t)) for b in range(B) for h in range(H) for t in range(len(call.tiles()))]


def check_partition(call: Call) -> None:
    for b, h, t, chosen, nodes, exact in all_parts(call):
        assert chosen == sorted(set(chosen))
        queries = call.tiles()[t]
        covered = [j for node in nodes for j in node]
        # nodes lie one behind the other from key 0, and what comes behind them is exact up to the last key that is seen
        assert covered == list(range(exact.start))
        assert exact.stop == max(call.seen(i) for i in queries)
        if call.plan(h).is_dense:
            assert not chosen
            assert exact.start == 0
            continue
        assert len(chosen) <= call.plan(h).picks
        # all rows of the tile see all nodes, and picks are keys of nodes that are not masked
        assert exact.start <= min(call.seen(i) for i in queries)
        assert set(chosen) <= set(covered)
        assert bool((call.head(b, h)[3][chosen] > -math.inf).all())


@st.composite
def calls(draw: st.DrawFn) -> Call:
    S = draw(st.integers(0, 250))
    T = draw(st.one_of(st.none(), st.integers(0, 90)))
    mask = draw(st.sampled_from(["none", "padding", "holes", "added"]))
    batch = draw(st.integers(1, 2))
    bias = None
    if mask == "padding":
        bias = padding(S, *(draw(st.integers(0, S)) for _ in range(batch)))
    elif mask == "holes":
        bias = added(S, batch=batch, seed=draw(st.integers(0, 9))) > 0.3
    elif mask == "added":
        bias = added(S, heads=2, seed=draw(st.integers(0, 9))) * 3
    return sample(
        S, T, batch=batch, D=3, E=2, seed=draw(st.integers(0, 99)), bias=bias, causal=draw(st.sampled_from(["none", "start", "end"])),
        budget=draw(st.sampled_from([(0.0,), (1.0,), (7.0,), (60.0,), (-1.0, 9.0), (30.0, 4.0)])), unit="keys",
        tile=draw(st.sampled_from([1, 5, 16, 64] if S < 60 else [16, 64])), window=draw(st.sampled_from([0, 1, 2, 9])),
    )  # fmt: skip


@given(calls())
def test_picks_nodes_and_range_have_every_key_once(call: Call) -> None:
    check_partition(call)


@given(calls())
def test_the_search_equals_one_written_with_lists(call: Call) -> None:
    call = dataclasses.replace(call, **{name: getattr(call, name).double() for name in ("query", "key", "value")})
    for b, h, t, chosen, nodes, _ in all_parts(call):
        if not call.plan(h).is_dense:
            assert (chosen, nodes) == search(call, b, h, t)


@pytest.mark.parametrize(("S", "tile"), [(1023, 128), (4099, 1025), (8200, 4000)])
@pytest.mark.parametrize("causal", ["none", "end"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_long_searches_equal_one_written_with_lists(S: int, tile: int, causal: str, is_masked: bool) -> None:
    """Of 8,200 keys a search begins above the leaves and drops nodes at each level; nodes with masked keys compete with full ones."""
    bias = (
        added(S).masked_fill((added(S, seed=2) > 0) & (torch.arange(S) % 700 > 200), -math.inf) if is_masked else None
    )
    call = sample(S, heads=1, D=3, E=2, dtype=torch.float64, tile=tile, causal=causal, bias=bias)
    check_partition(call)
    for b, h, t, chosen, nodes, _ in all_parts(call):
        assert (chosen, nodes) == search(call, b, h, t)


@pytest.mark.parametrize("causal", ["none", "start", "end"])
@pytest.mark.parametrize("budget", [1.0, 13.0, 100.0])
def test_where_all_leaves_are_kept_picks_are_the_best_keys_of_all(causal: str, budget: float) -> None:
    call = sample(300, causal=causal, budget=(budget,), unit="keys", window=0, bias=added(300), dtype=torch.float64)
    for b, h, t, chosen, _, exact in all_parts(call):
        q, k, _, bias = call.head(b, h)
        asking = call.asking(t)
        scores = (k[: exact.start] @ q[asking.start : asking.stop].mean(0) + bias[: exact.start]).tolist()
        best = sorted(range(exact.start), key=lambda j: (-scores[j], j))[: int(budget)]
        assert chosen == sorted(best)


def of_ties(S: int, **options: Any) -> Call:
    """Return a call on small integers, whose scores are exact in any order of additions, and mostly equal."""
    call = sample(S, D=4, E=2, scale=1.0, unit="keys", tile=16, **options)
    return dataclasses.replace(call, query=call.query.round(), key=call.key.sign())


@pytest.mark.parametrize("budget", [3.0, 40.0])
def test_of_equal_scores_the_first_key_is_picked(budget: float) -> None:
    call = of_ties(203, budget=(budget,), window=0)
    for b, h, t, chosen, nodes, _ in all_parts(call):
        assert (chosen, nodes) == search(call, b, h, t)


def test_of_keys_that_are_all_the_same_the_first_are_picked() -> None:
    call = sample(1024, heads=1, budget=(20.0,), unit="keys", window=0)
    same = call.key[:, :, :1].expand(-1, -1, 1024, -1)
    for *_, chosen, nodes, _ in all_parts(dataclasses.replace(call, key=same)):
        assert chosen == list(range(20))
        # the first nodes are opened down to the finest
        assert [len(node) for node in nodes][:4] == [128] * 4


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("causal", ["none", "end"])
def test_a_window_is_picked_before_all_others(window: int, causal: str) -> None:
    call = sample(700, causal=causal, window=window, budget=(40.0,), unit="keys")
    for *_, t, chosen, _, exact in all_parts(call):
        wanted = range(max(0, 16 * t - window), min(exact.start, 16 * (t + 1) + window))
        assert set(wanted) <= set(chosen)


def test_a_window_that_is_larger_than_the_budget_is_picked_from_the_first() -> None:
    call = sample(700, window=5, budget=(4.0,), unit="keys")
    for *_, t, chosen, _, _ in all_parts(call):
        start = max(0, 16 * t - 5)
        assert chosen == list(range(start, start + 4))


def test_without_a_window_the_own_place_of_a_tile_counts_for_nothing() -> None:
    """The node around it was once kept by every search, in the place of a better one."""
    call = sample(2048, 33, heads=1, causal="end", window=0, budget=(96.0,), unit="keys", tile=1, dtype=torch.float64)
    for b, h, t, chosen, nodes, _ in all_parts(call):
        assert (chosen, nodes) == search(call, b, h, t)


def test_masked_keys_take_no_place() -> None:
    mask = torch.zeros(1, 1, 1, 900, dtype=torch.bool)
    mask[..., [3, 77, 500, 899]] = True
    for *_, chosen, _, exact in all_parts(sample(900, bias=mask, budget=(30.0,), unit="keys")):
        assert chosen == [j for j in (3, 77, 500, 899) if j < exact.start]


def test_a_masked_window_leaves_the_places_to_others() -> None:
    """Masked nodes around the own place are more than a search keeps, and it must keep none of them."""
    call = sample(
        8192, 1, heads=1, D=2, E=1, causal="end", bias=padding(8192, 7192), window=900, budget=(40.0,), unit="keys"
    )
    for b, h, t, chosen, nodes, _ in all_parts(call):
        assert len(chosen) == 40
        assert (chosen, nodes) == search(call, b, h, t)


def test_what_is_not_valid_comes_last() -> None:
    selection = select(*sample(333, causal="start", budget=(5.0, 90.0), unit="keys", bias=padding(333, 100)).arguments)
    for is_valid in (selection.picks.is_valid, selection.cover.is_valid):
        assert bool((is_valid == is_valid.sort(-1, descending=True).values).all())
        assert not bool(is_valid.all())


@pytest.mark.parametrize(
    ("B", "H", "T", "S"), [(0, 2, 5, 40), (2, 2, 0, 40), (2, 2, 5, 0), (1, 0, 5, 40), (0, 2, 0, 0)]
)
def test_nothing_can_be_selected_from(B: int, H: int, T: int, S: int) -> None:
    query, key = torch.zeros(B, H, T, 4), torch.zeros(B, max(H, 1), S, 4)
    selection = select(query, key, key, None, "none", None, [5.0], "keys", 16, 2)
    tiles = -(-T // 16)
    assert selection.exact.shape == (B, H, tiles, 2)
    assert selection.picks.index.shape[:3] == selection.cover.index.shape[:3] == (B, H, tiles)

"""Work is counted, not declared: by hand on a small case, and the closed form against the counter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dsopt.ops.sparse_attention import Work, sparse_attention
from dsopt.sparse_schedule import UNITS, cover_size, levels, picked, schedule, work
from tests.ops.sparse_attention.oracle import Call
from tests.ops.sparse_attention.samples import padding, sample

LENGTHS = [1024 * 2**step for step in range(8)]


def counted(call: Call) -> Work:
    found = Work()
    sparse_attention(*call.arguments, found)
    return found


def test_a_count_by_hand() -> None:
    """16 keys are 2 leaves and a node above them; 4 queries are 2 tiles."""
    found = counted(sample(16, 4, heads=1, D=2, E=3, budget=(4.0,), unit="keys", tile=2))
    assert found.parts == {
        # 16 keys into leaves and 2 leaves into one, keys and values
        "pooling": (16 + 2) * 5,
        # means of queries; 2 leaves and 16 keys for each tile. The cover begins with its finest level, and needs no scores
        "scoring": 4 * 2 + 2 * (2 + 16) * 2,
        # the same lists sorted: n log2 n
        "sorting": 2 * (2 * 1 + 16 * 4),
        # 4 picks and 1 node for each tile
        "residual": 2 * (4 + 1) * 5,
        # 4 queries, each with 4 picks and a node
        "picks": 4 * (4 + 1) * 5,
    }
    assert found.dense == 4 * 16 * 5
    assert found.total == sum(found.parts.values())
    assert found.share == found.total / found.dense


def test_dense_heads_and_causal_masks_by_hand() -> None:
    found = counted(sample(20, 6, heads=2, D=2, E=3, budget=(-1.0,), causal="start"))
    assert found.total == found.dense == 2 * (1 + 2 + 3 + 4 + 5 + 6) * 5
    assert (
        counted(sample(20, 6, heads=1, D=2, E=3, budget=(-1.0,), causal="end")).dense
        == (15 + 16 + 17 + 18 + 19 + 20) * 5
    )
    assert Work().share == 1.0


def test_heads_and_samples_add_up() -> None:
    one, many = (counted(sample(256, heads=heads, batch=batch, D=4, E=4)) for heads, batch in ((1, 1), (3, 2)))
    assert many.parts == pytest.approx({name: 6 * count for name, count in one.parts.items()})
    assert many.dense == 6 * one.dense


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize(("T", "S"), [(512, 512), (1024, 1024), (64, 4096), (128, 1000)])
def test_the_closed_form_is_what_is_counted(T: int, S: int, tile: int) -> None:
    call = sample(S, T, heads=1, D=8, E=4, tile=tile)
    assert counted(call).total == pytest.approx(work(call.plan(0), T, S, 8, 4, tile), rel=1e-9)


@pytest.mark.parametrize("S", [17, 100, 1023, 1500])
def test_the_closed_form_counts_rows_that_only_fill_up_and_nodes_whose_keys_are_all_picked(S: int) -> None:
    call = sample(S, heads=1, D=8, E=4, tile=64)
    plan = call.plan(0)
    form, nodes = work(plan, S, S, 8, 4, 64), cover_size(plan, S // 8)[0]
    too_many = (-S % 64) * (plan.picks + nodes + S % 8) + S * nodes
    assert form - too_many * (8 + 4) <= counted(call).total <= form * (1 + 1e-9)


@pytest.mark.parametrize("tile", [16, 64])
def test_a_causal_mask_changes_little_of_the_work(tile: int) -> None:
    """Each tile has its picks; only the first have fewer keys to pick from. Dense attention does half."""
    form = work(schedule(1024, 120), 1024, 1024, 32, 32, tile)
    found = counted(sample(1024, heads=1, D=32, E=32, tile=tile, causal="end"))
    assert 0.85 <= found.total / form <= 1.2
    assert found.dense == 1024 * 1025 / 2 * 64


def test_masked_keys_are_not_attended_to() -> None:
    whole, half = (counted(sample(512, heads=1, bias=padding(512, length))) for length in (512, 256))
    assert half.parts["picks"] < whole.parts["picks"]
    assert half.dense == whole.dense


@pytest.mark.parametrize("tile", [16, 64])
def test_work_grows_as_n_log_n(tile: int) -> None:
    totals = [work(schedule(n, picked(12, "log2", n, n, 64, 64, tile)), n, n, 64, 64, tile) for n in LENGTHS]
    slope = np.polyfit(np.log(LENGTHS), np.log(totals), 1)[0]
    assert slope <= 1.15


@pytest.mark.parametrize(
    ("tile", "n", "most"),
    [(64, 1024, 0.15), (16, 4096, 0.06), (64, 4096, 0.06), (16, 16384, 0.022), (64, 16384, 0.022)],
)
def test_the_share_of_dense_attention_s_work(tile: int, n: int, most: float) -> None:
    assert counted_share(n, 12, "log2", tile) <= most


@pytest.mark.parametrize("tile", [16, 64])
def test_a_share_is_kept(tile: int) -> None:
    assert counted_share(1024, 0.15, "share", tile) <= 0.15


def counted_share(n: int, budget: float, unit: str, tile: int) -> float:
    """Return the share that is counted for 64 tiles of a sequence, with pooling spread over all of its tiles."""
    T = min(n, 64 * tile)
    call = sample(
        n, T, heads=1, D=64, E=64, tile=tile, unit="keys", budget=(float(picked(budget, unit, n, n, 64, 64, tile)),)
    )
    found = counted(call)
    pooling = found.parts["pooling"]
    return ((found.total - pooling) * n / T + pooling) / (n * n * 128)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("keys", [0, 1, 7, 8, 15, 16, 17, 1000])
def test_every_budget_gives_a_schedule(unit: str, keys: int) -> None:
    for budget in (-1.0, 0.0, 0.1, 1.0, 5.0, 1e9):
        picks = picked(budget, unit, 5, keys, 4, 3, 16)
        plan = schedule(keys, picks)
        assert plan.is_dense or (
            plan.picks == picks < keys and plan.fine <= plan.top < levels(keys) and plan.beam >= 48
        )
        assert math.isfinite(work(plan, 5, keys, 4, 3, 16))


def test_units_of_a_budget() -> None:
    assert picked(7.9, "keys", 5, 1000, 4, 3, 16) == 7
    assert picked(12, "log2", 5, 1024, 4, 3, 16) == 120
    assert picked(12, "log2", 5, 1025, 4, 3, 16) == 121
    assert picked(-0.5, "share", 5, 1000, 4, 3, 16) == picked(1.0, "share", 5, 1000, 4, 3, 16) == -1
    picks = picked(0.15, "share", 1024, 1024, 64, 64, 16)
    sizes = (1024, 1024, 64, 64, 16)
    assert work(schedule(1024, picks), *sizes) <= 0.15 * 1024 * 1024 * 128 < work(schedule(1024, picks + 1), *sizes)
    # nodes alone take more than this
    assert picked(1e-6, "share", 1024, 1024, 64, 64, 16) == 0

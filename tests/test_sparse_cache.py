"""Decoding token by token with a sparse cache: the operator's result, the dense cache's interface, and the same in compiled code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import dsopt
from dsopt import DenseCache, SparseCache
from dsopt.errors import InputError
from dsopt.ops.sparse_attention import Work, sparse_attention
from dsopt.runtime import Session
from models.gpt import Gpt, GptDecoder, gpt_decode

H, K, D, E = 4, 2, 16, 24


def _steps(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(2, H, 1, D, generator=g), torch.randn(2, K, 1, D, generator=g), torch.randn(2, K, 1, E, generator=g),
            torch.tensor([number]),
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("context", [16, 67, 128, 300])
def test_the_last_step_is_the_operator_on_all_keys(context: int) -> None:
    """The levels of a search are laid out for the whole context, so that only there both begin at the same level."""
    cache = SparseCache(K, context, D, E, 2, budget=20.0, unit="keys")
    steps = _steps(context)
    with torch.no_grad():
        for each in steps:
            have = cache(*each)
    keys, values = (torch.cat([each[place] for each in steps], 2) for place in (1, 2))
    want = sparse_attention(steps[-1][0], keys, values, None, "none", None, [20.0], "keys", 1, 0)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("context", "budget"), [(64, 64.0), (100, 99.0), (300, 299.0)])
def test_a_budget_of_all_keys_is_the_dense_cache(context: int, budget: float) -> None:
    dense = DenseCache(K, context, D, E, 2)
    sparse = SparseCache(K, context, D, E, 2, budget=budget, unit="keys")
    with torch.no_grad():
        for each in _steps(context):
            torch.testing.assert_close(sparse(*each), dense(*each), rtol=1e-4, atol=1e-5)


def _changed(step: tuple[Tensor, ...], place: int, value: object) -> list[object]:
    return [value if number == place else each for number, each in enumerate(step)]


@pytest.mark.parametrize("make", [DenseCache, SparseCache])
def test_what_does_not_fit_is_refused(make: type[DenseCache]) -> None:
    cache, (step,) = make(K, 64, D, E, 2), _steps(1)
    for position in (-1, 64):
        with pytest.raises(InputError, match=rf"(?s)DS0352.*position {position} .*0 to 63"):
            cache(*step[:3], torch.tensor([position]))
    for place, value, name in (
        (0, step[0][:1], "query"), (0, step[0][:, :3], "3 queries for 2 heads"), (1, step[1].repeat(1, 1, 2, 1), "key"),
        (2, step[2][..., :8], "value"), (3, 5, "position of a step is int"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"(?s)DS0352.*{name}"):
            cache(*_changed(step, place, value))
    assert not cache.keys.any()
    with pytest.raises(InputError, match="context of a cache is 0"):
        make(K, 0, D)


@pytest.mark.parametrize("budget", [0, -1.0, "x"])
def test_a_budget_that_means_nothing_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="budget of a cache"):
        SparseCache(K, 64, D, budget=budget)


def test_position_0_begins_a_new_text() -> None:
    used, fresh = (SparseCache(K, 128, D, E, 2, budget=12.0, unit="keys") for _ in range(2))
    with torch.no_grad():
        for each in _steps(100, seed=1):
            used(*each)
        for each in _steps(60):
            have, want = used(*each), fresh(*each)
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_what_a_step_takes_grows_slower_than_the_text() -> None:
    """Doublings of the context add about the same: the first level, the beam and the picks do not grow in proportion."""
    totals = []
    for context in (1024, 4096, 16384):
        cache, work = SparseCache(1, context, D, budget=12.0), Work()
        with torch.no_grad():
            cache.keys.normal_(generator=torch.Generator().manual_seed(0))
            for level, part in enumerate(cache.node_keys.split(cache._counts, 2)):
                part.copy_(cache.keys[:, :, : part.shape[2] * (8 << level)].unflatten(2, (part.shape[2], -1)).sum(3))
            row = torch.randn(1, 1, 1, D)
            cache(row, row, row, torch.tensor([context - 1]), work=work)
        totals.append(work.total)
    dense = [2 * D * context for context in (1024, 4096, 16384)]
    shares = [total / whole for total, whole in zip(totals, dense, strict=True)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.2
    assert totals[2] < 2 * totals[1]


def test_the_gpt_writes_the_same_with_both_caches_where_nothing_is_left_out() -> None:
    dense, sparse = (GptDecoder(Gpt(context=48), budget).eval() for budget in (None, 100.0))
    sparse.load_state_dict({**sparse.state_dict(), **dense.state_dict()})
    token = torch.tensor([5])
    for position in range(48):
        with torch.no_grad():
            want = dense(token, torch.tensor([position]))
            torch.testing.assert_close(sparse(token, torch.tensor([position])), want, rtol=1e-4, atol=1e-5)
        token = want.argmax(1)


def test_a_sparse_decoder_compiles_and_keeps_its_state() -> None:
    program = dsopt.capture(gpt_decode(context=128, budget=3.0))
    states = {state.name.rpartition(".")[2] for state in program.states}
    assert states == {"keys", "values", "node_keys", "node_values"}
    eager = gpt_decode(context=128, budget=3.0).model
    dense = gpt_decode(context=128).model
    with Session(dsopt.compile(program, "cpu"), threads=1) as session, torch.no_grad():
        differs = False
        for position in range(100):
            token, place = torch.tensor([position * 7 % 96]), torch.tensor([position])
            have, want = session.run(token.numpy(), place.numpy()), eager(token, place)
            np.testing.assert_allclose(have, want.numpy(), rtol=1e-3, atol=1e-4)
            differs |= not torch.allclose(want, dense(token, place), atol=1e-4)
        assert differs  # it did leave something out

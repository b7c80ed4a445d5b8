"""What the operator gives: a softmax over picks, nodes and the own keys, as plain loops in float64 have it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.sparse_attention import Work, attend_selected, select, sparse_attention
from tests.ops.sparse_attention import oracle
from tests.ops.sparse_attention.oracle import Call
from tests.ops.sparse_attention.samples import added, padding, sample

NARROW = {"budget": (7.0,), "unit": "keys"}
CASES: dict[str, Call] = {
    **{f"n={n}": sample(n, D=32, E=32) for n in (1, 17, 63, 65)},
    **{f"n={n}": sample(n, heads=1, D=32, E=32, tile=64) for n in (1000, 1023, 1025)},
    **{f"causal {kind}": sample(203, causal=kind) for kind in ("start", "end")},
    "n=4099": sample(4099, 70, heads=1, D=32, E=16, tile=64, causal="end"),
    "few queries": sample(300, 3, **NARROW),
    "more queries than keys": sample(130, 200, **NARROW),
    "causal start, more queries": sample(130, 200, causal="start", **NARROW),
    "causal end, more queries": sample(130, 200, causal="end", **NARROW),
    "causal end, few queries": sample(300, 21, causal="end", **NARROW),
    "causal start, few queries": sample(300, 21, causal="start", **NARROW),
    "head size 256": sample(150, heads=1, D=256, E=128, **NARROW),
    "head size 80": sample(150, heads=1, D=80, E=96, **NARROW),
    "padding": sample(211, batch=2, bias=padding(211, 211, 100), **NARROW),
    "nothing to see": sample(211, batch=2, bias=padding(211, 0, 30), **NARROW),
    "left padding, causal": sample(211, bias=~padding(211, 100), causal="end", **NARROW),
    "masked with holes": sample(211, heads=3, bias=added(211, 3) > 0, **NARROW),
    "bias": sample(211, bias=added(211), **NARROW),
    "bias of each head": sample(211, heads=3, batch=2, bias=added(211, 3, 2), **NARROW),
    "bias and mask": sample(211, bias=added(211).masked_fill(added(211, seed=2) > 1, -math.inf), causal="end", **NARROW),
    "large bias": sample(211, bias=added(211).float() * 20 + 1000, **NARROW),
    "one number for all": sample(100, bias=torch.tensor([[[[3.0]]]]), **NARROW),
    "grouped": sample(150, heads=6, shared=2, bias=added(150, 6), causal="end", **NARROW),
    "multi-query": sample(150, heads=3, shared=1, **NARROW),
    "scale": sample(150, scale=0.05, **NARROW),
    "negative scale": sample(150, scale=-2.0, **NARROW),
    "mixed budgets": sample(150, heads=4, batch=2, budget=(0.0, -1.0, 30.0, 1000.0), unit="keys", causal="end"),
    "equal budgets": sample(150, heads=3, budget=(5.0, 9.0, 5.0), unit="keys"),
    "no picks": sample(150, budget=(0.0,), unit="keys", window=0),
    "share": sample(400, budget=(0.3,), unit="share"),
    "tile of one": sample(70, tile=1, causal="end", **NARROW),
    "tile larger than all": sample(70, tile=1000, **NARROW),
    "no window": sample(150, window=0, causal="end", **NARROW),
}  # fmt: skip


def doubled(call: Call) -> Call:
    return dataclasses.replace(call, **{name: getattr(call, name).double() for name in ("query", "key", "value")})


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_plain_loops_on_the_same_selection(name: str) -> None:
    call = doubled(CASES[name])
    selection = select(*call.arguments)
    found = sparse_attention(*call.arguments)
    torch.testing.assert_close(found, oracle.attend(call, selection), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attend_selected(selection, *call.arguments), found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", ["start", "end"])
@pytest.mark.parametrize("tile", [1, 16, 64])
@pytest.mark.parametrize("window", [0, 5])
def test_under_a_causal_mask_nothing_depends_on_what_comes_later(causal: str, tile: int, window: int) -> None:
    """Neither through what is attended to, nor through the choice of it."""
    call = sample(300, causal=causal, tile=tile, window=window, batch=2, **NARROW)
    before = sparse_attention(*call.arguments)
    for place in (1, 100, 128, 155, 299):
        later = {}
        for name in ("query", "key", "value"):
            changed = getattr(call, name).clone()
            changed[:, :, place:] = 3 * changed[:, :, place:].flip(2)
            later[name] = changed
        after = sparse_attention(*dataclasses.replace(call, **later).arguments)
        assert torch.equal(after[:, :, :place], before[:, :, :place])
        assert not torch.equal(after[:, :, place:], before[:, :, place:])


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_float64_on_the_same_selection(name: str) -> None:
    call = CASES[name]
    wanted = attend_selected(select(*call.arguments), *doubled(call).arguments)
    found = sparse_attention(*call.arguments)
    assert found.dtype == torch.float32
    # a mean of what is left of a node may be a difference of numbers up to 2^14 times as large
    assert float((found - wanted).norm()) <= 2e-6 * max(1.0, float(wanted.norm()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("budget", [-1.0, 1e6])
def test_a_budget_of_all_keys_is_dense_attention(name: str, budget: float) -> None:
    call = dataclasses.replace(CASES[name], budget=(budget,), unit="keys")
    torch.testing.assert_close(sparse_attention(*call.arguments).double(), oracle.dense(call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["n=1025", "causal end", "bias and mask", "grouped", "padding"])
def test_picking_all_keys_but_one_comes_to_dense_attention(name: str) -> None:
    """The node of the one that is left stands for it alone."""
    call = doubled(CASES[name])
    call = dataclasses.replace(call, budget=(call.key.shape[2] - 1.0,), unit="keys")
    torch.testing.assert_close(sparse_attention(*call.arguments), oracle.dense(call), rtol=1e-9, atol=1e-9)


def test_the_oracle_of_dense_attention_is_torchs() -> None:
    call = sample(40, 30, heads=4, shared=2, bias=added(40, 4), scale=0.3)
    assert call.bias is not None
    bias = call.bias.float().expand(1, 4, 30, 40)
    wanted = F.scaled_dot_product_attention(call.query, call.key, call.value, bias, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(oracle.dense(call).float(), wanted)


def test_an_equal_node_is_exact() -> None:
    """Where the keys of a node are all the same, so are their weights, and their mean stands for them without any error."""
    call = sample(1024, heads=1, D=8, E=8, budget=(0.0,), unit="keys", window=0, dtype=torch.float64)
    blocks = call.key[:, :, ::256].repeat_interleave(256, 2)  # the largest nodes of a cover of 1,024 keys
    call = dataclasses.replace(call, key=blocks)
    torch.testing.assert_close(sparse_attention(*call.arguments), oracle.dense(call), rtol=1e-9, atol=1e-9)


def test_logits_of_ten_thousand() -> None:
    call = sample(500, scale=1e4, **NARROW)
    selection = select(*call.arguments)
    found = sparse_attention(*call.arguments)
    assert bool(found.isfinite().all())
    # the softmax is all but one number, and which one may hang on the rounding of a logit: 1e4 * 2^-24 of what it is compared with
    wanted = oracle.attend(call, selection)
    is_close = (found - wanted).abs().amax(-1) <= 1e-2
    assert float(is_close.double().mean()) >= 0.99


@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded"])
def test_strides_do_not_matter(kind: str) -> None:
    call = sample(130, heads=2, D=8, E=8, causal="end", **NARROW)

    def laid_out(x: Tensor) -> Tensor:
        if kind == "transposed":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if kind == "strided":
            return x.repeat_interleave(2, -1)[..., ::2]
        return x[:, :1].expand(-1, 2, -1, -1)

    given = {name: laid_out(getattr(call, name)) for name in ("query", "key", "value")}
    other = dataclasses.replace(call, **given)
    plain = dataclasses.replace(call, **{name: each.contiguous() for name, each in given.items()})
    assert not any(each.is_contiguous() for each in given.values())
    assert torch.equal(sparse_attention(*other.arguments), sparse_attention(*plain.arguments))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, bound: float) -> None:
    call = sample(300, dtype=dtype, bias=added(300).to(dtype), causal="end", **NARROW)
    full = {name: getattr(call, name).float() for name in ("query", "key", "value")}
    wanted = sparse_attention(*dataclasses.replace(call, **full).arguments)
    found = sparse_attention(*call.arguments)
    assert found.dtype == dtype
    assert torch.equal(found, wanted.to(dtype))
    assert float((found.float() - wanted).abs().max()) <= bound * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("B", "H", "T", "S"), [(0, 2, 5, 40), (2, 2, 0, 40), (2, 2, 5, 0), (1, 0, 5, 40), (0, 2, 0, 0)]
)
@pytest.mark.parametrize("causal", ["none", "end"])
def test_nothing_gives_zeros_of_the_right_shape(B: int, H: int, T: int, S: int, causal: str) -> None:
    of_keys = torch.zeros(B, max(H, 1), S, 4)
    for bias in (None, torch.zeros(1, 1, 1, S), torch.ones(B, 1, 1, S, dtype=torch.bool)):
        work = Work()
        found = sparse_attention(
            torch.zeros(B, H, T, 4), of_keys, of_keys[..., :3], bias, causal, None, [5.0], "keys", 16, 2, work
        )
        assert torch.equal(found, torch.zeros(B, H, T, 3))
        assert work.dense == 0


def test_what_no_query_may_see_has_no_part_in_its_result() -> None:
    """Keys behind a causal mask, and masked keys, may be anything."""
    call = sample(200, causal="end", bias=padding(200, 150), **NARROW)
    other = dataclasses.replace(call, key=call.key.clone(), value=call.value.clone())
    other.key[:, :, 150:], other.value[:, :, 150:] = 9.0, 9.0
    torch.testing.assert_close(sparse_attention(*call.arguments), sparse_attention(*other.arguments))
    other.key[:, :, 96:], other.value[:, :, 96:] = -7.0, 70.0
    torch.testing.assert_close(
        sparse_attention(*call.arguments)[:, :, :96], sparse_attention(*other.arguments)[:, :, :96]
    )


def test_the_order_of_samples_and_heads_is_kept() -> None:
    call = sample(150, heads=4, batch=3, shared=2, bias=added(150, 4, 3), budget=(3.0, 20.0, -1.0, 3.0), unit="keys")
    found = sparse_attention(*call.arguments)
    assert call.bias is not None
    for b in range(3):
        for h in range(4):
            alone = dataclasses.replace(
                call, query=call.query[b : b + 1, h : h + 1], key=call.key[b : b + 1, h // 2 : h // 2 + 1],
                value=call.value[b : b + 1, h // 2 : h // 2 + 1], bias=call.bias[b : b + 1, h : h + 1], budget=call.budget[h : h + 1],
            )  # fmt: skip
            torch.testing.assert_close(sparse_attention(*alone.arguments)[0, 0], found[b, h])


def test_two_runs_are_equal_to_the_bit() -> None:
    call = sample(700, causal="end")
    assert torch.equal(sparse_attention(*call.arguments), sparse_attention(*call.arguments))


def test_many_tiles_are_done_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    call = sample(300, heads=3, budget=(5.0, -1.0, 9.0), unit="keys", causal="end", dtype=torch.float64)
    whole, selection = sparse_attention(*call.arguments), select(*call.arguments)
    monkeypatch.setattr("dsopt.ops.sparse_attention.selection._ELEMENTS", 1)
    torch.testing.assert_close(sparse_attention(*call.arguments), whole)
    for one, other in zip(select(*call.arguments).tensors, selection.tensors, strict=True):
        assert torch.equal(one, other)


# ---- numbers that are none ----


def with_nan(call: Call, name: str, place: tuple[Any, ...], number: float = math.nan) -> Call:
    changed = getattr(call, name).clone()
    changed[place] = number
    return dataclasses.replace(call, **{name: changed})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
@pytest.mark.parametrize("causal", ["none", "end"])
def test_numbers_that_are_none_neither_hang_nor_spread_to_other_heads(name: str, number: float, causal: str) -> None:
    call = sample(200, heads=2, bias=added(200, 2).float(), causal=causal, **NARROW)
    place = (0, 1, 0, 100) if name == "bias" else (0, 1, 100, 2)
    found = sparse_attention(*with_nan(call, name, place, number).arguments)
    assert torch.equal(found[:, 0], sparse_attention(*call.arguments)[:, 0])
    if causal == "end":
        # nor to tiles before, which end at query 96
        before = found[:, 1, :96]
        assert bool(before.isfinite().all()) or (name == "bias" and number == math.inf)


@pytest.mark.parametrize("name", ["key", "value", "bias"])
def test_what_is_not_a_number_reaches_all_queries_that_see_it(name: str) -> None:
    call = sample(200, bias=added(200, 2).float(), **NARROW)
    place = (0, 0, 0, 100) if name == "bias" else (0, 0, 100, slice(None))
    assert bool(sparse_attention(*with_nan(call, name, place).arguments)[0, 0].isnan().all())


# ---- what is refused ----

GOOD = sample(40, heads=4, shared=2)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dims": ({"query": torch.zeros(4, 40, 6)}, "4 dims"),
    "batch": ({"query": torch.zeros(2, 4, 40, 6)}, "shapes do not fit"),
    "head size": ({"query": torch.zeros(1, 4, 40, 5)}, "shapes do not fit"),
    "keys and values": ({"value": torch.zeros(1, 2, 41, 4)}, "shapes do not fit"),
    "groups": ({"query": torch.zeros(1, 3, 40, 6)}, "no multiple"),
    "no keys' heads": ({"key": torch.zeros(1, 0, 40, 6), "value": torch.zeros(1, 0, 40, 6)}, "no multiple"),
    "dtypes": ({"query": torch.zeros(1, 4, 40, 6, dtype=torch.float64)}, "one float type"),
    "integers": ({name: torch.zeros(1, 2, 40, 6, dtype=torch.int64) for name in ("query", "key", "value")}, "one float type"),
    "bias of each query": ({"bias": torch.zeros(1, 1, 40, 40)}, "same for all queries"),
    "bias of other keys": ({"bias": torch.zeros(1, 1, 1, 39)}, "the bias must be"),
    "bias of other heads": ({"bias": torch.zeros(1, 2, 1, 40)}, "the bias must be"),
    "bias of integers": ({"bias": torch.zeros(1, 1, 1, 40, dtype=torch.int64)}, "bool or float"),
    "causal": ({"causal": "yes"}, "causal is 'yes'"),
    "unit": ({"unit": "percent"}, "unit is 'percent'"),
    "budgets": ({"budget": (1.0, 2.0)}, "budget has 2 numbers"),
    "no budget": ({"budget": ()}, "budget has 0 numbers"),
    "infinite budget": ({"budget": (math.inf,)}, "must be finite"),
    "no number": ({"budget": (math.nan,)}, "must be finite"),
    "tile": ({"tile": 0}, "tile is 0"),
    "window": ({"window": -1}, "window is -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_fits_no_implementation_is_refused(name: str) -> None:
    change, message = BAD[name]
    call = dataclasses.replace(GOOD, **change)
    for function in (sparse_attention, select, torch.ops.dsopt.sparse_attention):
        with pytest.raises(ValueError, match=message):
            function(*call.arguments)

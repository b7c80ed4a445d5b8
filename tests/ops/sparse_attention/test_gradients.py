"""Gradients are those of the softmax over what was selected: picks are taken as given, nodes pass them on to the keys below."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dsopt.ops.sparse_attention import OPERATOR, attend_selected, select, sparse_attention
from tests.ops.sparse_attention.oracle import Call
from tests.ops.sparse_attention.samples import added, padding, sample

FEW = {"budget": (5.0,), "unit": "keys", "tile": 4, "window": 1, "D": 3, "E": 2, "dtype": torch.float64}
CASES: dict[str, Call] = {
    "small": sample(17, 3, heads=1, bias=added(17), **FEW),
    "plain": sample(21, 6, **FEW),
    "causal": sample(21, causal="end", heads=1, **FEW),
    "more queries than keys": sample(17, 20, causal="end", heads=1, **FEW),
    "grouped": sample(20, 5, heads=4, shared=2, **FEW),
    "bias": sample(20, 5, bias=added(20, 2), **FEW),
    "masked": sample(40, 5, batch=2, bias=padding(40, 23, 0), **FEW),
    "bias and mask": sample(20, 5, bias=added(20).masked_fill(added(20, seed=3) > 1, -torch.inf), **FEW),
    "mixed budgets": sample(20, 5, heads=3, **{**FEW, "budget": (-1.0, 3.0, 12.0)}),
    "no picks": sample(40, 5, **{**FEW, "budget": (0.0,), "window": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_finite_differences(name: str) -> None:
    call = CASES[name]
    tensors = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    if call.bias is not None and call.bias.is_floating_point() and bool(call.bias.isfinite().all()):
        tensors.append(call.bias.clone().requires_grad_())

    def run(query: Tensor, key: Tensor, value: Tensor, *bias: Tensor) -> Any:
        return OPERATOR(query, key, value, bias[0] if bias else call.bias, *call.arguments[4:])

    # the fast mode looks in one direction; each in the case that is small
    assert torch.autograd.gradcheck(run, tensors, fast_mode=name != "small")


@pytest.mark.parametrize("name", CASES)
def test_torch_s_own_checks_pass(name: str) -> None:
    call = CASES[name]
    tensors = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    # not traced ahead of time: the gradient runs the reference again, which looks at numbers
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPERATOR, (*tensors, *call.arguments[3:]), test_utils=checks)


@pytest.mark.parametrize("causal", ["none", "start"])
def test_gradients_of_a_long_call_are_those_on_the_same_selection(causal: str) -> None:
    call = sample(
        600, 300, heads=3, causal=causal, bias=added(600, 3), budget=(20.0, -1.0, 7.0), unit="keys", dtype=torch.float64
    )
    selection, found = select(*call.arguments), []
    for function in (sparse_attention, lambda *given: attend_selected(selection, *given), OPERATOR):
        tensors = [each.clone().requires_grad_() for each in call.arguments[:4]]
        function(*tensors, *call.arguments[4:]).square().sum().backward()
        found.append([each.grad for each in tensors])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_keys_that_were_not_picked_have_a_gradient_through_their_node() -> None:
    call = dataclasses.replace(CASES["no picks"])
    value = call.value.clone().requires_grad_()
    OPERATOR(call.query, call.key, value, *call.arguments[3:]).sum().backward()
    assert value.grad is not None
    assert bool((value.grad > 0).all())
    # all keys of a node have the same weight
    assert bool((value.grad[0, 0, :32, 0] - value.grad[0, 0, 0, 0]).abs().max() < 1e-12)


def test_a_query_that_sees_nothing_has_no_gradient_and_no_number_that_is_none() -> None:
    call = CASES["masked"]
    tensors = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    OPERATOR(*tensors, *call.arguments[3:]).sum().backward()
    for each in tensors:
        assert each.grad is not None
        assert bool(each.grad.isfinite().all())
        assert not bool(each.grad[1].any())

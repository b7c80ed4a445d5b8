"""The dsopt:: operators: schema, shape rule and gradient agree with the reference, which agrees with torch.nn.functional."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsopt.ops import ACTIVATIONS, activate

PARAMS = {"clamp": [-0.5, 0.7], "leaky_relu": [0.2], "elu": [1.3]}
dsopt = torch.ops.dsopt


def _params(name: str) -> list[float]:
    return PARAMS.get(name, [])


def _double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_fused_operators_equal_their_parts(name: str) -> None:
    x, w, b = _double(2, 4, 7), _double(6, 2, 3), _double(6)
    got = dsopt.conv_act(x, w, b, [2], [1], [1], False, [0], 2, name, _params(name))
    assert torch.equal(got, activate(F.conv1d(x, w, b, 2, 1, 1, 2), name, _params(name)))
    transposed = dsopt.conv_act(x, _double(4, 3, 3), None, [2], [1], [1], True, [1], 1, name, _params(name))
    assert transposed.shape == (2, 3, 14)
    y, v = _double(3, 5), _double(4, 5)
    assert torch.equal(dsopt.linear_act(y, v, None, name, _params(name)), activate(F.linear(y, v), name, _params(name)))
    assert torch.equal(dsopt.add_act(y, y, name, _params(name)), activate(y + y, name, _params(name)))


def _samples() -> dict[str, tuple[Any, ...]]:
    return {
        "conv_act": (
            _double(1, 2, 4, 4),
            _double(3, 2, 2, 2),
            _double(3),
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            "gelu",
            [],
        ),
        "linear_act": (_double(2, 3), _double(4, 3), _double(4), "silu", []),
        "add_act": (_double(2, 3), _double(1, 3), "tanh", []),
    }


@pytest.mark.parametrize("name", sorted(_samples()))
def test_torch_s_own_checks_of_an_operator_pass(name: str) -> None:
    operator = getattr(dsopt, name).default
    torch.library.opcheck(operator, _samples()[name], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", sorted(_samples()))
def test_gradients_equal_finite_differences(name: str) -> None:
    sample = _samples()[name]
    tensors = [item for item in sample if isinstance(item, torch.Tensor)]
    rest = [item for item in sample if not isinstance(item, torch.Tensor)]
    assert torch.autograd.gradcheck(lambda *given: getattr(dsopt, name)(*given, *rest), tensors)


@pytest.mark.parametrize(("name", "params"), [("swishy", []), ("relu", [1.0]), ("clamp", [1.0])])
def test_an_unknown_activation_or_arity_is_refused(name: str, params: list[float]) -> None:
    with pytest.raises(ValueError, match="activation"):
        dsopt.add_act(torch.ones(1), torch.ones(1), name, params)

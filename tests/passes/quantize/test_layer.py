"""Layers as products of matrices: what torch's convolutions and linear layers give, whatever their geometry."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsopt import capture
from dsopt.passes.quantize.layer import Layer, layer_of


@st.composite
def geometries(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of one or two dims, direct or transposed, grouped, dilated, strided; and its input."""
    dims, transposed, groups = draw(st.sampled_from([1, 2])), draw(st.booleans()), draw(st.sampled_from([1, 2, 4]))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    padding = tuple(draw(st.integers(0, (size - 1) * far // 2)) for size, far in zip(kernel, dilation, strict=True))
    more = {"output_padding": tuple(max(size - 1, 0) for size in stride)} if transposed and draw(st.booleans()) else {}
    kinds = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
    }
    channels = (4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2)))
    layer = kinds[dims, transposed](
        *channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False, **more
    )
    return layer, torch.randn(2, channels[0], *[draw(st.integers(7, 9)) for _ in range(dims)])


def only_layer(model: nn.Module, x: Tensor) -> Layer:
    program = capture(model.eval(), (x,))
    (layer,) = (found for node in program.graph.nodes if (found := layer_of(program, node)) is not None)
    return layer


def agrees(layer: Layer, model: nn.Module, x: Tensor) -> None:
    weight = model.weight.detach()
    assert isinstance(weight, Tensor)
    matrices, wanted = layer.product_matrices(weight), layer.results(model(x).detach())
    torch.testing.assert_close(torch.einsum("pgk,gnk->pgn", layer.rows(x), matrices), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.from_product(matrices, weight), weight)


@given(geometries(), st.integers(0, 999))
@settings(max_examples=60)
def test_rows_times_matrices_are_what_a_convolution_gives(case: tuple[nn.Module, Tensor], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = case
    model, x = model.double(), torch.randn(x.shape, dtype=torch.float64)
    agrees(only_layer(model, x), model, x)


def test_rows_times_matrices_are_what_a_linear_layer_gives() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    for shape in ((5,), (4, 5), (2, 3, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        agrees(only_layer(model, x), model, x)


@given(geometries(), st.integers(0, 999))
@settings(max_examples=30)
def test_scaled_outputs_and_inputs_are_those_of_a_scaled_weight(case: tuple[nn.Module, Tensor], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = case
    model, x = model.double(), torch.randn(x.shape, dtype=torch.float64)
    layer, weight = only_layer(model, x), model.weight.detach().clone()
    assert isinstance(weight, Tensor)
    y = model(x).detach()
    after, before = (torch.rand(value.shape[1], dtype=torch.float64) + 0.5 for value in (y, x))
    spread = [1] * (x.dim() - 2)
    with torch.no_grad():
        model.weight.copy_(layer.scale_outputs(weight, after))  # type: ignore[operator]
        torch.testing.assert_close(model(x), y * after.reshape(-1, *spread), rtol=1e-12, atol=1e-12)
        model.weight.copy_(layer.scale_inputs(weight, 1 / before))  # type: ignore[operator]
        torch.testing.assert_close(model(x * before.reshape(-1, *spread)), y, rtol=1e-12, atol=1e-12)

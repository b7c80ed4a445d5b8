"""Integer operators of any shape, zero points and parameters, several drawn at a time: a compiler's run costs more than a case."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from tests.backends.tir.host_runner import run_on_host
from tests.backends.tir.integer_modules import (
    RANGES,
    Apply,
    Input,
    Recurrent,
    Settings,
    Weights,
    conv,
    integers,
    layer_norm,
    linear,
    lookup,
    softmax,
    tensor,
)

CASES = 6
"""Drawn cases in a program."""

Case = tuple[nn.Module, tuple[Tensor, ...]]


WIDTHS = st.sampled_from([8, 8, 16])


@st.composite
def setups(draw: st.DrawFn, x_bits: st.SearchStrategy[int] = WIDTHS) -> Settings:
    """Zero points anywhere, often at the ends; ranges often narrower than the type."""
    widths = draw(x_bits), draw(WIDTHS)
    zeros = [draw(st.sampled_from(RANGES[bits]) | st.integers(*RANGES[bits])) for bits in widths]
    low, high = RANGES[widths[1]]
    narrow = draw(st.none() | st.tuples(st.integers(low, 0), st.integers(1, high)))
    return Settings(draw(st.integers(0, 999)), *widths, *zeros, y_range=narrow)


weights = st.builds(Weights, st.sampled_from([4, 8]), st.sampled_from([0, 0, 1, 2, 3, 5]))


@st.composite
def convs(draw: st.DrawFn) -> Case:
    rank, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 3]))
    C_g, N_g = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    stride, dilation = ([draw(st.integers(1, 3)) for _ in range(rank)] for _ in range(2))
    padding = [draw(st.integers(0, 2)) for _ in range(rank)]
    transposed = draw(st.booleans())
    if transposed:
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        needed = [2 * p // s + 1 for p, s in zip(padding, stride, strict=True)]
    else:
        extra = [0] * rank
        needed = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    sizes = [least + draw(st.integers(0, 4)) for least in needed]
    s = draw(setups())
    C = groups * C_g
    shape = (C, N_g, *kernel) if transposed else (groups * N_g, C_g, *kernel)
    x = tensor(draw(st.integers(0, 99)), draw(st.integers(1, 2)), C, *sizes, bits=s.x_bits)
    model = conv(shape, s, draw(weights), stride=stride, padding=padding, dilation=dilation, groups=groups, transposed=transposed,
                 output_padding=extra, bias=draw(st.booleans()))  # fmt: skip
    return model, (x,)


@st.composite
def linears(draw: st.DrawFn) -> Case:
    N, K = draw(st.integers(1, 6)), draw(st.integers(1, 17))
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    s = draw(setups())
    return linear(N, K, s, draw(weights), bias=draw(st.booleans())), (tensor(s.seed, *leading, K, bits=s.x_bits),)


@st.composite
def adds(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    s, widths = draw(setups()), [draw(st.sampled_from([8, 16])) for _ in range(2)]
    operands = []
    for bits in widths:
        kept = [size if draw(st.booleans()) else 1 for size in shape]
        operands.append(tensor(draw(st.integers(0, 99)), *kept[draw(st.integers(0, len(shape) - 1)) :], bits=bits))
    zeros = [draw(st.integers(*RANGES[bits])) for bits in widths]
    factors = [draw(st.integers(-(1 << 20), 1 << 20)) for _ in range(2)]
    return Apply("q_add", Input(0), Input(1), *zeros, *factors, draw(st.integers(0, 30)), *s.output), tuple(operands)


@st.composite
def lookups(draw: st.DrawFn) -> Case:
    s = draw(setups())
    random = np.random.default_rng(s.seed)
    x = tensor(s.seed, *draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)), bits=s.x_bits)
    if s.x_bits == 8:
        return lookup(integers(random, (256,), s.bits), 0, s), (x,)
    shift = draw(st.integers(0, 15))
    table = integers(random, (513,), 16, draw(st.sampled_from([np.int16, np.int32])))
    return lookup(table * (1 << shift) if table.dtype == np.int32 else table, shift, s), (x,)


@st.composite
def softmaxes(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    x_bits, bits = draw(st.sampled_from([8, 16])), draw(st.sampled_from([8, 16]))
    x = tensor(draw(st.integers(0, 99)), *shape, bits=x_bits)
    scale = draw(st.floats(1e-3, 1.0)) / (256 if x_bits == 16 else 1)
    if draw(st.booleans()):
        return softmax(axis, shape[axis], x_bits, bits, scale), (x,)
    kept = [size if draw(st.booleans()) else 1 for size in shape][draw(st.integers(0, len(shape) - 1)) :]
    mask = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).random(kept) > 0.4)
    return softmax(axis, shape[axis], x_bits, bits, scale, mask=Input(1)), (x, mask)


@st.composite
def layer_norms(draw: st.DrawFn) -> Case:
    s, count = draw(setups()), draw(st.integers(1, 40))
    x = tensor(s.seed, draw(st.integers(1, 4)), count, bits=s.x_bits)
    x = x // draw(st.sampled_from([1, 1, 20, 1000]))
    epsilon = draw(st.sampled_from([1, 2, 1000, 1 << 40]))
    return layer_norm(count, s, epsilon=epsilon, extra_bits=draw(st.integers(0, 12))), (x,)


@st.composite
def recurrents(draw: st.DrawFn) -> Case:
    I, H, T, B = (draw(st.integers(1, 5)) for _ in range(4))  # noqa: E741
    s = draw(setups(st.just(8)))
    s = Settings(s.seed, 8, 8, s.x_zero, s.y_zero % 256 - 128)
    options = [draw(st.booleans()) for _ in range(3)]
    layer = Recurrent(I, H, s, draw(st.sampled_from([4, 8])), draw(st.integers(5, 15)), *options)
    shape = (B, T, I) if layer.batch_first else (T, B, I)
    state = [tensor(s.seed + n, B, H, bits=bits) for n, bits in enumerate((8, 16))]
    return layer.lstm() if draw(st.booleans()) else layer.gru(), (tensor(s.seed, *shape), *state)


class Drawn(nn.Module):
    """Cases with inputs of their own in one program."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.models = nn.ModuleList([model for model, _ in cases])
        self.counts = [len(inputs) for _, inputs in cases]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = iter(inputs)
        return tuple(
            model(*(next(given) for _ in range(count))) for model, count in zip(self.models, self.counts, strict=True)
        )


KINDS = {"conv": convs(), "linear": linears(), "add": adds(), "lookup": lookups(), "softmax": softmaxes(), "layer_norm": layer_norms(),
         "recurrent": recurrents()}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_case_gives_the_bits_of_the_reference(kind: str) -> None:
    @given(st.lists(KINDS[kind], min_size=1, max_size=CASES))
    @settings(max_examples=5)
    def check(cases: list[Case]) -> None:
        model, inputs = Drawn(cases), tuple(x for _, given in cases for x in given)
        program = dsopt.capture(model.eval(), inputs)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            outputs, _ = run_on_host(program, inputs, Path(folder))
            wanted = program.run(*inputs)
        for (each, _), got, want in zip(cases, outputs, wanted, strict=True):
            assert got.shape == tuple(want.shape)
            np.testing.assert_array_equal(got, want.numpy(), err_msg=str(each.arguments))

    check()

"""Layers for the fast kernels of cores: tails of pixels, channels and inputs, borders, strides, clamps and zero points at both ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.emitter import Emitter
from dsopt.ir import Program
from dsopt.ops.rounding import multiplier_and_shift
from dsopt.target import McuTarget
from tests.backends.tir.integer_modules import Apply, Settings, Weights, conv, integers, linear

LOW, HIGH = Settings(1, x_zero=-128, y_zero=127), Settings(2, x_zero=127, y_zero=-128)
RELU, NARROW = Settings(3, y_zero=-128, y_range=(-128, 127)), Settings(4, y_zero=-20, y_range=(-20, 90))
NIBBLES = Weights(4)
DEEP = Settings(10, bits=16, x_zero=3, y_zero=-30000)
WIDE = Settings(9, bits=16, x_zero=11, y_zero=-700)
PLAIN, FULL = Settings(5), Settings(6, x_zero=-128, y_zero=-128)


def layers(*functions: Apply) -> tuple[Apply, ...]:
    return functions


def chained(C: int, function: Apply) -> tuple[Apply, ...]:
    """Behind a convolution, whose result has its channels last."""
    return conv((C, C, 1, 1), Settings(C)), function


def steep(function: Apply) -> Apply:
    """Give a layer scales around a half and one, so that most results are at the ends of the range, and some are not."""
    shift = function.t4
    assert isinstance(shift, Tensor)
    function.t4 = torch.tensor([29, 31, 32, 33] * len(shift), dtype=torch.int32)[: len(shift)]
    return function


def flat(function: Apply, bits: int) -> Apply:
    """Give a layer scales so small that results hardly leave the zero point."""
    shift = function.t4
    assert isinstance(shift, Tensor)
    function.t4 = torch.full_like(shift, bits)
    return function


class Residual(nn.Module):
    """A convolution, and a sum with its own input or with another layer's result."""

    def __init__(self, C: int, kernel: int, s: Settings, clamp: tuple[int, int], other: bool) -> None:
        super().__init__()
        self.first = conv((C, C, 1, 1), Settings(C + 1))
        self.conv = conv((C, C, kernel, kernel), s, padding=(kernel // 2,))
        self.other = conv((C, C, 1, 1), Settings(C + 2)) if other else None
        self.clamp = clamp

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        residual = self.other(x) if self.other is not None else x
        return torch.ops.dsopt.q_add(self.conv(x), residual, 5, 5, 700_001, -450_000, 20, -7, *self.clamp, 8)


class Parts(nn.Module):
    """Parts of an image, first of one whose channels lie apart, then of one with channels last: cut in rows and columns, and joined."""

    def __init__(self, C: int, N: int) -> None:
        super().__init__()
        self.first, self.top, self.low = (
            conv((N, C, 1, 1), Settings(3)),
            *(conv((N, N, 1, 1), Settings(n)) for n in (4, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x[:, :, 1:])
        top, low = self.top(y[:, :, :2]), self.low(y[:, :, 1:, 1:])
        kept = torch.cat([y[:, :, 2:4], top, y[:, :, -1:]], 2)
        return torch.cat([kept[:, :, :, 1:], low], 2)


class Product(nn.Module):
    """Two halves of the input as matrices, (batch, M, K) and (batch, K, N)."""

    def __init__(self, M: int, K: int, N: int, zeros: tuple[int, int], s: Settings) -> None:
        super().__init__()
        self.sizes, self.zeros, self.output = (M, K, N), zeros, s.output
        deviation = np.array([K**0.5 * 256**2 / 12])
        multiplier, shift = multiplier_and_shift(s.factors(deviation, s.random))
        self.scale = int(multiplier[0]), int(shift[0])

    def forward(self, x: Tensor) -> Tensor:
        M, K, N = self.sizes
        a, b = x[0, :, : M * K].reshape(-1, M, K), x[0, :, M * K :].reshape(-1, K, N)
        return torch.ops.dsopt.q_matmul(a, b, *self.zeros, *self.scale, *self.output, False)


def product(batch: int, M: int, K: int, N: int, zeros: tuple[int, int], s: Settings) -> Case:
    return (Product(M, K, N, zeros, s),), (batch, M * K + K * N)


Case = tuple[Sequence[nn.Module], tuple[int, ...]]

CASES: dict[str, Case] = {
    "one": (layers(conv((8, 16, 1, 1), RELU)), (16, 5, 7)),
    "one_tails": (chained(20, conv((6, 20, 1, 1), LOW)), (20, 3, 3)),
    "one_odd": (layers(conv((5, 3, 1, 1), HIGH)), (3, 4, 5)),
    "one_pixel": (layers(conv((12, 32, 1, 1), NARROW)), (32, 1, 1)),
    "one_two_pixels": (chained(16, conv((4, 16, 1, 1))), (16, 1, 2)),
    "one_long": (chained(160, conv((4, 160, 1, 1), FULL)), (160, 2, 4)),
    "one_stride": (chained(24, conv((8, 24, 1, 1), LOW, stride=(2,))), (24, 5, 6)),
    "stem": (layers(conv((8, 3, 3, 3), RELU, stride=(2,), padding=(1,))), (3, 9, 8)),
    "gray": (layers(conv((8, 1, 10, 4), HIGH, stride=(2,), padding=(5, 1))), (1, 13, 6)),
    "padded": (chained(16, conv((16, 16, 3, 3), LOW, padding=(1,))), (16, 5, 8)),
    "padded_deep": (chained(36, conv((8, 36, 3, 3), HIGH, padding=(1,))), (36, 4, 8)),
    "padded_odd": (chained(6, conv((7, 6, 3, 3), FULL, padding=(1,))), (6, 6, 5)),
    "whole": (chained(12, conv((8, 12, 3, 3), NARROW)), (12, 5, 5)),
    "even": (chained(8, conv((8, 8, 2, 2), stride=(2,))), (8, 6, 6)),
    "dilated": (chained(8, conv((4, 8, 3, 3), LOW, padding=(2,), dilation=(2,))), (8, 7, 6)),
    "five": (chained(4, conv((4, 4, 5, 5), RELU, padding=(2,))), (4, 6, 7)),
    "uneven": (chained(8, conv((4, 8, 3, 5), HIGH, stride=(2, 1), padding=(1, 0))), (8, 7, 8)),
    "row": (chained(16, conv((8, 16, 1, 3), LOW, padding=(0, 1))), (16, 2, 9)),
    "in_time": (layers(conv((8, 6, 5), HIGH, padding=(2,))), (6, 11)),
    "in_time_deep": (layers(conv((16, 16, 1)), conv((12, 16, 3), FULL, stride=(2,), padding=(1,))), (16, 10)),
    "depth": (chained(8, conv((8, 1, 3, 3), RELU, padding=(1,), groups=8)), (8, 6, 7)),
    "depth_tall": (chained(4, conv((4, 1, 3, 3), LOW, padding=(1,), groups=4)), (4, 25, 5)),
    "depth_wide": (chained(4, conv((4, 1, 3, 3), HIGH, padding=(1,), groups=4)), (4, 3, 40)),
    "depth_stride": (chained(12, conv((12, 1, 3, 3), NARROW, stride=(2,), padding=(1,), groups=12)), (12, 9, 10)),
    "depth_column": (chained(5, conv((5, 1, 3, 3), FULL, padding=(1,), groups=5)), (5, 6, 1)),
    "depth_whole": (layers(conv((3, 1, 3, 3), LOW, groups=3)), (3, 7, 6)),
    "depth_uneven": (chained(6, conv((6, 1, 2, 4), HIGH, stride=(1, 2), padding=(1, 0), groups=6)), (6, 5, 9)),
    "depth_five": (chained(4, conv((4, 1, 5, 5), LOW, padding=(2,), groups=4)), (4, 7, 6)),
    "depth_dilated": (chained(4, conv((4, 1, 3, 3), FULL, padding=(2,), dilation=(2,), groups=4)), (4, 6, 8)),
    "depth_in_time": (layers(conv((6, 1, 3), RELU, padding=(1,), groups=6)), (6, 13)),
    "depth_multiplier": (chained(4, conv((12, 1, 3, 3), RELU, padding=(1,), groups=4)), (4, 5, 6)),
    "depth_of_one": (layers(conv((6, 1, 3, 3), LOW, stride=(2,), padding=(1,))), (1, 7, 6)),
    "grouped": (chained(8, conv((12, 4, 3, 3), HIGH, padding=(1,), groups=2)), (8, 5, 4)),
    "grouped_odd": (layers(conv((9, 2, 1, 1), FULL, groups=3)), (6, 3, 4)),
    "residual": (layers(Residual(8, 3, PLAIN, (-128, 127), False)), (8, 4, 8)),
    "residual_relu": (layers(Residual(16, 3, NARROW, (-7, 127), True)), (16, 4, 5)),
    "residual_one": (layers(Residual(12, 1, FULL, (-50, 60), False)), (12, 2, 4)),
    "residual_tails": (layers(Residual(8, 3, LOW, (-128, 127), True)), (8, 3, 5)),
    "residual_odd": (layers(Residual(5, 1, HIGH, (-128, 127), False)), (5, 2, 3)),
    "parts": (layers(Parts(3, 8)), (3, 7, 9)),
    "parts_scattered": (layers(Parts(2, 5)), (2, 6, 11)),
    "parts_wide": (layers(Parts(4, 12)), (4, 9, 24)),
    "product": product(2, 8, 16, 12, (-3, 7), NARROW),
    "product_tails": product(3, 5, 12, 7, (-128, 127), LOW),
    "product_plain": product(1, 4, 32, 6, (5, 0), RELU),
    "product_low": product(2, 3, 64, 4, (127, -128), HIGH),
    "product_16": product(2, 6, 16, 9, (4, -9), WIDE),
    "vector_16_flat": (layers(flat(linear(6, 24, DEEP), 46)), (24,)),
    "vectors_16_flat": (layers(flat(linear(6, 24, DEEP, NIBBLES), 42)), (5, 24)),
    "vector_16": (layers(linear(7, 30, WIDE)), (30,)),
    "vectors_16": (layers(linear(6, 20, WIDE)), (6, 20)),
    "vector_16_nibbles": (layers(linear(5, 40, WIDE, NIBBLES)), (40,)),
    "vector": (layers(linear(8, 16, RELU)), (16,)),
    "vector_tails": (layers(linear(5, 13, LOW)), (13,)),
    "vector_long": (layers(linear(16, 163, HIGH)), (163,)),
    "vector_in_place": (layers(linear(24, 640, FULL), linear(8, 24, NARROW)), (640,)),
    "vectors_two": (layers(linear(6, 20, FULL)), (2, 20)),
    "vectors": (layers(linear(6, 20, NARROW)), (7, 20)),
    "steep": (layers(steep(conv((8, 16, 1, 1), LOW))), (16, 3, 5)),
    "steep_depth": (layers(steep(conv((8, 1, 3, 3), HIGH, padding=(1,), groups=8))), (8, 5, 6)),
    "steep_vector": (layers(steep(linear(8, 5, NARROW))), (5,)),
    "steep_nibbles": (layers(steep(conv((8, 8, 1, 1), FULL, NIBBLES))), (8, 3, 4)),
    "steep_vector_nibbles": (layers(steep(linear(4, 8, FULL, NIBBLES))), (8,)),
    "one_nibbles": (chained(64, conv((8, 64, 1, 1), RELU, NIBBLES)), (64, 3, 5)),
    "padded_nibbles": (chained(16, conv((16, 16, 3, 3), LOW, NIBBLES, padding=(1,))), (16, 5, 8)),
    "padded_nibbles_odd": (chained(12, conv((6, 12, 3, 3), HIGH, NIBBLES, padding=(1,))), (12, 4, 5)),
    "long_nibbles": (chained(32, conv((4, 32, 3, 3), FULL, NIBBLES, padding=(1,))), (32, 4, 4)),
    "stem_nibbles": (layers(conv((8, 3, 3, 3), NARROW, NIBBLES, stride=(2,), padding=(1,))), (3, 9, 8)),
    "depth_nibbles": (chained(8, conv((8, 1, 3, 3), RELU, NIBBLES, padding=(1,), groups=8)), (8, 6, 7)),
    "vector_nibbles": (layers(linear(8, 48, LOW, NIBBLES)), (48,)),
    "vector_nibbles_tails": (layers(linear(5, 45, HIGH, NIBBLES)), (45,)),
    "vector_nibbles_short": (layers(linear(4, 10, FULL, NIBBLES)), (10,)),
    "vector_nibbles_long": (layers(linear(4, 176, FULL, NIBBLES)), (176,)),
    "vectors_nibbles": (layers(linear(6, 20, NARROW, NIBBLES)), (7, 20)),
    "vectors_few": (layers(linear(10, 7, LOW)), (3, 7)),
}  # fmt: skip


def random_cases(seed: int, count: int) -> dict[str, Case]:
    """Return layers of any geometry: convolutions of every kind, and products of one row or several."""
    random = np.random.default_rng(seed)
    return {f"random_{seed}_{number}": _random_case(random, number) for number in range(count)}


def _random_case(random: np.random.Generator, number: int) -> Case:
    low, high = sorted(random.choice([-128, -100, -20, 0, 60, 127], 2, replace=False).tolist())
    zero = int(random.integers(-128, 128))
    s = Settings(
        int(random.integers(1 << 16)), x_zero=zero, y_zero=int(random.integers(low, high + 1)), y_range=(low, high)
    )
    weights = Weights(4) if random.random() < 0.2 else Weights()
    if random.random() < 0.25:
        rows, K, N = int(random.integers(1, 9)), int(random.integers(1, 90)), int(random.integers(1, 20))
        return layers(linear(N, K, s, weights)), (rows, K)
    C = int(random.choice([1, 2, 3, 4, 7, 8, 12, 16, 20, 33]))
    depthwise = random.random() < 0.35
    kernel = random.integers(1, 5, 2).tolist()
    stride, dilation = (random.choice([1, 1, 2], 2).tolist() for _ in range(2))
    reach = [(size - 1) * by + 1 for size, by in zip(kernel, dilation, strict=True)]
    before, after = ([int(random.integers(0, size)) for size in reach] for _ in range(2))
    side = [int(random.integers(max(1, r - b - a), r + 9)) for r, b, a in zip(reach, before, after, strict=True)]
    N = C if depthwise else int(random.integers(1, 20))
    padding = tuple(before if before == after else before + after)
    layer = conv((N, 1 if depthwise else C, *kernel), s, weights, stride=stride, dilation=dilation, groups=C if depthwise else 1,
                 padding=padding if len(padding) > 1 else (0,))  # fmt: skip
    return (chained(C, layer) if number % 2 else layers(layer)), (C, *side)


BEYOND: dict[str, Case] = {
    "vector_16": (layers(flat(linear(6, 24, DEEP), 47)), (24,)),
    "vectors_16_nibbles": (layers(flat(linear(6, 24, DEEP, NIBBLES), 43)), (5, 24)),
    "vector": (layers(flat(linear(6, 24, HIGH), 55)), (24,)),
}
"""Layers whose zero point, shifted by one bit more than kernels take, would leave 32 bits."""


_IN_BATCHES = (
    "one", "one_tails", "one_odd", "one_stride", "stem", "gray", "padded", "padded_odd", "dilated", "in_time_deep", "depth",
    "depth_stride", "depth_multiplier", "depth_five", "depth_whole", "depth_of_one", "grouped", "residual", "residual_relu",
    "residual_tails", "residual_odd", "one_nibbles", "padded_nibbles_odd", "vector", "vectors_few",
)  # fmt: skip
BATCHED: dict[str, Case] = {
    **{name: CASES[name] for name in _IN_BATCHES},
    **random_cases(300, 12),
    "depth_grown": (chained(4, conv((4, 1, 3, 3), LOW, padding=(2,), groups=4)), (4, 5, 6)),
}
"""Layers for several images at a time. The last makes larger images of its inputs, so that it must not be written over them."""


class Joined(nn.Module):
    """All cases side by side: one image holds them."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(nn.Sequential(*functions) for functions, _ in cases.values())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(case(x) for case, x in zip(self.cases, inputs, strict=True))


def inputs_of(cases: Mapping[str, Case], seed: int, batch: int = 1) -> tuple[Tensor, ...]:
    """Return an input for each case: of the whole range for even seeds, else of nothing but its ends."""
    random = np.random.default_rng(seed)
    shapes = [(batch, *shape) for _, shape in cases.values()]
    arrays = [integers(random, shape) if seed % 2 == 0 else random.choice([-128, 127], shape) for shape in shapes]
    return tuple(torch.from_numpy(array.astype(np.int8)) for array in arrays)


def program_of(cases: Mapping[str, Case], batch: int = 1) -> Program:
    """Return the cases as one program, with each sum in the store of its convolution."""
    program = dsopt.capture(Joined(cases).eval(), inputs_of(cases, 0, batch))
    return dsopt.PassManager(dsopt.parse_pipeline("fold-padding,fuse-residual")).run(program)[0]


def usual(program: Program, target: McuTarget, options: EmitOptions | None = None) -> Artifact:
    """Compile with the usual kernels: to try all ways to write so many layers takes long, and test_chosen.py does it for some."""
    emitter = Emitter(target, options or EmitOptions())
    return emitter.build(emitter.place(program)).artifact

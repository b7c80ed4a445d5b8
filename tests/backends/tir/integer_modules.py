"""Integer operators as modules: their constant tensors are weights, their random parameters give results that fill the range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsopt.ops.integer.common import pack_nibbles, stored_weight
from dsopt.ops.integer.normalization import FINE_BITS, NORM_BITS
from dsopt.ops.integer.recurrent import SIGMOID, TANH
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, MULTIPLIER_BITS, WIDE_MULTIPLIER_BITS, multiplier_and_shift

Array = np.ndarray[Any, Any]
RANGES = {8: (-128, 127), 16: (-32768, 32767)}


@dataclass(frozen=True)
class Input:
    """Stands for one of the inputs of a family among the arguments of an operator."""

    index: int = 0


FIRST, SECOND, THIRD = map(Input, range(3))


class Apply(nn.Module):
    """One operator on inputs and constants. Several results become one: flattened, joined, as int16."""

    def __init__(self, operator: str, *arguments: Any) -> None:
        super().__init__()
        self.operator = getattr(torch.ops.dsopt, operator)
        self.arguments = list(arguments)
        for number, value in enumerate(arguments):
            if isinstance(value, np.ndarray):
                self.register_buffer(f"t{number}", torch.from_numpy(value.copy()))

    def forward(self, *inputs: Tensor) -> Tensor:
        given = []
        for number, value in enumerate(self.arguments):
            if isinstance(value, Input):
                given.append(inputs[value.index])
            else:
                given.append(getattr(self, f"t{number}") if isinstance(value, np.ndarray) else value)
        result = self.operator(*given)
        return torch.cat([each.flatten().to(torch.int16) for each in result]) if isinstance(result, tuple) else result


def integers(random: np.random.Generator, shape: Sequence[int], bits: int = 8, dtype: Any = None) -> Array:
    """Return integers of the whole range, its ends among them."""
    low, high = RANGES[bits] if bits > 4 else (-8, 7)
    values = random.integers(low, high + 1, tuple(shape))
    if values.size > 1:
        values.flat[0], values.flat[-1] = low, high
    return values.astype(dtype or (np.int16 if bits == 16 else np.int8))


def tensor(seed: int, *shape: int, bits: int = 8) -> Tensor:
    return torch.from_numpy(integers(np.random.default_rng(seed), shape, bits))


@dataclass(frozen=True)
class Settings:
    """What most operators have: zero points, ranges and widths. y_range: narrower than the type, as a fused ReLU makes it."""

    seed: int = 0
    x_bits: int = 8
    bits: int = 8
    x_zero: int = -3
    y_zero: int = 5
    y_range: tuple[int, int] | None = None

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def output(self) -> tuple[int, int, int, int]:
        """Return y_zero, low, high and bits."""
        low, high = self.y_range or RANGES[self.bits]
        return self.y_zero, low, high, self.bits

    @property
    def centre(self) -> float:
        """Return the middle of the range, from the zero point."""
        low, high = self.y_range or RANGES[self.bits]
        return (low + high) / 2 - self.y_zero

    def factors(self, deviation: Array, random: np.random.Generator) -> Array:
        """Return real factors that make a deviation of each sum about a third of the range."""
        low, high = self.y_range or RANGES[self.bits]
        wanted = (high - low) / 6 / np.maximum(deviation, 1.0) * random.uniform(0.5, 2.0, deviation.shape)
        result: Array = np.minimum(wanted, 3.9)
        return result


@dataclass(frozen=True)
class Weights:
    """How weights are stored. group: inputs that share a factor; 0 for none."""

    bits: int = 8
    group: int = 0

    def stored(self, random: np.random.Generator, shape: Sequence[int]) -> tuple[Array, Array | None, Array]:
        """Return the stored weight, the factors of its groups, and the values, each times its factor, as float64."""
        values = integers(random, shape, self.bits)
        stored = pack_nibbles(values) if self.bits == 4 else values
        if not self.group:
            return stored, None, values.astype(np.float64)
        factors = random.integers(1, 256, (shape[0], math.ceil(shape[1] / self.group))).astype(np.uint8)
        return stored, factors, stored_weight(stored, shape, self.bits, factors, self.group).astype(np.float64)


DEFAULT, PLAIN = Settings(), Weights()


def _scales(
    s: Settings, random: np.random.Generator, rows: Array, wide: bool | None
) -> tuple[Array, Array, Array, bool]:
    """Return bias, multiplier and shift for sums over rows of weights, and whether the sums are int64: where they must, unless given."""
    rows = rows.reshape(len(rows), -1)
    deviation = np.sqrt((rows**2).sum(1)) * 2.0**s.x_bits / math.sqrt(12)
    factor = s.factors(deviation, random)
    bias = rows.sum(1) * (s.x_zero + 0.5) + s.centre / np.maximum(factor, 1e-12)
    bias = np.clip(bias, -(2.0**31), 2.0**31 - 1).astype(np.int32)
    largest = np.abs(rows).sum(1) * 2.0**s.x_bits + np.abs(bias.astype(np.float64))
    wide = bool(largest.max() >= ACCUMULATOR_LIMIT) if wide is None else wide
    return bias, *multiplier_and_shift(factor, WIDE_MULTIPLIER_BITS if wide else MULTIPLIER_BITS), wide


def linear(
    N: int, K: int, s: Settings = DEFAULT, w: Weights = PLAIN, x: Input = FIRST, bias: bool = True, wide: bool | None = None
) -> Apply:  # fmt: skip
    random = s.random
    stored, factors, values = w.stored(random, (N, K))
    b, multiplier, shift, is_wide = _scales(s, random, values, wide)
    return Apply("q_linear", x, stored, b if bias else None, multiplier, shift, factors, w.group, [N, K], w.bits, s.x_zero, *s.output,
                 is_wide)  # fmt: skip


def conv(
    shape: Sequence[int], s: Settings = DEFAULT, w: Weights = PLAIN, x: Input = FIRST, *, stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), groups: int = 1, transposed: bool = False,
    output_padding: Sequence[int] = (0,), bias: bool = True, wide: bool | None = None,
) -> Apply:  # fmt: skip
    """shape: of the weight, (N, C / groups, *kernel), or (C, N / groups, *kernel) when transposed."""
    random, rank = s.random, len(shape) - 2
    stored, factors, values = w.stored(random, shape)
    if transposed:
        values = values.reshape(groups, shape[0] // groups, shape[1], -1).swapaxes(1, 2)
        values = values.reshape(groups * shape[1], -1)
    b, multiplier, shift, is_wide = _scales(s, random, values, wide)
    spreads = [
        list(each) * rank if len(each) == 1 else list(each) for each in (stride, padding, dilation, output_padding)
    ]
    return Apply("q_conv", x, stored, b if bias else None, multiplier, shift, factors, w.group, list(shape), w.bits, *spreads[:3],
                 transposed, spreads[3], groups, s.x_zero, *s.output, is_wide)  # fmt: skip


def softmax(
    axis: int,
    size: int,
    x_bits: int = 8,
    bits: int = 8,
    scale: float = 0.05,
    x: Input = FIRST,
    mask: Input | None = None,
) -> Apply:
    """Tables of exp for steps of `scale`; T as large as a row of `size` allows."""
    T = min(22, 29 - math.ceil(math.log2(size))) if bits == 8 else 22
    steps = np.arange(256)
    coarse = np.rint(np.exp(-steps * scale * (256 if x_bits == 16 else 1)) * 2**T).astype(np.int32)
    fine = np.rint(np.exp(-steps * scale) * 2**FINE_BITS).astype(np.int32) if x_bits == 16 else None
    return Apply("q_softmax", x, coarse, fine, mask, axis, bits)


def layer_norm(count: int, s: Settings = DEFAULT, x: Input = FIRST, epsilon: int = 1, extra_bits: int = 10) -> Apply:
    """Weights of about 30 steps for a deviation of 1."""
    random = s.random
    full = RANGES[s.bits][1] / 4 * 2.0 ** (31 - NORM_BITS + extra_bits)
    multiplier = np.clip(random.normal(1, 0.5, count) * full, -(2**31), 2**31 - 1).astype(np.int32)
    offset = np.rint(random.normal(0, 10, count) * 2**extra_bits).astype(np.int32)
    return Apply("q_layer_norm", x, multiplier, offset, count, epsilon, extra_bits, *s.output)


def lookup(table: Array, shift: int, s: Settings = DEFAULT, x: Input = FIRST) -> Apply:
    return Apply("q_lookup", x, table, shift, *s.output)


@dataclass(frozen=True)
class Recurrent:
    """Sizes and options of a recurrent layer; I inputs, H units."""

    I: int  # noqa: E741
    H: int
    s: Settings = field(default_factory=Settings)
    weight_bits: int = 8
    cell_bits: int = 11
    bias: bool = True
    batch_first: bool = False
    reverse: bool = False

    def _params(self, gates: int, random: np.random.Generator) -> tuple[list[Array], list[Array | None], list[Array]]:
        rows = gates * self.H
        weights = [integers(random, (rows, width), self.weight_bits) for width in (self.I, self.H)]
        stored = [pack_nibbles(each) if self.weight_bits == 4 else each for each in weights]
        biases = [random.integers(-3000, 3000, rows).astype(np.int32) if self.bias else None for _ in range(2)]
        scales: list[Array] = []
        for width in (self.I, self.H):
            largest = math.sqrt(width) * (8 if self.weight_bits == 4 else 128) * 64
            scales += multiplier_and_shift(np.minimum(16384 / largest * random.uniform(0.3, 2.0, rows), 3.9))
        return stored, biases, scales

    def lstm(self, x: Input = FIRST, h0: Input = SECOND, c0: Input = THIRD) -> Apply:
        stored, biases, scales = self._params(4, self.s.random)
        y_multiplier, y_shift = multiplier_and_shift([126 / 2.0**30])
        return Apply("q_lstm", x, h0, c0, *stored, biases[0], *scales, SIGMOID, TANH, self.s.x_zero, self.s.y_zero, self.weight_bits,
                     self.cell_bits, int(y_multiplier[0]), int(y_shift[0]), self.batch_first, self.reverse)  # fmt: skip

    def gru(self, x: Input = FIRST, h0: Input = THIRD) -> Apply:
        stored, biases, scales = self._params(3, self.s.random)
        y_multiplier, y_shift = multiplier_and_shift([126 / 2.0**15])
        return Apply("q_gru", x, h0, *stored, *biases, *scales, SIGMOID, TANH, self.s.x_zero, self.s.y_zero, self.weight_bits,
                     int(y_multiplier[0]), int(y_shift[0]), self.batch_first, self.reverse)  # fmt: skip

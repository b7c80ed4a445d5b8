"""The families of integer operators: inputs, and a module for each case. What they must give are the NumPy references' bits."""

from __future__ import annotations

import numpy as np
import torch

from dsopt.ops.rounding import MAX_SHIFT, MIN_SHIFT, MULTIPLIER_BITS, WIDE_MULTIPLIER_BITS, multiplier_and_shift
from tests.backends.tir.case import Family, Function
from tests.backends.tir.integer_modules import (
    DEFAULT,
    FIRST,
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
from tests.backends.tir.quantize_cases import QUANTIZE_FAMILIES

LOW, HIGH = Settings(1, x_zero=-128, y_zero=127), Settings(2, x_zero=127, y_zero=-128)
RELU = Settings(3, y_zero=-20, y_range=(-20, 90))
TO_16, FROM_16 = Settings(4, bits=16, y_zero=-700), Settings(5, x_bits=16, x_zero=1234)
IN_16 = Settings(6, x_bits=16, bits=16, x_zero=-32768, y_zero=32767)
BOTTOM, TOP = Settings(7, x_zero=-128, y_zero=-128), Settings(8, x_zero=127, y_zero=127)
BOTTOM_16 = Settings(9, x_bits=16, bits=16, x_zero=-32768, y_zero=-32768)
INT4 = Weights(4)


def _grouped(group: int, bits: int = 4) -> Weights:
    return Weights(bits, group)


FRAMES = Input(1)  # (B, C, T) next to the images of Input(0)
IMAGES_16 = Input(2)

CONV: dict[str, Function] = {
    "plain": conv((5, 6, 3, 3)),
    "padded": conv((5, 6, 3, 3), LOW, padding=(1,)),
    "padded_high": conv((5, 6, 3, 3), HIGH, padding=(1,)),
    "relu": conv((4, 6, 3, 3), RELU, stride=(2,), padding=(1,)),
    "one": conv((7, 6, 1, 1)),
    "one_padded": conv((3, 6, 1, 1), LOW, padding=(1,)),
    "one_stride": conv((3, 6, 1, 1), stride=(2,)),
    "no_bias": conv((1, 6, 3, 3), bias=False),
    "depthwise": conv((6, 1, 3, 3), HIGH, padding=(1,), groups=6),
    "multiplier": conv((12, 1, 3, 3), padding=(1,), groups=6),
    "grouped": conv((9, 2, 3, 3), padding=(1,), groups=3),
    "dilated": conv((4, 6, 3, 3), LOW, padding=(2,), dilation=(2,)),
    "dilated_stride": conv((4, 6, 3, 3), stride=(2,), padding=(3,), dilation=(3,)),
    "uneven": conv((4, 6, 1, 5), stride=(2, 1), padding=(0, 2)),
    "wide_pad": conv((4, 6, 2, 2), HIGH, padding=(3,)),
    "large": conv((4, 6, 9, 7)),
    "one_dim": conv((4, 6, 5), x=FRAMES, padding=(2,)),
    "one_dim_dilated": conv((6, 3, 3), LOW, x=FRAMES, padding=(4,), dilation=(4,), groups=2),
    "one_dim_stride": conv((4, 6, 4), x=FRAMES, stride=(3,)),
    "int4": conv((5, 6, 3, 3), LOW, INT4, padding=(1,)),
    "int4_depthwise": conv((6, 1, 3, 3), HIGH, INT4, padding=(1,), groups=6),
    "int4_one_dim": conv((3, 6, 5), w=INT4, x=FRAMES, padding=(2,)),
    "factors": conv((5, 6, 3, 3), LOW, _grouped(4), padding=(1,)),
    "factors_whole": conv((5, 6, 1, 1), w=_grouped(3)),
    "factors_int8": conv((5, 6, 3, 1), HIGH, _grouped(2, 8)),
    "factors_one": conv((6, 1, 3, 3), w=_grouped(8), groups=6),
    "to_16": conv((4, 6, 3, 3), TO_16, padding=(1,)),
    "from_16": conv((4, 6, 3, 3), FROM_16, x=IMAGES_16, padding=(1,)),
    "in_16": conv((4, 6, 3, 3), IN_16, x=IMAGES_16, padding=(1,), wide=True),
    "in_16_factors": conv((4, 6, 3, 3), IN_16, _grouped(4), IMAGES_16),
    "transposed": conv((6, 4, 2, 2), stride=(2,), transposed=True),
    "transposed_pad": conv((6, 4, 3, 3), LOW, stride=(2,), padding=(1,), transposed=True, output_padding=(1,)),
    "transposed_groups": conv((6, 2, 3, 3), HIGH, groups=2, transposed=True),
    "transposed_dilated": conv((6, 3, 3, 3), stride=(2,), padding=(2,), dilation=(2,), transposed=True),
    "transposed_one_dim": conv((6, 4, 4), x=FRAMES, stride=(2,), padding=(1,), transposed=True),
    "transposed_uneven": conv((6, 4, 3, 2), stride=(3, 1), padding=(1, 0), transposed=True, output_padding=(2, 0)),
    "transposed_int4": conv((6, 3, 3, 3), w=INT4, stride=(2,), transposed=True),
    "transposed_factors": conv((6, 5, 3, 3), w=_grouped(2), stride=(2,), transposed=True),
    "transposed_in_16": conv((6, 4, 3, 3), IN_16, x=IMAGES_16, transposed=True, wide=True),
    "transposed_factors_16": conv((6, 4, 3, 3), IN_16, _grouped(3), IMAGES_16, transposed=True),
}

ROWS_16 = Input(2)
LINEAR: dict[str, Function] = {
    "plain": linear(5, 13),
    "low": linear(5, 13, LOW),
    "high": linear(5, 13, HIGH),
    "relu": linear(7, 13, RELU),
    "one": linear(1, 13, bias=False),
    "vector": linear(3, 16, x=Input(1)),
    "int4_odd": linear(5, 13, LOW, INT4),
    "int4_even": linear(5, 16, w=INT4, x=Input(1)),
    "factors": linear(5, 13, HIGH, _grouped(4)),
    "factors_whole": linear(5, 16, w=_grouped(8), x=Input(1)),
    "factors_long": linear(5, 13, w=_grouped(32)),
    "factors_int8": linear(5, 13, LOW, _grouped(5, 8)),
    "to_16": linear(5, 13, TO_16),
    "from_16": linear(5, 13, FROM_16, x=ROWS_16),
    "in_16": linear(5, 13, IN_16, x=ROWS_16, wide=True),
    "in_16_factors": linear(5, 13, IN_16, _grouped(4), ROWS_16),
    "in_16_int4": linear(5, 13, IN_16, INT4, ROWS_16, wide=False),
}


def with_shifts(
    shifts: list[int], wide: bool, multiplier: int | None = None, bits: int = 8, x: Input | None = None
) -> Apply:
    """Sums of seven neighbours for each shift, around a random one that the range holds or one halfway between two results."""
    random = np.random.default_rng([len(shifts), shifts[0], int(wide)])
    N, by = len(shifts), np.array(shifts)
    low, high = (-128, 127) if bits == 8 else (-32768, 32767)
    least = 1 << ((WIDE_MULTIPLIER_BITS if wide else MULTIPLIER_BITS) - 1)
    multipliers = random.integers(least, 2 * least, N) if multiplier is None else np.full(N, multiplier)
    limit = (1 << 31) - 16
    sums = random.uniform(low, high, N) * 2.0**by / np.maximum(multipliers, least)
    halfway = np.arange(N) % 3 == 0
    if multiplier is None:
        multipliers[halfway] = least  # a power of two, so that products lie halfway between two results
        sums[halfway] = (2 * random.integers(low, high, N) + 1)[halfway] * 2.0 ** (by[halfway] - 1) / least
    bias = np.clip(np.rint(sums), -limit, limit).astype(np.int32)
    weight = random.choice([-1, 1], (N, 1)).astype(np.int8)
    scales = (multipliers.astype(np.int32), by.astype(np.int32)) if x is None else (x, Input(x.index + 1))
    return Apply("q_linear", Input(0), weight, bias, *scales, None, 0, [N, 1], 8, -3, 5, low, high, bits, wide)


def _largest_sum() -> Apply:
    """The largest sums that int64 is for, 2^38 less little: 127 inputs 65533 from zero, weights and factors at their ends."""
    weight, factors = np.full((3, 127), -128, np.int8), np.full((3, 1), 255, np.uint8)
    bias = np.array([-(1 << 30), 0, 1 << 30], np.int32)
    multiplier, shift = np.array([1 << 23, 16777215, 11863283], np.int32), np.array([46, 47, 4], np.int32)
    return Apply(
        "q_linear",
        Input(5),
        weight,
        bias,
        multiplier,
        shift,
        factors,
        127,
        [3, 127],
        8,
        -32768,
        0,
        -32768,
        32767,
        16,
        True,
    )


SHIFTS, WIDE_SHIFTS = list(range(MIN_SHIFT + 7, MAX_SHIFT + 1)), list(range(MIN_SHIFT, MAX_SHIFT + 1))
HIGH_SHIFTS = list(range(33, MAX_SHIFT + 1))
REQUANTIZE: dict[str, Function] = {
    "all": with_shifts(SHIFTS * 6, False),
    "all_16": with_shifts(SHIFTS * 6, False, bits=16),
    "all_wide": with_shifts(WIDE_SHIFTS * 6, True, bits=16),
    "high": with_shifts(HIGH_SHIFTS * 6, False),
    "high_wide": with_shifts(HIGH_SHIFTS * 6, True, bits=16),
    "low": with_shifts([11, 30, 31, 32] * 9, False, bits=16),
    "zero": with_shifts(SHIFTS, False, multiplier=0),
    "at_run_time": with_shifts(SHIFTS, False, x=Input(1)),
    "at_run_time_wide": with_shifts(WIDE_SHIFTS, True, bits=16, x=Input(3)),
    **{f"only_{shift}": with_shifts([shift] * 24, False) for shift in (11, 31, 32, 33, 34, 45, 62)},
    **{f"only_{shift}_wide": with_shifts([shift] * 24, True, bits=16) for shift in (4, 31, 32, 33, 62)},
    "uniform": with_shifts([40] * 24, False, multiplier=1518500250),
    "largest": _largest_sum(),
}

B_16 = Input(3)
MATMUL: dict[str, Function] = {
    "matrices": Apply("q_matmul", Input(0), Input(1), -3, 7, 1518500250, 40, 5, -128, 127, 8, False),
    "ends": Apply("q_matmul", Input(0), Input(1), -128, 127, 1518500250, 41, 127, -128, 127, 8, False),
    "batch": Apply("q_matmul", Input(2), Input(1), 127, -128, 1073741824, 40, 0, -128, 127, 8, False),
    "batches": Apply("q_matmul", Input(2), Input(4), 0, 0, 2147483647, 39, 0, -128, 127, 8, False),
    "repeated": Apply("q_matmul", Input(4), Input(5), 1, 2, 2147483647, 39, 0, -20, 90, 8, False),
    "in_16": Apply("q_matmul", B_16, B_16, -32768, 5, 11863283, 40, -100, -32768, 32767, 16, True),
    "in_16_int32": Apply("q_matmul", B_16, Input(1), -3, 7, 11863283, 40, 5, -128, 127, 8, True),
    "row": Apply("q_matmul", Input(6), Input(1), -3, 7, 1518500250, 40, 5, -128, 127, 8, False),
    "column": Apply("q_matmul", Input(0), Input(6), -3, 7, 1518500250, 40, 5, -128, 127, 16, False),
    "dot": Apply("q_matmul", Input(6), Input(6), -3, 7, 1518500250, 41, 5, -128, 127, 8, False),
}


def _add(
    a: Input, b: Input, zeros: tuple[int, int], factors: tuple[int, int], shift: int, s: Settings = DEFAULT
) -> Apply:
    return Apply("q_add", a, b, *zeros, *factors, shift, *s.output)


def _mul(a: Input, b: Input, zeros: tuple[int, int], multiplier: int, shift: int, s: Settings = DEFAULT) -> Apply:
    return Apply("q_mul", a, b, *zeros, multiplier, shift, *s.output)


X, Y, ROW, X_16, Y_16, SCALAR = map(Input, range(6))
_RANDOM = np.random.default_rng(7)
TABLE_8 = integers(_RANDOM, (256,))
TABLE_16 = integers(_RANDOM, (256,), 16)
SMOOTH = np.rint(np.tanh(np.linspace(-4, 4, 513)) * 100 * 64).astype(np.int16)
ELEMENTWISE: dict[str, Function] = {
    "add": _add(X, Y, (-3, 5), (1 << 20, 700_001), 20),
    "add_ends": _add(X, Y, (-128, -128), (1 << 20, 1 << 20), 21, BOTTOM),
    "add_negative": _add(X, Y, (127, 127), (-999_999, 1 << 20), 20),
    "add_relu": _add(X, Y, (0, 0), (3, 5), 3, RELU),
    "add_row": _add(X, ROW, (-3, 5), (900_000, 1 << 19), 20),
    "add_scalar": _add(SCALAR, X, (-3, 5), (900_000, 1 << 19), 20),
    "add_itself": _add(X, X, (-3, 5), (900_000, 1 << 19), 20),
    "add_unshifted": _add(X, Y, (0, 0), (1, -1), 0),
    "add_16": _add(X_16, Y_16, (32767, 32767), (1 << 20, 700_001), 21, IN_16),
    "add_mixed": _add(X, X_16, (-3, 5), (1 << 20, 12_345), 20, TO_16),
    "add_to_8": _add(X_16, Y_16, (300, 5), (1 << 13, 7_001), 22),
    "add_far": _add(X, Y, (0, 0), (1 << 20, 1 << 20), 30),
    "mul": _mul(X, Y, (-3, 5), 1518500250, 38),
    "mul_ends": _mul(X, Y, (-128, 127), 1073741824, 40, LOW),
    "mul_row": _mul(X, ROW, (127, -128), 2147483647, 38, TOP),
    "mul_16": _mul(X_16, Y_16, (-32768, 32767), 11863283, 39, IN_16),
    "mul_mixed": _mul(X, X_16, (-3, 5), 1518500250, 38, TO_16),
    "mul_to_8": _mul(X_16, Y_16, (0, 0), 1518500250, 53),
    "mul_left": _mul(X, Y, (0, 0), 1518500250, 11, TO_16),
    "mul_left_16": _mul(X_16, Y_16, (-32768, 32767), 11863283, 4, IN_16),
    "mul_none": _mul(X, Y, (0, 0), 0, 32, RELU),
    "rescale": Apply("q_rescale", X, -3, 700_001, 19, *HIGH.output),
    "rescale_relu": Apply("q_rescale", X, -3, 1, 0, -3, -3, 127, 8),
    "rescale_up": Apply("q_rescale", X, -3, 1 << 20, 12, *TO_16.output),
    "rescale_down": Apply("q_rescale", X_16, 300, 5_003, 20, *LOW.output),
    "rescale_16": Apply("q_rescale", X_16, -32768, -(1 << 20), 20, *IN_16.output),
    "lookup": lookup(TABLE_8, 0),
    "lookup_to_16": lookup(TABLE_16, 3, TO_16),
    "lookup_16": lookup(SMOOTH, 6, Settings(x_bits=16), X_16),
    "lookup_16_rough": lookup(integers(_RANDOM, (513,), 16), 0, IN_16, X_16),
    "lookup_16_fine": lookup(SMOOTH.astype(np.int32) * 30_000, 15, IN_16, X_16),
    "lookup_16_relu": lookup(SMOOTH, 7, RELU, X_16),
}


def _average(kernel: list[int], stride: list[int], padding: list[int], s: Settings = DEFAULT, x: Input = FIRST, *,
             ceil_mode: bool = False, include: bool = True) -> Apply:  # fmt: skip
    counts = np.arange(1, int(np.prod(kernel)) + 1)
    multiplier, shift = multiplier_and_shift([0.0, *(0.9 / counts)])
    return Apply("q_avg_pool", x, multiplier, shift, kernel, stride, padding, ceil_mode, include, s.x_zero, *s.output)


def _maximum(kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool = False,
             x: Input = FIRST) -> Apply:  # fmt: skip
    return Apply("q_max_pool", x, kernel, stride, padding, dilation, ceil_mode)


POOL: dict[str, Function] = {
    "max": _maximum([2, 2], [2, 2], [0, 0], [1, 1]),
    "max_pad": _maximum([3, 3], [2, 2], [1, 1], [1, 1]),
    "max_ceil": _maximum([2, 2], [2, 2], [0, 0], [1, 1], True),
    "max_dilated": _maximum([3, 3], [1, 1], [1, 1], [2, 2]),
    "max_one_dim": _maximum([3], [2], [1], [1], x=FRAMES),
    "max_16": _maximum([3, 2], [2, 1], [1, 1], [1, 1], x=IMAGES_16),
    "average": _average([2, 2], [2, 2], [0, 0]),
    "average_ends": _average([2, 3], [1, 2], [0, 1], BOTTOM),
    "average_pad": _average([3, 3], [2, 2], [1, 1], TOP),
    "average_exclude": _average([3, 3], [2, 2], [1, 1], include=False),
    "average_ceil": _average([3, 3], [2, 2], [1, 1], ceil_mode=True),
    "average_ceil_exclude": _average([3, 2], [2, 3], [1, 0], BOTTOM, ceil_mode=True, include=False),
    "average_one_dim": _average([4], [3], [2], RELU, FRAMES, include=False),
    "average_16": _average([3, 3], [2, 2], [1, 1], BOTTOM_16, IMAGES_16),
    "average_to_16": _average([3, 3], [2, 2], [1, 1], TO_16),
    "mean": Apply("q_mean", Input(0), [2, 3], False, 1518500250, 34, -3, *DEFAULT.output),
    "mean_keep": Apply("q_mean", Input(0), [-1, -2], True, 1518500250, 37, -128, *BOTTOM.output),
    "mean_channels": Apply("q_mean", Input(0), [1], False, 1518500250, 33, 127, *LOW.output),
    "mean_all": Apply("q_mean", FRAMES, [], False, 1518500250, 32, 0, *TO_16.output),
    "mean_ends": Apply("q_mean", FRAMES, [0, 2], True, 1518500250, 32, 0, *TO_16.output),
    "mean_16": Apply("q_mean", IMAGES_16, [2, 3], False, 1518500250, 36, -32768, *BOTTOM_16.output),
}

MASK, MASK_ROW, NORM_16 = Input(1), Input(2), Input(3)
NORMALIZATION: dict[str, Function] = {
    "softmax": softmax(-1, 7),
    "softmax_middle": softmax(1, 3, scale=0.02),
    "softmax_first": softmax(0, 4, scale=0.01),
    "softmax_to_16": softmax(2, 7, bits=16),
    "softmax_16": softmax(-1, 7, 16, 16, 0.0003, NORM_16),
    "softmax_16_to_8": softmax(1, 3, 16, 8, 0.0001, NORM_16),
    "softmax_16_steep": softmax(-1, 7, 16, 16, 0.1, NORM_16),
    "softmax_mask": softmax(-1, 7, mask=MASK),
    "softmax_mask_row": softmax(-1, 7, mask=MASK_ROW),
    "softmax_mask_middle": softmax(1, 3, bits=16, mask=MASK),
    "softmax_mask_16": softmax(2, 7, 16, 16, 0.0003, NORM_16, MASK_ROW),
    "softmax_long": softmax(1, 100, scale=0.04, x=Input(4)),
    "softmax_one": softmax(0, 1, x=Input(4)),
    "norm": layer_norm(7),
    "norm_two": layer_norm(21, HIGH),
    "norm_long": layer_norm(100, LOW, Input(4)),
    "norm_relu": layer_norm(7, RELU, epsilon=400),
    "norm_no_bits": layer_norm(7, extra_bits=0),
    "norm_to_16": layer_norm(7, TO_16),
    "norm_16": layer_norm(7, IN_16, NORM_16),
    "norm_16_to_8": layer_norm(21, FROM_16, NORM_16, epsilon=1 << 33),
    "norm_flat": layer_norm(7, x=Input(5)),
    "norm_one": layer_norm(1),
}


def _embedding(D: int, w: Weights, row_factors: bool, shift: int, s: Settings = DEFAULT, ids: Input = FIRST) -> Apply:
    random = s.random
    stored, factors, values = w.stored(random, (9, D))
    rows = (
        random.integers(1, int((RANGES[s.bits][1] << shift) / np.abs(values).max()), 9).astype(np.int32)
        if row_factors
        else None
    )
    return Apply("q_embedding", ids, stored, rows, factors, w.group, [9, D], w.bits, shift, *s.output)


EMBEDDING: dict[str, Function] = {
    "rows": _embedding(5, Weights(), False, 0),
    "zero_point": _embedding(5, Weights(), False, 0, Settings(y_zero=100)),
    "row_factors": _embedding(5, Weights(), True, 20, LOW),
    "to_16": _embedding(5, Weights(), True, 12, TO_16),
    "int4": _embedding(5, INT4, False, 0),
    "int4_factors": _embedding(7, _grouped(3), True, 20),
    "int32_ids": _embedding(5, INT4, True, 14, ids=Input(1)),
    "far": _embedding(4, _grouped(4, 8), True, 30),
}

RECURRENT: dict[str, Function] = {
    "lstm": Recurrent(5, 6).lstm(),
    "lstm_ends": Recurrent(5, 6, LOW).lstm(),
    "lstm_reverse": Recurrent(5, 6, HIGH, reverse=True).lstm(),
    "lstm_batch_first": Recurrent(5, 6, batch_first=True).lstm(Input(3)),
    "lstm_int4": Recurrent(5, 6, weight_bits=4, reverse=True, batch_first=True).lstm(Input(3)),
    "lstm_no_bias": Recurrent(5, 6, bias=False).lstm(),
    "lstm_fine_cell": Recurrent(5, 6, cell_bits=15).lstm(),
    "lstm_coarse_cell": Recurrent(5, 6, cell_bits=8).lstm(),
    "gru": Recurrent(5, 6).gru(),
    "gru_ends": Recurrent(5, 6, HIGH).gru(),
    "gru_reverse": Recurrent(5, 6, LOW, reverse=True).gru(),
    "gru_batch_first": Recurrent(5, 6, batch_first=True).gru(Input(3)),
    "gru_int4": Recurrent(5, 6, weight_bits=4).gru(),
    "gru_no_bias": Recurrent(5, 6, bias=False, reverse=True, batch_first=True).gru(Input(3)),
}

_MASK = torch.rand((4, 3, 7), generator=torch.Generator().manual_seed(0)) > 0.4
_MASK[0, 0], _MASK[1, 2] = False, True

INTEGER_FAMILIES: dict[str, Family] = {
    "conv": Family((tensor(0, 2, 6, 9, 11), tensor(1, 2, 6, 17), tensor(2, 1, 6, 5, 7, bits=16)), CONV),
    "linear": Family((tensor(0, 2, 3, 13), tensor(1, 16), tensor(2, 5, 13, bits=16)), LINEAR),
    "requantize": Family(
        (
            torch.arange(-6, 1, dtype=torch.int8).reshape(7, 1), torch.full((len(SHIFTS),), 1 << 30, dtype=torch.int32),
            torch.tensor(SHIFTS).int(), torch.full((len(WIDE_SHIFTS),), 1 << 23, dtype=torch.int32), torch.tensor(WIDE_SHIFTS).int(),
            tensor(0, 3, 127, bits=16).clamp(32765),
        ),
        REQUANTIZE,
    ),
    "matmul": Family(
        (
            tensor(0, 5, 7), tensor(1, 7, 3), tensor(2, 2, 1, 5, 7), tensor(3, 7, 7, bits=16), tensor(4, 3, 7, 5), tensor(5, 2, 1, 5, 2),
            tensor(6, 7),
        ),
        MATMUL,
    ),
    "elementwise": Family(
        (
            tensor(0, 3, 5, 7), tensor(1, 3, 5, 7), tensor(2, 5, 1), tensor(3, 3, 5, 7, bits=16), tensor(4, 3, 5, 7, bits=16),
            torch.tensor(-128, dtype=torch.int8),
        ),
        ELEMENTWISE,
    ),
    "pool": Family((tensor(0, 2, 3, 9, 11), tensor(1, 2, 3, 17), tensor(2, 1, 3, 9, 7, bits=16)), POOL),
    "normalization": Family(
        (tensor(0, 4, 3, 7), _MASK, _MASK[1, :1], tensor(1, 4, 3, 7, bits=16), tensor(2, 1, 100), torch.full((2, 7), 9, dtype=torch.int8)),
        NORMALIZATION,
    ),
    "embedding": Family((torch.tensor([[0, 8, 3], [1, 1, 7]]), torch.tensor([2, 0, 8, 5], dtype=torch.int32)), EMBEDDING),
    "recurrent": Family(
        (tensor(0, 4, 3, 5), tensor(1, 3, 6), tensor(2, 3, 6, bits=16), tensor(3, 3, 4, 5)), RECURRENT
    ),
}  # fmt: skip
INTEGER_FAMILIES |= QUANTIZE_FAMILIES

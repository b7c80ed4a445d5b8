"""Between floats and integers, and operators that move elements of int8 and int16: families beside those of the integer operators."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tir.case import Family, Function, normal
from tests.backends.tir.integer_modules import Apply, Input, integers, tensor
from tests.backends.tir.relayout_cases import RELAYOUT

STEP = 0.0625
SPECIAL = torch.tensor(
    [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        1e30,
        -1e30,
        1e-40,
        3.4028235e38,
        *(STEP * (n + 0.5) for n in range(-140, 141)),
    ]
)
"""What is no number, too large or halfway between two steps."""


def _quantize(scale: float, zero: int, low: int, high: int, x: int = 0) -> Apply:
    return Apply("quantize", Input(x), scale, zero, low, high)


QUANTIZE: dict[str, Function] = {
    "int8": _quantize(STEP, 0, -128, 127),
    "low": _quantize(STEP, -128, -128, 127),
    "high": _quantize(0.05, 127, -128, 127, 1),
    "relu": _quantize(STEP, -20, -20, 90),
    "symmetric": _quantize(0.031, 0, -127, 127, 1),
    "int4": _quantize(0.3, 2, -8, 7, 1),
    "uint8": _quantize(STEP, 100, 0, 255),
    "int16": _quantize(1e-4, 12345, -32768, 32767, 1),
    "int16_special": _quantize(STEP / 256, -32768, -32768, 32767),
    "int32": _quantize(1e-9, 0, -(1 << 31), (1 << 31) - 1, 1),
    "int32_special": _quantize(STEP / 2**24, 5, -(1 << 31) + 1, (1 << 31) - 2),
    "tiny_scale": _quantize(2.0**-100, 0, -128, 127),
    "dequantize": Apply("dequantize", Input(2), 0.1, -7),
    "dequantize_zero": Apply("dequantize", Input(2), 1e-3, 0),
    "dequantize_16": Apply("dequantize", Input(3), 3e-5, 32767),
    "dequantize_32": Apply("dequantize", Input(4), 1e-7, 0),
    "dequantize_unsigned": Apply("dequantize", Input(5), 0.1, 200),
    "there_and_back": lambda x, *rest: torch.ops.dsopt.dequantize(torch.ops.dsopt.quantize(x, STEP, 3, -128, 127), STEP, 3),
}  # fmt: skip

_RANDOM = np.random.default_rng(3)
_KERNEL = (4, 6, 3, 2)


def _channel(
    q: Input | np.ndarray, scales: tuple[int, ...], axis: int, group: int = 0, zeros: bool = False, bits: int = 8
) -> Apply:  # type: ignore[type-arg]
    scale = _RANDOM.uniform(1e-3, 0.1, scales).astype(np.float32)
    zero = _RANDOM.integers(-100, 100, scales).astype(np.int32) if zeros else None
    return Apply("dequantize_channel", q, scale, zero, axis, group, bits)


CHANNELS: dict[str, Function] = {
    "rows": _channel(integers(_RANDOM, _KERNEL), (4,), 0),
    "columns": _channel(integers(_RANDOM, _KERNEL), (6,), 1),
    "last": _channel(integers(_RANDOM, _KERNEL), (2,), -1, zeros=True),
    "tensor": _channel(integers(_RANDOM, _KERNEL), (), 0, zeros=True),
    "groups": _channel(integers(_RANDOM, _KERNEL), (4, 3), 0, 2),
    "groups_rest": _channel(integers(_RANDOM, _KERNEL), (4, 2), 0, 4, zeros=True),
    "groups_matrix": _channel(integers(_RANDOM, (5, 7), 4), (5, 3), 0, 3, bits=4),
    "bias": _channel(integers(_RANDOM, (6,), 16).astype(np.int32) * 40_000, (6,), 0, bits=32),
    "wide": _channel(integers(_RANDOM, (3, 5), 16), (3,), 0, zeros=True, bits=16),
    "input": _channel(Input(2), (5,), 1, zeros=True),
}

# what makes floats or has no meaning for integers
_FLOAT_ONLY = {"pad_value"}
_KEPT: dict[str, Function] = {name: case for name, case in RELAYOUT.items() if name not in _FLOAT_ONLY}

MOVES: dict[str, Function] = _KEPT | {
    "pad_lowest": lambda x: F.pad(x, (1, 2, 0, 1), value=-128),
    "pad_highest": lambda x: F.pad(x, (2, 1), value=127),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 2)),
    "amax_of_lowest": lambda x: (x.bitwise_and(0) + torch.iinfo(x.dtype).min).amax(1),
    "max_pool_of_lowest": lambda x: F.max_pool2d(x.bitwise_and(0) + torch.iinfo(x.dtype).min, 2),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "max_dim": lambda x: x.max(2)[0],
    "max_place": lambda x: x.max(0)[1],
    "min_place": lambda x: x.min(1)[1],
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.flatten().argmin(0),
    "topk": lambda x: x.topk(2, -1)[0],
    "sort_places": lambda x: x.sort(2)[1],
    "index_select": lambda x: x.index_select(2, torch.tensor([5, 0, 3, 3])),
    "gather": lambda x: x.gather(2, torch.zeros(4, 3, 1, dtype=torch.int64)),
    "index": lambda x: x[torch.tensor([0, 3, 1]), 1],
    "index_put": lambda x: x.index_put((torch.tensor([1, 2]),), x[0]),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :2], 1, 1, 3),
    "select_scatter": lambda x: x.select_scatter(x[0], 0, 2),
    "embedding": lambda x: F.embedding(torch.tensor([[1, 0], [2, 2]]), x[0]),
    "where": lambda x: torch.where(x > 5, x, x.flip(0)),
    "masked_fill": lambda x: x.masked_fill(x < 0, -3),
    "relu": lambda x: x.relu(),
    "clamp": lambda x: x.clamp(-5, 90),
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "wraps": lambda x: x + x,
    "to_float": lambda x: x.float() * 0.5,
    "to_wider": lambda x: x.to(torch.int32) * 300,
    "to_narrower": lambda x: (x.to(torch.int32) * 300).to(torch.int8),
    "compare": lambda x: x <= x.flip(1),
    "full": lambda x: torch.full_like(x, -128),
    "nearest": lambda x: F.interpolate(x.float()[None], scale_factor=2)[0].to(x.dtype),
}


class _Kept(torch.nn.Module):
    """Reuse in place: the first value is written over only after its last use."""

    def forward(self, x: Tensor) -> Tensor:
        rescale = torch.ops.dsopt.q_rescale
        a = rescale(x, 0, 3, 1, 0, -128, 127, 8)
        b = rescale(a, 1, 5, 2, 1, -128, 127, 8)
        c = torch.ops.dsopt.q_add(a, b, 0, 0, 1, 1, 1, 0, -128, 127, 8)
        d = torch.ops.dsopt.q_add(c, c.flip(0), 0, 0, 1, 1, 1, 0, -128, 127, 8)
        wide = torch.ops.dsopt.q_mul(d, c, 0, 0, 1 << 30, 31, 0, -32768, 32767, 16)
        back = torch.ops.dsopt.q_rescale(wide, 0, 1, 7, 0, -128, 127, 8)
        return torch.ops.dsopt.q_add(back, d.reshape(-1).reshape(d.shape), 0, 0, 1, -1, 0, 0, -128, 127, 8)


class _TableOfItself(torch.nn.Module):
    """A lookup in a table that is also what is looked up must not write over it."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.ops.dsopt.q_rescale(torch.cat([x.reshape(-1)] * 4)[:256], 0, 1, 0, 1, -128, 127, 8)
        return torch.ops.dsopt.q_lookup(table, table, 0, 0, -128, 127, 8)


QUANTIZE_FAMILIES: dict[str, Family] = {
    "quantize": Family(
        (SPECIAL, normal(7, 41, scale=3.0), tensor(0, 3, 5), tensor(1, 11, bits=16),
         torch.tensor([-(1 << 31), (1 << 31) - 1, 16_777_217, -5, 0], dtype=torch.int32), torch.arange(256).to(torch.uint8)),
        QUANTIZE,
    ),
    "channels": Family((torch.zeros(1), torch.zeros(1), tensor(0, 3, 5)), CHANNELS),
    "moves8": Family((tensor(0, 4, 3, 6),), MOVES),
    "moves16": Family((tensor(1, 4, 3, 6, bits=16),), {**MOVES, "to_narrower": lambda x: x.to(torch.int8)}),
    "in_place": Family((tensor(2, 8, 9),), {"kept": _Kept(), "table": _TableOfItself()}),
}  # fmt: skip

"""Elementwise operators and promotion of dtypes."""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.backends.cpu.cases import Cases, bools, floats, ints, positive, units, value

CASES = Cases()
X, Y, ROW = floats("B", 3, 5), floats("B", 3, 5, scale=2.0), floats(5)
I64, I32, I8, U8 = (
    ints("B", 4, low=-9, high=9), ints("B", 4, low=-9, high=9, dtype=torch.int32),
    ints("B", 4, low=-9, high=9, dtype=torch.int8), ints("B", 4, high=12, dtype=torch.uint8),
)  # fmt: skip
SMALL = ints("B", 4, low=1, high=6)
DIVISORS = value([3, -3, 2, -5])

# arithmetic, broadcast, with scalars
for _name in ("add", "sub", "mul", "div", "maximum", "minimum", "fmax", "fmin", "atan2", "hypot"):
    CASES.add(_name, partial(lambda f, a, b: f(a, b), getattr(torch, _name)), X, Y)
    CASES.add(f"{_name}_broadcast", partial(lambda f, a, b: f(a, b), getattr(torch, _name)), X, ROW)
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _function: Any = getattr(operator, _name)
    CASES.add(f"{_name}_number", partial(lambda f, a: f(a, 2.5), _function), positive("B", 5))
    CASES.add(f"{_name}_reversed", partial(lambda f, a: f(2.5, a), _function), positive("B", 5))
    CASES.add(f"{_name}_int", partial(lambda f, a, b: f(a, b), _function), ints("B", 4, high=9), SMALL)
    CASES.add(f"{_name}_int_number", partial(lambda f, a: f(a, 3), _function), I64)
    CASES.add(f"{_name}_int_float", partial(lambda f, a: f(a, 1.5), _function), SMALL)
    CASES.add(f"{_name}_mixed", partial(lambda f, a, b: f(a, b), _function), SMALL, positive("B", 4))
CASES.add("add_alpha", lambda a, b: torch.add(a, b, alpha=3), X, Y)
CASES.add("sub_alpha", lambda a, b: torch.sub(a, b, alpha=0.5), X, Y)
CASES.add("rsub_alpha", lambda a, b: torch.rsub(a, b, alpha=2), X, Y)
CASES.add("add_bools", operator.add, bools("B", 4), bools("B", 4))
CASES.add("mul_bools", operator.mul, bools("B", 4), bools("B", 4))
CASES.add("mul_bool_float", operator.mul, bools("B", 4), floats("B", 4))
CASES.add("add_int8", operator.add, I8, I8)
CASES.add("add_uint8_int8", operator.add, U8, I8)
CASES.add("add_int32_int64", operator.add, I32, I64)
CASES.add("add_int_scalar_tensor", lambda a: a + torch.tensor(2.5), I32)
CASES.add("add_half_float", operator.add, floats("B", 4, dtype=torch.float16), floats("B", 4))
CASES.add("add_float_double", operator.add, floats("B", 4), floats("B", 4, dtype=torch.float64))
CASES.add("mul_zero_rank_double", lambda a: a * torch.tensor(1.5, dtype=torch.float64), X)
CASES.add("add_batch_size", lambda a: a + a.shape[0], X)
CASES.add("mul_by_half_batch", lambda a: a * (a.shape[0] / 2), X)

# division and remainders
CASES.add("floor_divide_negative", lambda a, b: torch.div(a, b, rounding_mode="floor"), I64, DIVISORS)
CASES.add("trunc_divide_negative", lambda a, b: torch.div(a, b, rounding_mode="trunc"), I64, DIVISORS)
CASES.add("floor_divide_float", lambda a, b: torch.div(a, b, rounding_mode="floor"), X, Y)
CASES.add("floor_divide_exact", lambda a: torch.floor_divide(a, 0.1), value([1.0, -1.0, 0.3, 0.0]))
CASES.add("floor_divide_by_zero", lambda a: torch.floor_divide(a, 0.0), value([1.0, -1.0, 2.5]))
CASES.add("trunc_divide_float", lambda a, b: torch.div(a, b, rounding_mode="trunc"), X, Y)
CASES.add("true_divide_int", lambda a: a / 4, I64)
CASES.add("remainder_signs", torch.remainder, I64, DIVISORS)
CASES.add("fmod_signs", torch.fmod, I64, DIVISORS)
CASES.add(
    "remainder_float_signs", torch.remainder, value([5.5, -5.5, 5.5, -5.5, 4.0]), value([2.0, 2.0, -2.0, -2.0, 2.0])
)
CASES.add("fmod_float_signs", torch.fmod, value([5.5, -5.5, 5.5, -5.5, 4.0]), value([2.0, 2.0, -2.0, -2.0, 2.0]))
CASES.add("remainder_number_tensor", lambda a: torch.remainder(7, a), SMALL)
for _exponent in (2, 3, 0.5, -1, -0.5, 1.7):
    CASES.add(f"pow_{_exponent}", partial(lambda e, a: a**e, _exponent), positive("B", 5))
CASES.add("pow_tensor", torch.pow, positive("B", 5), floats("B", 5))
CASES.add("pow_cubed_int", lambda a: a**3, I64)
CASES.add("pow_int8", lambda a: a**2, I8)

# comparisons, logic, bits
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _function = getattr(operator, _name)
    CASES.add(_name, _function, I64, value([1, -2, 3, 0]))
    CASES.add(f"{_name}_number", partial(lambda f, a: f(a, 0.5), _function), X)
    CASES.add(f"{_name}_int_float", partial(lambda f, a: f(a, 0.5), _function), I64)
    CASES.add(f"{_name}_bool", _function, bools("B", 4), bools(4))
for _name in ("logical_and", "logical_or", "logical_xor"):
    CASES.add(_name, getattr(torch, _name), I64, bools("B", 4))
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    CASES.add(_name, getattr(torch, _name), I64, SMALL)
    CASES.add(f"{_name}_bool", getattr(torch, _name), bools("B", 4), bools(4))
    CASES.add(f"{_name}_number", partial(lambda f, a: f(a, 3), getattr(torch, _name)), I32)
CASES.add("logical_not", torch.logical_not, I64)
CASES.add("bitwise_not", lambda a: ~a, I64)
CASES.add("bitwise_not_bool", lambda a: ~a, bools("B", 4))
CASES.add("left_shift", lambda a: a << 2, I64)
CASES.add("shift_of_a_number", lambda a: (5 << (a & 3)) + (77 >> (a & 3)), I64)
CASES.add("shift_by_a_tensor", lambda a: (a << (a & 3)) + (a >> (a & 1)), I64)
CASES.add("right_shift", lambda a: a >> 2, I64)
CASES.add("right_shift_tensor", torch.bitwise_right_shift, I64, SMALL)
CASES.add("where", lambda c, a, b: torch.where(c, a, b), bools("B", 3, 5), X, ROW)
CASES.add("where_numbers", lambda c, a: torch.where(c, a, 0.0), bools("B", 3, 5), X)
CASES.add("where_bool", lambda c, a, b: torch.where(c, a, b), bools("B", 4), bools("B", 4), bools(4))
CASES.add("where_promoted", lambda c, a, b: torch.where(c, a, b), bools("B", 4), I32, I64)
CASES.add("masked_fill", lambda x, m: x.masked_fill(m, -math.inf), X, bools("B", 1, 5))
CASES.add("masked_fill_int", lambda x, m: x.masked_fill(m, 7), I32, bools("B", 4))
CASES.add("masked_fill_inplace", lambda x, m: (x + 1).masked_fill_(m, 2.0), X, bools("B", 3, 5))

# limits
CASES.add("clamp", lambda a: a.clamp(-0.5, 0.7), X)
CASES.add("clamp_low", lambda a: a.clamp(min=0.1), X)
CASES.add("clamp_high", lambda a: a.clamp(max=0.1), X)
CASES.add("clamp_crossed", lambda a: a.clamp(1.0, -1.0), X)
CASES.add("clamp_int", lambda a: a.clamp(-2, 3), I64)
CASES.add("clamp_int8", lambda a: a.clamp(-2, 3), I8)
CASES.add("clamp_int_float", lambda a: a.clamp(-2.5, 3.5), I64)
CASES.add("clamp_tensor", lambda a, b: torch.clamp(a, b, b + 1), X, ROW)
CASES.add("clamp_min_number", lambda a: torch.clamp_min(a, 0.3), X)
CASES.add("clamp_max_tensor", torch.clamp_max, X, ROW)
CASES.add("maximum_bool", torch.maximum, bools("B", 4), bools(4))
CASES.add("maximum_nan", torch.maximum, value([1.0, math.nan, 3.0]), value([2.0, 2.0, math.nan]))
CASES.add("fmax_nan", torch.fmax, value([1.0, math.nan, 3.0]), value([2.0, 2.0, math.nan]))

# functions of one value
for _name in (
    "abs", "neg", "exp", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "atanh", "erf", "erfc",
    "expm1", "log1p", "exp2", "square", "sign", "floor", "ceil", "round", "trunc", "frac", "sigmoid", "tanh", "isnan",
    "isinf", "isfinite", "positive", "relu", "sgn",
):  # fmt: skip
    CASES.add(_name, partial(lambda f, a: f(a), getattr(torch, _name)), units("B", 5))
for _name in ("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "logit"):
    CASES.add(_name, partial(lambda f, a: f(a), getattr(torch, _name)), (lambda b: positive("B", 5)(b) * 0.45))
CASES.add("acosh", torch.acosh, (lambda b: positive("B", 5)(b) + 1))
CASES.add("logit_eps", lambda a: torch.logit(a, 1e-3), units("B", 5))
for _name in ("exp", "sqrt", "sin", "sigmoid", "tanh", "reciprocal", "log1p", "rsqrt"):
    CASES.add(f"{_name}_int", partial(lambda f, a: f(a), getattr(torch, _name)), SMALL)
for _name in ("abs", "neg", "sign", "floor", "ceil", "round", "trunc", "square"):
    CASES.add(f"{_name}_int", partial(lambda f, a: f(a), getattr(torch, _name)), I64)
for _name in ("exp", "log", "sqrt", "floor", "sigmoid", "cos"):
    CASES.add(
        f"{_name}_double", partial(lambda f, a: f(a), getattr(torch, _name)), positive("B", 5, dtype=torch.float64)
    )
CASES.add("half_chain", lambda a: torch.exp(a) * 2 + a.tanh(), floats("B", 5, dtype=torch.float16), largest=2e-3)
CASES.add("round_halves", torch.round, value([0.5, 1.5, 2.5, -0.5, -1.5]))
CASES.add("round_decimals", lambda a: torch.round(a, decimals=2), X)
CASES.add("log1p_tiny", torch.log1p, value([1e-8, -1e-7, 1e-3, 0.0]))
CASES.add("expm1_tiny", torch.expm1, value([1e-8, -1e-7, 1e-3, 0.0]))
CASES.add("isnan_found", torch.isnan, value([1.0, math.nan, math.inf]))
CASES.add("nan_to_num", torch.nan_to_num, value([1.0, math.nan, math.inf, -math.inf]))
CASES.add(
    "nan_to_num_given", lambda a: torch.nan_to_num(a, 1.0, 2.0, -2.0), value([1.0, math.nan, math.inf, -math.inf])
)
CASES.add("infinities", lambda a: 1 / a, value([0.0, -0.0, math.inf, 2.0]))
CASES.add("lerp", lambda a, b: torch.lerp(a, b, 0.3), X, Y)
CASES.add("lerp_tensor", torch.lerp, X, Y, ROW)
CASES.add("addcmul", lambda a, b, c: torch.addcmul(a, b, c, value=0.5), X, Y, ROW)
CASES.add("addcdiv", lambda a, b, c: torch.addcdiv(a, b, c + 3, value=2), X, Y, positive(5))

# casts
for _dtype in (torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.bool):
    CASES.add(
        f"to_{_dtype}".replace("torch.", ""),
        partial(lambda d, a: a.to(d), _dtype),
        floats("B", 5, scale=4.0),
        largest=1e-3,
    )
CASES.add("to_uint8", lambda a: a.to(torch.uint8), positive("B", 5))
CASES.add("from_bool", lambda a: (a > 0).float() + (a > 1).long(), X)
CASES.add("type_as", lambda a, b: a.type_as(b), X, I64)
CASES.add("identities", lambda a: a.clone().contiguous().detach() + 0, X)


def _inplace(x: Tensor) -> Tensor:
    y = x + 1
    y.mul_(2).relu_()
    y[:, 0] = 3.0
    return y


CASES.add("written_in_place", _inplace, floats("B", 4))
CASES.add("returned_twice", lambda a: (a + 1, a + 1, a), X)

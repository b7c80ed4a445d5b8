"""The rounding rule against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.ops.rounding import (
    ACCUMULATOR_LIMIT,
    MAX_SHIFT,
    MIN_SHIFT,
    MULTIPLIER_BITS,
    SPARE_BITS,
    WIDE_LIMIT,
    WIDE_MULTIPLIER_BITS,
    common_factors,
    dequantize,
    multiplier_and_shift,
    quantize,
    requantize,
    shift_right,
)

FORMS = {MULTIPLIER_BITS: ACCUMULATOR_LIMIT, WIDE_MULTIPLIER_BITS: WIDE_LIMIT}
forms = st.sampled_from(list(FORMS))
factors = (
    st.floats(0, 1e6)
    | st.floats(1e-12, 1e-3)
    | st.sampled_from([0.0, 1.0, 2.0, 2.0**20 - 2.0**-20, 2.0**-32, 2.0**-39])
)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@given(forms, st.data())
def test_requantize_rounds_the_exact_product_once(bits: int, data: st.DataObject) -> None:
    limit = FORMS[bits]
    acc = data.draw(
        st.integers(1 - limit, limit - 1) | st.integers(-300, 300) | st.sampled_from([1 - limit, limit - 1])
    )
    multiplier = data.draw(st.integers(1 << (bits - 1), (1 << bits) - 1) | st.just(0))
    shift = data.draw(st.integers(MIN_SHIFT, MAX_SHIFT))
    zero, ends = (
        data.draw(st.integers(-128, 127)),
        data.draw(st.sampled_from([(-128, 127), (-32768, 32767), (-20, 90)])),
    )
    wanted = min(max(half_up(Fraction(acc * multiplier, 1 << shift)) + zero, ends[0]), ends[1])
    assert int(requantize(np.array(acc), multiplier, shift, zero, *ends)) == wanted


@given(st.integers(-(1 << 62), 1 << 62), st.integers(0, 62))
def test_shift_right_sends_ties_upwards(value: int, shift: int) -> None:
    assert int(shift_right(np.array(value), shift)) == half_up(Fraction(value, 1 << shift))


@given(st.lists(factors, min_size=1, max_size=4), forms)
def test_a_factor_is_near_its_multiplier_and_shift(given_factors: list[float], bits: int) -> None:
    multipliers, shifts = multiplier_and_shift(given_factors, bits)
    for factor, multiplier, shift in zip(given_factors, multipliers.tolist(), shifts.tolist(), strict=True):
        assert MIN_SHIFT <= shift <= MAX_SHIFT
        if multiplier == 0:  # then no sum reaches half a step
            assert Fraction(factor) * FORMS[bits] <= Fraction(1, 2)
        else:
            assert 1 << (bits - 1) <= multiplier < 1 << bits
            spare = SPARE_BITS if bits == MULTIPLIER_BITS else 0
            assert multiplier % (1 << spare) == 0
            error = abs(Fraction(multiplier, 1 << shift) / Fraction(factor) - 1)
            assert error <= Fraction(1, 1 << (bits - spare)) or factor > 2.0**20 - 2.0 ** (20 - bits + spare)


@pytest.mark.parametrize("factor", [2.0**20, -1e-9, math.inf, math.nan])
def test_what_is_no_factor_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="is no factor from 0 to 1048576"):
        multiplier_and_shift([factor])


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=3))
def test_common_factors_share_a_shift(given_factors: list[float]) -> None:
    wholes, shift = common_factors(given_factors)
    assert 0 <= shift <= 30
    for factor, whole in zip(given_factors, wholes, strict=True):
        assert abs(whole) <= 1 << 20
        assert abs(Fraction(whole, 1 << shift) - Fraction(factor)) <= Fraction(1, 2 << shift)


@given(st.floats(-1e6, 1e6, width=32), st.floats(2.0**-10, 2.0**10, width=32), st.integers(-128, 127))
def test_quantize_is_to_the_nearest_and_dequantize_its_inverse(x: float, scale: float, zero: int) -> None:
    (q,) = quantize(np.array([x], np.float32), scale, zero, -128, 127).tolist()
    wanted = round(float(np.float32(x) / np.float32(scale))) + zero  # to even, as IEEE 754 says
    assert q == min(max(wanted, -128), 127)
    back = dequantize(np.array([q]), scale, zero)
    assert quantize(back, scale, zero, -128, 127).tolist() == [q]

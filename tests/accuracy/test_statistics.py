"""Statistics of rounded values and weights against sums by hand, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsopt import PassContext, PassManager, Program, parse_pipeline
from dsopt.accuracy.statistics import ValueStatistics, quantization_statistics
from dsopt.feeds import Feed
from tests.accuracy.nets import layers, samples


def _measured(
    program: Program, options: str, calibration: np.ndarray, feeds: list[Feed]
) -> tuple[Program, tuple[ValueStatistics, ...]]:
    context = PassContext(calibration=[{"x": torch.from_numpy(calibration)}])
    rounded, _ = PassManager(parse_pipeline(f"quantize{{{options}}}")).run(program, context)
    return rounded, quantization_statistics(rounded, program, feeds)


def _rounded(x: np.ndarray, scale: float, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers without ends, and the real numbers of those within -128..127."""
    steps = np.rint(x / np.float32(scale)) + zero
    return steps, (np.clip(steps, -128, 127) - zero) * np.float64(scale)


def test_an_input_beyond_the_calibrated_range_is_counted_as_saturated() -> None:
    x = samples(100)
    _, found = _measured(layers(), "observer=minmax", 0.25 * x[:50], [{"x": x[:30]}, {"x": x[30:]}])
    value = found[0]
    assert (value.node, value.op, value.kind, value.bits) == ("x", "input", "activation", 8)
    steps, real = _rounded(x, value.scale[0], value.zero_point)
    share = np.mean((steps < -128) | (steps > 127))
    assert share > 0.1
    assert value.saturated == pytest.approx(share, rel=1e-5)
    wanted = 10 * math.log10(np.sum(np.float64(x) ** 2) / np.sum((real - x) ** 2))
    assert value.snr == pytest.approx(wanted, abs=0.051)  # it is told to a tenth
    assert value.observed == pytest.approx((x.min(), x.max()), rel=1e-5)
    scale, zero = value.scale[0], value.zero_point
    assert value.grid == pytest.approx(((-128 - zero) * scale, (127 - zero) * scale), rel=1e-5)
    assert list(value.histogram) == np.histogram(x, 48, (x.min(), x.max()))[0].tolist()


def test_the_noise_of_a_value_is_all_that_was_rounded_before_it() -> None:
    program, x = layers(), samples(64)
    rounded, found = _measured(program, "", x, [{"x": x}])
    value = found[-4]  # the last activation, before three weights
    got = rounded.run(torch.from_numpy(x))[0].double().numpy()
    want = program.run(torch.from_numpy(x))[0].double().numpy()
    assert value.layer == "third"
    assert value.snr == pytest.approx(10 * math.log10(np.sum(want**2) / np.sum((got - want) ** 2)), abs=0.051)


@pytest.mark.parametrize(("options", "bits"), [("search=false", 8), ("weights=4", 4), ("weights=4,per=tensor", 4)])
def test_weights_are_compared_with_the_float_ones(options: str, bits: int) -> None:
    program = layers()
    rounded, found = _measured(program, options, samples(20), [{"x": samples(20)}])
    weights = {each.layer: each for each in found if each.kind == "weight"}
    assert sorted(weights) == ["first", "second", "third"]
    for layer, value in weights.items():
        real = program.weights[f"{layer}.weight"].double().numpy()
        integers = rounded.weights[f"{layer}.weight.int{bits}"].double().numpy()
        scale = rounded.weights[f"{layer}.weight.scale"].double().numpy()
        steps = scale if scale.ndim == 0 else scale[:, None]
        limit = (1 << (bits - 1)) - 1
        assert value.bits == bits
        assert value.saturated == pytest.approx(np.mean(np.abs(np.rint(real / steps)) > limit), abs=1e-6)
        noise = np.sum((integers * steps - real) ** 2)
        assert value.snr == pytest.approx(10 * math.log10(np.sum(real**2) / noise), abs=0.051)
        assert value.observed == pytest.approx((real.min(), real.max()), rel=1e-5)
        assert value.scale == pytest.approx((scale.min(), scale.max()))
        assert sum(value.histogram) == integers.size


def test_the_largest_weight_of_each_channel_is_not_saturated() -> None:
    """With the step of the largest magnitude every channel has an integer at the end, and none is cut."""
    _, found = _measured(layers(), "search=false", samples(20), [{"x": samples(20)}])
    assert [each.saturated for each in found if each.kind == "weight"] == [0, 0, 0]


def test_without_the_float_program_what_is_not_known_is_none() -> None:
    rounded, _ = _measured(layers(), "", samples(20), [])
    found = quantization_statistics(rounded, None, [{"x": samples(20)}])
    assert {each.snr for each in found} == {None}
    assert {each.saturated for each in found if each.kind == "weight"} == {None}
    assert all(each.saturated is not None for each in found if each.kind == "activation")


def test_a_value_without_width_has_one_bar() -> None:
    x = np.zeros((8, 16), np.float32)
    _, found = _measured(layers(), "", x, [{"x": x}])
    assert found[0].histogram == (8 * 16,)
    assert (found[0].observed, found[0].saturated, found[0].snr) == ((0, 0), 0, None)

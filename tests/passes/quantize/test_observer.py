"""What range an observer gives, against brute force in float64 over the same data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dsopt.passes.quantize.observer import Observer
from dsopt.passes.quantize.qparams import activation_grid, weight_grid

Float = np.ndarray[Any, Any]


def _samples(name: str) -> list[Float]:
    rng = np.random.default_rng(7)
    shapes = [(40, 30)] * 6
    return {
        "normal": [rng.normal(0.3, 1, shape) for shape in shapes],
        "tail": [np.where(rng.random(shape) < 1e-3, 40, rng.normal(0, 1, shape)) for shape in shapes],
        "positive": [np.abs(rng.normal(0, 2, shape)) for shape in shapes],
        "negative": [-rng.exponential(1, shape) for shape in shapes],
    }[name]


def _observed(kind: str, samples: list[Float], quantile: float = 0.99, levels: int = 255) -> tuple[float, float]:
    observer = Observer(kind, quantile, levels)
    for each in samples:
        observer.see(torch.tensor(each, dtype=torch.float32))
    if observer.needs_histogram:
        for each in samples:
            observer.count(torch.tensor(each, dtype=torch.float32))
    return observer.range()


NAMES = ["normal", "tail", "positive", "negative"]


@pytest.mark.parametrize("name", NAMES)
def test_minmax_is_the_range_of_all_samples(name: str) -> None:
    samples = _samples(name)
    wanted = min(each.min() for each in samples), max(each.max() for each in samples)
    assert _observed("minmax", samples) == pytest.approx(wanted, rel=1e-6)  # float32 data


@pytest.mark.parametrize("name", NAMES)
def test_moving_averages_are_those_of_jacob_et_al(name: str) -> None:
    samples = _samples(name)
    low, high = samples[0].min(), samples[0].max()
    for each in samples[1:]:
        low, high = 0.9 * low + 0.1 * each.min(), 0.9 * high + 0.1 * each.max()
    assert _observed("moving", samples) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantile", [0.9, 0.99, 1.0])
def test_percentiles_are_those_of_the_sorted_data_to_two_bins(name: str, quantile: float) -> None:
    samples = _samples(name)
    everything = np.concatenate([each.ravel() for each in samples])
    width = (everything.max() - everything.min()) / 2048
    low, high = _observed("percentile", samples, quantile)
    wanted = np.quantile(everything, [1 - quantile, quantile])
    assert low == pytest.approx(wanted[0], abs=2 * width)
    assert high == pytest.approx(wanted[1], abs=2 * width)


def _error(data: Float, low: float, high: float, levels: int) -> float:
    step = (high - low) / levels
    return float(np.square(data - (np.clip(np.rint((data - low) / step), 0, levels) * step + low)).mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [255, 15])
def test_the_range_of_least_error_is_as_good_as_any_that_brute_force_finds(name: str, levels: int) -> None:
    samples = _samples(name)
    everything = np.concatenate([each.ravel() for each in samples])
    low, high = _observed("mse", samples, levels=levels)
    ends = min(everything.min(), 0.0), max(everything.max(), 0.0)
    # every pair of ends on a lattice twice as coarse as the observer's own, judged on the data and not on a histogram
    shares = np.linspace(1, 0.1, 30)
    lows = [ends[0] * share for share in shares] if ends[0] < 0 else [0.0]
    highs = [ends[1] * share for share in shares] if ends[1] > 0 else [0.0]
    found = _error(everything, low, high, levels)
    least = min(_error(everything, a, b, levels) for a in lows for b in highs)
    # a bin is an eighth of a step at the least, so that the histogram can hide a 64th of the error
    assert found <= (1 + 1 / 64) * least
    assert found <= (1 + 1 / 64) * _error(everything, *ends, levels)


@pytest.mark.parametrize("kind", ["minmax", "moving", "percentile", "mse"])
def test_what_is_not_finite_is_counted_and_left_out(kind: str) -> None:
    clean = [np.linspace(-1, 2, 500)] * 3
    dirty = [np.concatenate([each, [np.nan, np.inf, -np.inf]]) for each in clean]
    observer = Observer(kind, 0.999, 255)
    for each in dirty:
        observer.see(torch.tensor(each))
    for each in dirty:
        observer.count(torch.tensor(each))
    assert observer.nan == 9
    assert observer.range() == _observed(kind, clean, 0.999)


@pytest.mark.parametrize("kind", ["minmax", "moving", "percentile", "mse"])
def test_no_element_at_all_gives_no_range(kind: str) -> None:
    low, high = _observed(kind, [np.zeros((0, 3))])
    assert low > high


# ---- grids ----


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ends", [(-1.0, 2.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 1e-6), (-3e4, 0.1)])
def test_a_grid_holds_0_and_spans_its_range(ends: tuple[float, float], bits: int, power_of_two: bool) -> None:
    grid = activation_grid(*ends, bits, power_of_two)
    least, most = ((q - grid.zero_point) * np.float64(grid.scale) for q in (grid.low, grid.high))
    assert grid.low <= grid.zero_point <= grid.high  # 0 is on it
    slack = grid.scale * (0.5 + 1e-3)  # what is rounded to the last integers; float32 scales of 16 bits are not finer
    assert least <= min(ends[0], 0) + slack
    assert most >= max(ends[1], 0) - slack - (0 if bits == 8 else grid.scale)
    width = (max(ends[1], 0) - min(ends[0], 0)) / 255 if bits == 8 else max(map(abs, ends)) / 32767.5
    if power_of_two:
        assert np.log2(grid.scale) % 1 == 0
        assert width * (1 - 1e-6) <= grid.scale < 2 * width
    else:
        assert grid.scale == pytest.approx(width, rel=1e-6)
    assert bits == 8 or grid.zero_point == 0


def test_a_range_of_nothing_and_one_too_small_are_noted() -> None:
    assert activation_grid(0.0, 0.0, 8, False).notes == ("it was always 0 in the calibration data",)
    small = activation_grid(0.0, 1e-37, 8, False)
    assert small.scale == 2.0**-100
    assert "too small for float32" in small.notes[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per", ["channel", "tensor", "group"])
def test_a_weight_s_steps_are_those_of_least_error_by_brute_force(bits: int, per: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 12, 3) * torch.tensor([0.01, 1.0, 5.0, 0.3])[:, None, None]
    weight[1, 2, 0] = 9.0
    grid = weight_grid(weight, 0, bits, per=per, group=5, search=True, power_of_two=False)
    values = weight.double().numpy()
    high = (1 << (bits - 1)) - 1
    rows = {
        "channel": [values[row].ravel() for row in range(4)],
        "tensor": [values.ravel()],
        "group": [values[row, start : start + 5].ravel() for row in range(4) for start in (0, 5, 10)],
    }[per]

    def best(row: Float) -> float:
        steps = np.abs(row).max() / high * np.linspace(1, 0.5, 51)
        errors = [np.square(row - np.clip(np.rint(row / step), -high, high) * step).sum() for step in steps]
        return float(steps[int(np.argmin(errors))])

    wanted = np.array([best(row) for row in rows])
    got = grid.scale.double().numpy().ravel()
    if per == "group":  # they are whole multiples of a 255th of the channel's largest
        largest = np.repeat(wanted.reshape(4, 3).max(1), 3)
        assert np.all(np.abs(got - wanted) <= largest / 255 * 0.5 * (1 + 1e-5))
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_without_a_search_a_weight_s_step_holds_its_largest_magnitude() -> None:
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    grid = weight_grid(weight, 0, 8, per="channel", group=0, search=False, power_of_two=False)
    np.testing.assert_allclose(grid.scale, weight.abs().amax(1) / 127, rtol=1e-6)
    power = weight_grid(weight, 0, 8, per="channel", group=0, search=False, power_of_two=True)
    np.testing.assert_array_equal(power.scale, 2.0 ** np.ceil(np.log2(weight.abs().amax(1).double().numpy() / 127)))

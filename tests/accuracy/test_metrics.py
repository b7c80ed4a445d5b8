"""Metrics against scikit-learn and against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.accuracy.metrics import METRICS, find_metric, signal_to_noise
from dsopt.errors import UsageError

_METRICS = pytest.importorskip("sklearn.metrics")


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(seed=st.integers(0, 1000), count=st.integers(1, 50), classes=st.integers(2, 12))
def test_accuracy_is_that_of_scikit_learn(seed: int, count: int, classes: int) -> None:
    outputs = _random(seed, count, classes)
    labels = np.random.default_rng(seed + 1).integers(0, classes, count)
    wanted = 100 * _METRICS.accuracy_score(labels, outputs.argmax(1))
    assert METRICS["accuracy"].function(outputs, labels) == pytest.approx(wanted)


@given(seed=st.integers(0, 1000), count=st.integers(1, 50), width=st.integers(1, 3))
def test_errors_are_those_of_scikit_learn(seed: int, count: int, width: int) -> None:
    outputs, labels = _random(seed, count, width), _random(seed + 1, count, width)
    wanted = math.sqrt(_METRICS.mean_squared_error(labels.astype(np.float64), outputs.astype(np.float64)))
    assert METRICS["rmse"].function(outputs, labels) == pytest.approx(wanted, rel=1e-6)
    assert METRICS["mae"].function(outputs, labels) == pytest.approx(_METRICS.mean_absolute_error(labels, outputs), rel=1e-6)  # fmt: skip


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_single_logit_is_a_class_by_its_sign(shape: tuple[int, ...]) -> None:
    outputs = np.array([-1, 2, 0.5, -3, 0, 4], np.float32).reshape(shape)
    assert METRICS["accuracy"].function(outputs, np.array([0, 1, 1, 1, 0, 0])) == pytest.approx(100 * 4 / 6)


def test_accuracy_of_sequences_counts_every_place() -> None:
    outputs = _random(0, 4, 5, 3)
    labels = outputs.argmax(-1)
    labels[0, :2] = (labels[0, :2] + 1) % 3
    assert METRICS["accuracy"].function(outputs, labels) == pytest.approx(90)


def test_agreement_compares_with_the_float_model() -> None:
    outputs = _random(0, 8, 4)
    other = outputs.copy()
    other[0] = -other[0]
    assert METRICS["agreement"].function(other, outputs) == pytest.approx(100 * 7 / 8)


@given(seed=st.integers(0, 1000))
def test_signal_over_noise_is_ten_logarithms_of_a_ratio(seed: int) -> None:
    reference, noise = _random(seed, 20), 0.01 * _random(seed + 1, 20)
    values = reference + noise
    power = sum(float(each) ** 2 for each in reference)
    error = sum((float(a) - float(b)) ** 2 for a, b in zip(values, reference, strict=True))
    assert signal_to_noise(values, reference) == pytest.approx(10 * math.log10(power / error), abs=1e-9)


def test_signal_over_noise_has_bounds_where_a_power_is_nothing() -> None:
    assert signal_to_noise(np.ones(3), np.ones(3)) == 200
    assert signal_to_noise(np.ones(3), np.zeros(3)) == -200


def test_a_drop_counts_in_points_or_in_percent_of_an_error() -> None:
    assert METRICS["accuracy"].drop(90.0, 89.5) == pytest.approx(0.5)
    assert METRICS["accuracy"].drop(90.0, 91.0) == pytest.approx(-1.0)
    assert METRICS["rmse"].drop(2.0, 2.1) == pytest.approx(5.0)
    assert METRICS["rmse"].drop(0.0, 0.1) == math.inf
    assert METRICS["rmse"].drop(0.0, 0.0) == 0
    assert (METRICS["rmse"].drop_unit, METRICS["snr"].drop_unit) == ("%", "points")


def test_a_function_is_a_metric_whose_larger_values_are_better() -> None:
    def my_f1(outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(outputs.sum())

    found = find_metric(my_f1)
    assert (found.name, found.needs_labels, found.higher_is_better) == ("my_f1", True, True)


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"DS0341: unknown metric 'f1'[\s\S]*known metrics: accuracy, rmse, mae, agreement, snr"
    ):
        find_metric("f1")


@pytest.mark.parametrize(("name", "shape"), [("accuracy", (5, 4)), ("rmse", (5,)), ("mae", (5, 2))])
def test_labels_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"DS0347: labels of shape .* do not fit outputs of shape \[5, 4\]"):
        METRICS[name].function(_random(0, 5, 4), np.zeros(shape))

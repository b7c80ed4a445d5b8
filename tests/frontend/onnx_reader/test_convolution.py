"""Convolution and pooling: every padding, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.onnx_reader.oracle import captured, check, floats, targets

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"dilations": [2, 1], "pads": [2, 0, 2, 0]},
    {"pads": [0, 1, 2, 3]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    {"auto_pad": "VALID", "strides": [2, 1]},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS, ids=str)
def test_a_convolution_pads_as_onnx_runtime_does(attributes: dict[str, Any]) -> None:
    check("Conv", [floats(2, 4, 9, 10)], stored={1: floats(6, 4, 3, 2), 2: floats(6)}, **attributes)


@pytest.mark.parametrize("shape", [(2, 4, 11), (2, 4, 7, 6), (1, 4, 5, 6, 7)], ids=str)
def test_a_grouped_convolution_runs_in_one_to_three_dimensions(shape: tuple[int, ...]) -> None:
    count = len(shape) - 2
    model = check("Conv", [floats(*shape)], stored={1: floats(8, 2, *[3] * count)}, group=2, pads=[1] * (2 * count))
    assert targets(captured(model)) == [f"conv{count}d"]


def test_a_convolution_with_a_computed_weight_runs() -> None:
    check("Conv", [floats(1, 3, 8, 8), floats(5, 3, 3, 3)])


TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {"strides": [2, 3], "pads": [0, 1, 1, 0]},
    {"dilations": [2, 2], "strides": [2, 2]},
    {"strides": [2, 2], "output_shape": [14, 15]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
    {"group": 2},
]


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_a_transposed_convolution_crops_as_onnx_runtime_does(attributes: dict[str, Any]) -> None:
    check(
        "ConvTranspose",
        [floats(2, 4, 6, 7)],
        stored={1: floats(4, 3, 3, 3), 2: floats(3 * attributes.get("group", 1))},
        **attributes,
    )


WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", WINDOWS, ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_pool_has_the_windows_of_onnx_runtime(op: str, attributes: dict[str, Any]) -> None:
    check(op, [floats(2, 3, 9, 10)], opset=19, **attributes)


@pytest.mark.parametrize("attributes", WINDOWS, ids=str)
def test_an_average_counts_its_padding_on_demand(attributes: dict[str, Any]) -> None:
    check("AveragePool", [floats(2, 3, 9, 10)], opset=19, count_include_pad=1, **attributes)


def test_dilated_pools_run() -> None:
    check("MaxPool", [floats(1, 2, 9, 9)], opset=19, kernel_shape=[3, 3], dilations=[2, 2])
    check("AveragePool", [floats(1, 2, 9, 9)], opset=19, kernel_shape=[3, 3], dilations=[2, 2], pads=[1, 1, 1, 1])


def test_the_indices_of_a_pool_count_over_the_whole_input() -> None:
    check("MaxPool", [floats(2, 3, 8, 8)], outputs=2, kernel_shape=[2, 2], strides=[2, 2])


def test_a_pool_of_bytes_stays_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)
    check("MaxPool", [x], kernel_shape=[2, 2])


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 4, 3, 2)], ids=str)
def test_global_pools_keep_their_axes(op: str, shape: tuple[int, ...]) -> None:
    check(op, [floats(*shape)])

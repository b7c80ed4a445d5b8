"""SAME padding by the definition in TensorFlow's documentation: ceil(length / stride) results, the odd place at the end."""

from __future__ import annotations

import pytest
import torch

from models.same_padding import SameConv2d, same_padding


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "expected"),
    [
        (49, 10, 2, (4, 5)),  # both axes of the first convolution of MLPerf Tiny's keyword spotting
        (10, 4, 2, (1, 1)),
        (96, 3, 2, (0, 1)),
        (32, 3, 1, (1, 1)),
        (32, 1, 2, (0, 0)),
        (7, 3, 2, (1, 1)),
    ],
)
def test_padding_is_split_with_the_odd_place_at_the_end(
    length: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(length, kernel, stride) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("image", [(1, 1), (7, 8), (12, 5)])
def test_results_have_the_ceiling_of_the_size(image: tuple[int, int], stride: int) -> None:
    conv = SameConv2d(2, 3, (3, 2), image, stride=stride)
    assert conv(torch.zeros(1, 2, *image)).shape[2:] == tuple(-(-side // stride) for side in image)

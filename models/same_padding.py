"""TensorFlow's SAME padding, which the MLPerf Tiny reference networks were trained with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Module):
    """Convolve (B, Ci, H, W) to (B, Co, ceil(H / stride), ceil(W / stride)), the odd row and column of padding after the image.

    Where both sides of the padding are equal the convolution does it; else a pad node goes before. `image` is (H, W):
    with a stride, the padding depends on the size of the image.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        image: tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        (top, bottom), (left, right) = (same_padding(n, k, stride) for n, k in zip(image, kernel, strict=True))
        even = (top, left) == (bottom, right)
        self.pad = None if even else (left, right, top, bottom)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (top, left) if even else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        return self.conv(x if self.pad is None else F.pad(x, self.pad))


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how much is added before and after an axis so that its result has ceil(length / stride) places."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2

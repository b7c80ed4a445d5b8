"""Convolutions and padding."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.cpu.cases import Cases, floats, module

CASES = Cases()
LINE, IMAGE, VOLUME = floats("B", 4, 11), floats("B", 4, 9, 8), floats("B", 4, 5, 6, 4)

CASES.add("conv1d", module(lambda: nn.Conv1d(4, 6, 3)), LINE)
CASES.add("conv1d_same_even_kernel", module(lambda: nn.Conv1d(4, 6, 4, padding="same")), LINE)
CASES.add("conv1d_dilated", module(lambda: nn.Conv1d(4, 6, 3, dilation=2, padding=2)), LINE)
CASES.add("conv1d_varying_length", module(lambda: nn.Conv1d(4, 6, 3, padding=1)), floats(2, 4, "4B"))
CASES.add("conv2d", module(lambda: nn.Conv2d(4, 6, 3)), IMAGE)
CASES.add("conv2d_no_bias", module(lambda: nn.Conv2d(4, 6, 3, bias=False)), IMAGE)
CASES.add("conv2d_stride", module(lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2))), IMAGE)
CASES.add("conv2d_same", module(lambda: nn.Conv2d(4, 6, (2, 5), padding="same", dilation=(1, 2))), IMAGE)
CASES.add("conv2d_valid", module(lambda: nn.Conv2d(4, 6, 3, padding="valid")), IMAGE)
CASES.add("conv2d_depthwise", module(lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1)), IMAGE)
CASES.add("conv2d_grouped", module(lambda: nn.Conv2d(4, 6, 3, groups=2)), IMAGE)
CASES.add("conv2d_pointwise", module(lambda: nn.Conv2d(4, 6, 1)), IMAGE)
CASES.add("conv2d_varying_image", module(lambda: nn.Conv2d(4, 6, 3, stride=2)), floats(1, 4, "5B", "7B"))
for _mode in ("reflect", "replicate", "circular"):
    CASES.add(f"conv2d_{_mode}", module(partial(nn.Conv2d, 4, 6, 3, padding=1, padding_mode=_mode)), IMAGE)
CASES.add("conv3d", module(lambda: nn.Conv3d(4, 6, 3, padding=1)), VOLUME)
CASES.add("conv2d_unbatched", module(lambda: nn.Conv2d(4, 6, 3)), floats(4, 9, 8))
CASES.add("conv1d_given_weight", lambda x, w: F.conv1d(x, w), LINE, floats(3, 4, 3))
CASES.add("conv_transpose1d", module(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2)), LINE)
CASES.add("conv_transpose2d", module(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)), IMAGE)
CASES.add("conv_transpose2d_grouped", module(lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2)), IMAGE)
CASES.add("conv_transpose3d", module(lambda: nn.ConvTranspose3d(4, 2, 2, stride=2, bias=False)), VOLUME)
CASES.add(
    "convolution",
    lambda x, w: torch.convolution(x, w, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
    IMAGE,
    floats(5, 4, 3, 3),
)
CASES.add(
    "convolution_transposed",
    lambda x, w, b: torch.convolution(x, w, b, [2, 2], [1, 0], [1, 1], True, [1, 0], 2),
    IMAGE,
    floats(4, 3, 3, 3),
    floats(6),
)


def conv_act(activation: str, params: list[float], x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Convolve with padding 1 and apply an activation."""
    return torch.ops.dsopt.conv_act(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, activation, params)


for _activation, _params in (
    ("relu", []), ("relu6", []), ("clamp", [-0.1, 0.4]), ("hardswish", []), ("leaky_relu", [0.2]),
):  # fmt: skip
    CASES.add(f"conv_act_{_activation}", partial(conv_act, _activation, _params), IMAGE, floats(5, 4, 3, 3), floats(5))

CASES.add("pad_constant", lambda x: F.pad(x, (1, 2, 0, 3), value=1.5), IMAGE)
CASES.add("pad_one_axis", lambda x: F.pad(x, (2, 1)), LINE)
CASES.add("pad_negative", lambda x: F.pad(x, (-1, 2, 1, -3)), IMAGE)
CASES.add("pad_crop", lambda x: F.pad(x, (-1, -2)), IMAGE)
CASES.add("pad_batch", lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), LINE)
CASES.add("pad_reflect", lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), IMAGE)
CASES.add("pad_replicate", lambda x: F.pad(x, (3, 2), mode="replicate"), LINE)
CASES.add("pad_circular", lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"), IMAGE)
CASES.add("pad_bool", lambda x: F.pad(x > 0, (1, 1), value=True), LINE)
CASES.add("pad_int", lambda x: F.pad((x * 10).to(torch.int32), (1, 1), value=3), LINE)
CASES.add("pad_varying", lambda x: F.pad(x, (x.shape[0], 1)), floats("B", 3, 4))
CASES.add(
    "pad_modules", module(lambda: nn.Sequential(nn.ReflectionPad1d(2), nn.ZeroPad1d(1), nn.ConstantPad1d(1, 2.0))), LINE
)
CASES.add("unfold_image", lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=2), IMAGE)
CASES.add("fold_image", lambda x: F.fold(x, (5, 6), (2, 3)), floats("B", 12, 16))
CASES.add("unfold_axis", lambda x: x.unfold(2, 4, 3), LINE)

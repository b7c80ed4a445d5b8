"""Pooling."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from tests.backends.cpu.cases import Cases, floats

CASES = Cases()
LINE, IMAGE, VOLUME = floats("B", 3, 11), floats("B", 3, 9, 8), floats("B", 3, 5, 6, 4)

CASES.add("max_1d", lambda x: F.max_pool1d(x, 3), LINE)
CASES.add("max_2d", lambda x: F.max_pool2d(x, 2), IMAGE)
CASES.add("max_2d_padded", lambda x: F.max_pool2d(x, 3, 2, 1), IMAGE)
CASES.add("max_2d_ceil", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), IMAGE)
CASES.add("max_2d_ceil_padded", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), IMAGE)
CASES.add("max_2d_ceil_dropped", lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True), IMAGE)
CASES.add("max_2d_ceil_varying", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), floats(2, 3, "2B", "3B"))
CASES.add("max_2d_dilated", lambda x: F.max_pool2d(x, 2, 1, 0, 2), IMAGE)
CASES.add("max_2d_unbatched", lambda x: F.max_pool2d(x, 2), floats(3, 6, 6))
CASES.add("max_2d_with_indices", lambda x: torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[0], IMAGE)
CASES.add("max_3d", lambda x: F.max_pool3d(x, 2), VOLUME)
CASES.add("max_2d_double", lambda x: F.max_pool2d(x, 2), floats("B", 2, 4, 4, dtype=torch.float64))
for _ceil in (False, True):
    for _include in (False, True):
        for _padding in (0, 1):
            CASES.add(
                f"avg_2d_ceil{_ceil:d}_include{_include:d}_pad{_padding}",
                partial(lambda c, i, p, x: F.avg_pool2d(x, 3, 2, p, c, i), _ceil, _include, _padding),
                IMAGE,
            )
CASES.add("avg_1d", lambda x: F.avg_pool1d(x, 3, 2, 1), LINE)
CASES.add("avg_1d_ceil", lambda x: F.avg_pool1d(x, 4, 3, 1, True), LINE)
CASES.add("avg_3d", lambda x: F.avg_pool3d(x, 2, 2, 1), VOLUME)
CASES.add("avg_3d_ceil", lambda x: F.avg_pool3d(x, 3, 2, 1, True), VOLUME)
CASES.add("avg_2d_divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), IMAGE)
CASES.add("avg_2d_ceil_varying", lambda x: F.avg_pool2d(x, 3, 2, 0, True), floats(2, 3, "2B", "3B"))
CASES.add("avg_2d_unbatched", lambda x: F.avg_pool2d(x, 2), floats(3, 6, 6))
for _size in (1, 3, (2, 5), (3, 4), (9, None)):
    CASES.add(f"adaptive_avg_2d_{_size}", partial(lambda s, x: F.adaptive_avg_pool2d(x, s), _size), IMAGE)
    CASES.add(f"adaptive_max_2d_{_size}", partial(lambda s, x: F.adaptive_max_pool2d(x, s), _size), IMAGE)
CASES.add("adaptive_avg_1d", lambda x: F.adaptive_avg_pool1d(x, 4), LINE)
CASES.add("adaptive_avg_1d_global", lambda x: F.adaptive_avg_pool1d(x, 1), LINE)
CASES.add("adaptive_avg_3d", lambda x: F.adaptive_avg_pool3d(x, (3, 4, 3)), VOLUME)
CASES.add("adaptive_max_1d", lambda x: F.adaptive_max_pool1d(x, 4), LINE)
CASES.add("adaptive_avg_varying_image", lambda x: F.adaptive_avg_pool2d(x, 1), floats(2, 3, "B", "2B"))
CASES.add("adaptive_avg_unbatched", lambda x: F.adaptive_avg_pool2d(x, 2), floats(3, 4, 4))
CASES.add("lp_pool", lambda x: F.lp_pool2d(x.abs(), 2.0, 2), IMAGE)

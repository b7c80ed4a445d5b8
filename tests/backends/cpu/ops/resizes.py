"""Interpolation, shuffles and sampling."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from tests.backends.cpu.cases import Cases, floats, units

CASES = Cases()
LINE, IMAGE, VOLUME = floats("B", 3, 7), floats("B", 3, 5, 6), floats("B", 2, 3, 4, 3)

for _name, _x, _modes in (
    ("line", LINE, ("nearest", "linear", "nearest-exact")),
    ("image", IMAGE, ("nearest", "bilinear", "bicubic", "nearest-exact")),
    ("volume", VOLUME, ("nearest", "trilinear", "nearest-exact")),
):
    for _mode in _modes:
        for _factor in (2, 1.7, 0.6):
            CASES.add(
                f"{_name}_{_mode}_{_factor}",
                partial(lambda m, f, x: F.interpolate(x, scale_factor=f, mode=m), _mode, _factor),
                _x,
                largest=2e-5,
            )
for _mode in ("nearest", "bilinear", "bicubic"):
    CASES.add(f"size_{_mode}", partial(lambda m, x: F.interpolate(x, size=(8, 11), mode=m), _mode), IMAGE, largest=2e-5)
    CASES.add(
        f"size_down_{_mode}", partial(lambda m, x: F.interpolate(x, size=(3, 2), mode=m), _mode), IMAGE, largest=2e-5
    )
CASES.add("line_size", lambda x: F.interpolate(x, size=12, mode="linear"), LINE)
CASES.add("corners_bilinear", lambda x: F.interpolate(x, size=(8, 11), mode="bilinear", align_corners=True), IMAGE)
CASES.add("corners_factor", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=True), IMAGE)
CASES.add(
    "corners_bicubic", lambda x: F.interpolate(x, size=(8, 11), mode="bicubic", align_corners=True), IMAGE, largest=2e-5
)
CASES.add("to_one", lambda x: F.interpolate(x, size=(1, 1), mode="bilinear"), IMAGE)
CASES.add(
    "recomputed", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True), IMAGE
)
CASES.add("antialias", lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True), IMAGE)
CASES.add("varying_nearest", lambda x: F.interpolate(x, scale_factor=2), floats(1, 2, "B", "2B"))
CASES.add("varying_bilinear", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), floats(1, 2, "B", "2B"))
CASES.add(
    "like_another",
    lambda x, y: F.interpolate(x, size=y.shape[2:], mode="bilinear"),
    floats(1, 2, 3, 3),
    floats(1, 2, "B", "2B"),
)
CASES.add("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), floats("B", 8, 3, 4))
CASES.add("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), floats("B", 2, 6, 4))
CASES.add("channel_shuffle", lambda x: F.channel_shuffle(x, 2), floats("B", 6, 2, 3))
for _mode in ("bilinear", "nearest", "bicubic"):
    for _padding in ("zeros", "border", "reflection"):
        CASES.add(
            f"grid_{_mode}_{_padding}",
            partial(lambda m, p, x, g: F.grid_sample(x, g * 1.3, m, p, align_corners=False), _mode, _padding),
            IMAGE,
            units("B", 4, 3, 2),
        )
CASES.add("grid_corners", lambda x, g: F.grid_sample(x, g, align_corners=True), IMAGE, units("B", 4, 3, 2))
CASES.add("grid_volume", lambda x, g: F.grid_sample(x, g, align_corners=False), VOLUME, units("B", 4, 3, 2, 3))
CASES.add("affine_grid", lambda t: F.affine_grid(t, [4, 2, 3, 5], align_corners=False), floats(4, 2, 3))
CASES.add("affine_grid_corners", lambda t: F.affine_grid(t, [4, 2, 3, 5], align_corners=True), floats(4, 2, 3))
CASES.add("nearest_int", lambda x: F.interpolate((x * 50).to(torch.uint8), scale_factor=2), floats("B", 1, 3, 3))

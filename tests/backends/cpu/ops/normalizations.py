"""Normalisations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.backends.cpu.cases import Cases, floats, module

CASES = Cases()
LINE, IMAGE = floats("B", 4, 11), floats("B", 4, 5, 6)

CASES.add("batch_norm_1d", module(lambda: nn.BatchNorm1d(4)), LINE)
CASES.add("batch_norm_matrix", module(lambda: nn.BatchNorm1d(4)), floats("B", 4))
CASES.add("batch_norm_2d", module(lambda: nn.BatchNorm2d(4)), IMAGE)
CASES.add("batch_norm_3d", module(lambda: nn.BatchNorm3d(4, affine=False)), floats("B", 4, 2, 3, 2))
CASES.add("batch_norm_own_statistics", module(lambda: nn.BatchNorm2d(4, track_running_stats=False)), IMAGE)
CASES.add(
    "native_batch_norm",
    lambda x, w, b, m, v: torch.ops.aten._native_batch_norm_legit_no_training(x, w, b, m, v.abs() + 0.1, 0.1, 1e-5)[0],
    IMAGE, floats(4), floats(4), floats(4), floats(4),
)  # fmt: skip
CASES.add("layer_norm", module(lambda: nn.LayerNorm(11)), LINE)
CASES.add("layer_norm_two_axes", module(lambda: nn.LayerNorm((5, 6), eps=1e-3)), IMAGE)
CASES.add("layer_norm_plain", lambda x: F.layer_norm(x, (11,)), LINE)
CASES.add("layer_norm_no_bias", module(lambda: nn.LayerNorm(11, bias=False)), LINE)
CASES.add("layer_norm_double", module(lambda: nn.LayerNorm(6).double()), floats("B", 6, dtype=torch.float64))
CASES.add(
    "native_layer_norm", lambda x, w, b: torch.native_layer_norm(x, [11], w, b, 1e-5)[0], LINE, floats(11), floats(11)
)
CASES.add("rms_norm", module(lambda: nn.RMSNorm(11)), LINE)
CASES.add("rms_norm_eps", module(lambda: nn.RMSNorm(11, eps=1e-2)), LINE)
CASES.add("rms_norm_two_axes", lambda x: F.rms_norm(x, (5, 6)), IMAGE)
CASES.add("group_norm", module(lambda: nn.GroupNorm(2, 4)), IMAGE)
CASES.add("group_norm_plain", module(lambda: nn.GroupNorm(4, 4, affine=False)), LINE)
CASES.add("group_norm_matrix", module(lambda: nn.GroupNorm(2, 4)), floats("B", 4))
CASES.add("group_norm_varying_image", module(lambda: nn.GroupNorm(2, 4)), floats(2, 4, "B", "B"))
CASES.add("instance_norm_1d", module(lambda: nn.InstanceNorm1d(4)), LINE)
CASES.add("instance_norm_2d", module(lambda: nn.InstanceNorm2d(4, affine=True)), IMAGE)
CASES.add("instance_norm_running", module(lambda: nn.InstanceNorm2d(4, track_running_stats=True)), IMAGE)
CASES.add("local_response_norm", lambda x: F.local_response_norm(x, 3), IMAGE)
CASES.add("normalize", lambda x: F.normalize(x, dim=-1), LINE)
CASES.add("weight_norm", lambda v, g: torch._weight_norm(v, g, 0), floats(4, 3), floats(4, 1))
CASES.add("cosine_similarity", lambda a, b: F.cosine_similarity(a, b, dim=1), LINE, LINE)
CASES.add("dropout", module(lambda: nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())), IMAGE)

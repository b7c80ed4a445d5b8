"""Operators without a converter of their own, which torch lowers to simpler ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.backends.cpu.cases import Cases, floats, ints, module, positive

CASES = Cases()
X, Y = floats("B", 3, 3), floats("B", 3, 3, scale=0.5)

CASES.add("mse_loss", F.mse_loss, X, Y)
CASES.add("l1_loss", F.l1_loss, X, Y)
CASES.add("smooth_l1_loss", F.smooth_l1_loss, X, Y)
CASES.add("huber_loss", F.huber_loss, X, Y)
CASES.add("cross_entropy", F.cross_entropy, floats("B", 5), ints("B"))
CASES.add("binary_cross_entropy", F.binary_cross_entropy_with_logits, X, (lambda b: (Y(b) > 0).float()))
CASES.add("kl_div", lambda x, y: F.kl_div(x, y.softmax(-1), reduction="batchmean"), X, Y)
CASES.add("pairwise_distance", F.pairwise_distance, X, Y)
CASES.add("logaddexp", torch.logaddexp, X, Y)
CASES.add("sinc", torch.sinc, X)
CASES.add("xlogy", torch.xlogy, X, positive("B", 3, 3))
CASES.add("trace", lambda x: torch.trace(x[0]), X)
CASES.add("tensordot", lambda x, y: torch.tensordot(x, y, dims=([1, 2], [1, 2])), X, Y)
CASES.add("inner", lambda x, y: torch.inner(x, y[0]), X, Y)
CASES.add("kron", lambda x: torch.kron(x[0], x[0]), X, is_static=True)
CASES.add("diff", torch.diff, X)
CASES.add("column_stack", lambda x, y: torch.column_stack([x, y]), X, Y)
CASES.add("dstack", lambda x, y: torch.dstack([x, y]), X, Y)
CASES.add("isclose", lambda x, y: torch.isclose(x, y, atol=0.5), X, Y)
CASES.add("cross", torch.linalg.cross, X, Y)
CASES.add("special", lambda x: (torch.special.expit(x), torch.special.erf(x), torch.special.softmax(x, -1)), X)
CASES.add("deg2rad", lambda x: torch.deg2rad(x) + torch.rad2deg(x), X)
CASES.add("narrowed_copy", lambda x: x.index_select(1, torch.tensor([0, 2])), X)
CASES.add("atleast", lambda x: torch.atleast_2d(x.sum(-1)), X)
CASES.add("block_diag", lambda x: torch.block_diag(x[0], x[1]), X, is_static=True)
CASES.add("cosine_distance_layer", module(lambda: nn.CosineSimilarity(-1)), X, Y)
CASES.add("square_relu", lambda x: torch.pow(F.relu(x), 2).clip(max=1.0), X)
CASES.add("log_normal_cdf", lambda x: torch.special.ndtr(x), X)
CASES.add("local_variance", lambda x: F.avg_pool1d(x**2, 3) - F.avg_pool1d(x, 3) ** 2, X)
CASES.add("rrelu_module", module(lambda: nn.RReLU()), X)
CASES.add("stft_free_window", lambda x: x * torch.hann_window(3), X)
CASES.add("isin", lambda x: torch.isin(x, torch.tensor([0, 2])), ints("B", 3))
CASES.add("nan_mean", lambda x: torch.nanmean(x, 1), X)

"""Activations."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.backends.cpu.cases import Cases, floats, module

CASES = Cases()
X = floats("B", 3, 5, scale=3.0)

for _name in (
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "logsigmoid",
    "hardsigmoid", "hardswish", "softshrink", "hardshrink", "tanhshrink", "softsign", "tanh", "sigmoid", "glu", "rrelu",
):  # fmt: skip
    _function = getattr(F, _name)
    CASES.add(_name, partial(lambda f, x: f(x), _function), floats("B", 3, 6, scale=3.0))

CASES.add("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), X)
CASES.add("leaky_relu_slope", lambda x: F.leaky_relu(x, 0.2), X)
CASES.add("elu_alpha", lambda x: F.elu(x, 0.7), X)
CASES.add("celu_alpha", lambda x: F.celu(x, 0.7), X)
CASES.add("softplus_beta", lambda x: F.softplus(x, 2.0, 5.0), floats("B", 9, scale=5.0))
CASES.add("hardtanh_bounds", lambda x: F.hardtanh(x, -0.5, 2.0), X)
CASES.add("threshold", lambda x: F.threshold(x, 0.3, -7.0), X)
CASES.add("softshrink_lambda", lambda x: F.softshrink(x, 1.5), X)
CASES.add("prelu_one", module(lambda: nn.PReLU()), X)
CASES.add("prelu_channels", module(lambda: nn.PReLU(3, 0.3)), floats("B", 3, 4, 4))
CASES.add("prelu_matrix", module(lambda: nn.PReLU(3, 0.3)), floats("B", 3))
CASES.add("softmax", lambda x: torch.softmax(x, 1), X)
CASES.add("softmax_first", lambda x: torch.softmax(x, 0), X)
CASES.add("softmax_dtype", lambda x: torch.softmax(x, -1, dtype=torch.float64), X)
CASES.add("softmax_scalar", lambda x: torch.softmax(x.sum(), 0), X)
CASES.add("log_softmax", lambda x: torch.log_softmax(x, -1), X)
CASES.add("softmin", lambda x: F.softmin(x, -1), X)
CASES.add("relu_int", lambda x: torch.relu(x.to(torch.int64)), X)
CASES.add("silu_double", lambda x: F.silu(x), floats("B", 4, dtype=torch.float64))
CASES.add("glu_first", lambda x: F.glu(x, 1), floats("B", 4, 3))
for _activation, _params in (
    ("none", []), ("relu", []), ("relu6", []), ("clamp", [-0.5, 0.7]), ("leaky_relu", [0.1]), ("elu", [0.8]),
    ("hardswish", []), ("hardsigmoid", []), ("sigmoid", []), ("tanh", []), ("gelu", []), ("gelu_tanh", []), ("silu", []),
):  # fmt: skip
    CASES.add(
        f"add_act_{_activation}",
        partial(lambda a, p, x, y: torch.ops.dsopt.add_act(x, y, a, p), _activation, _params),
        X,
        floats(5),
    )

"""Windows of signal processing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, to_type
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.tensors import torch_dtype

_COEFFICIENTS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator("HannWindow", "HammingWindow", "BlackmanWindow")
def window(call: Call) -> Tensor:
    """Sum cosines over a window of a given length."""
    size = call.number(0)
    first, second, third = _COEFFICIENTS[call.node.op]
    divisor = size if call.integer("periodic", 1) else size - 1
    angle = torch.arange(size, dtype=torch.float32) * (2 * math.pi / divisor)
    result = first - second * torch.cos(angle) + third * torch.cos(2 * angle)
    return to_type(result, torch_dtype(call.integer("output_datatype", 1), "the result"))

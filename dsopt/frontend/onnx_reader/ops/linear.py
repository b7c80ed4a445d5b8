"""Matrix products."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, to_type
from dsopt.frontend.onnx_reader.lower import LINEAR
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator


@operator("MatMul")
def matmul(call: Call) -> Tensor:
    """Multiply matrices, broadcasting the axes before."""
    return torch.matmul(call.tensor(0), call.tensor(1))


@operator(LINEAR)
def linear(call: Call) -> Tensor:
    """x W^T + b, with a stored W."""
    return F.linear(call.tensor(0), call.tensor(1), call.optional(2))


@operator("Gemm")
def gemm(call: Call) -> Tensor:
    """alpha A B + beta C, with A and B turned on demand."""
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    if a.dim() != 2 or b.dim() != 2:
        raise MalformedError("its operands are no matrices")
    product = torch.matmul(a.t() if call.integer("transA", 0) else a, b.t() if call.integer("transB", 0) else b)
    product = _scaled(product, alpha)
    return product if c is None or beta == 0 else product + _scaled(c, beta)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else to_type(x * factor, x.dtype)


@operator("Einsum")
def einsum(call: Call) -> Tensor:
    """Sum products in Einstein's notation."""
    equation = call.text("equation", "")
    if not re.fullmatch(r"[A-Za-z\s,.>-]{1,400}", equation):
        raise MalformedError(f"its equation is {equation[:60]!r}")
    result: Tensor = torch.einsum(re.sub(r"\s", "", equation), *call.tensors())
    return result

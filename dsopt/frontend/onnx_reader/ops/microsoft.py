"""Fused operators that ONNX Runtime's optimiser writes (domain com.microsoft)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call
from dsopt.frontend.onnx_reader.ops.attention import both, causal_mask, join_heads, rotated, split_heads
from dsopt.frontend.onnx_reader.ops.convolution import convolve
from dsopt.frontend.onnx_reader.ops.elementwise import clamped
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator

MS = "com.microsoft."


@operator(f"{MS}Gelu")
def gelu(call: Call) -> Tensor:
    """Gelu."""
    return F.gelu(call.tensor(0))


@operator(f"{MS}BiasGelu")
def bias_gelu(call: Call) -> Tensor:
    """Gelu of a sum."""
    return F.gelu(call.tensor(0) + call.tensor(1))


@operator(f"{MS}FastGelu")
def fast_gelu(call: Call) -> Tensor:
    """Gelu by tanh, of a sum on demand."""
    x = call.tensor(0)
    return F.gelu(x + call.tensor(1) if call.has(1) else x, approximate="tanh")


@operator(f"{MS}QuickGelu")
def quick_gelu(call: Call) -> Tensor:
    """x * sigmoid(alpha * x)."""
    x, alpha = call.tensor(0), call.real("alpha", 1.702)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@operator(f"{MS}BiasAdd")
def bias_add(call: Call) -> Tensor:
    """Add a bias and a skip connection."""
    return call.tensor(0) + call.tensor(1) + call.tensor(2)


def _activated(call: Call, x: Tensor) -> Tensor:
    """Apply the activation that was fused into a node."""
    name = call.text("activation", "")
    numbers = call.reals("activation_params") or []
    if name in ("", "Relu", "Tanh", "Sigmoid", "Gelu"):
        functions = {"": lambda y: y, "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Gelu": F.gelu}
        result: Tensor = functions[name](x)
        return result
    if name == "LeakyRelu":
        return F.leaky_relu(x, numbers[0] if numbers else call.real("activation_alpha", 0.01))
    if name == "Clip" and len(numbers) == 2:
        return clamped(x, numbers[0], numbers[1])
    if name == "HardSigmoid" and len(numbers) == 2:
        return torch.clamp(x * numbers[0] + numbers[1], 0.0, 1.0)
    raise call.unsupported(
        f"{call.node.op} with activation {name!r}", "Relu, Tanh, Sigmoid, LeakyRelu, Clip or HardSigmoid"
    )


@operator(f"{MS}FusedConv")
def fused_convolution(call: Call) -> Tensor:
    """Convolve, add a skip connection on demand, then activate."""
    y = convolve(call, call.tensor(0), call.tensor(1), call.optional(2))
    return _activated(call, y + call.tensor(3) if call.has(3) else y)


@operator(f"{MS}FusedGemm")
def fused_gemm(call: Call) -> Tensor:
    """Multiply matrices, add, then activate."""
    a, b = call.tensor(0), call.tensor(1)
    a, b = a.t() if call.integer("transA", 0) else a, b.t() if call.integer("transB", 0) else b
    y = torch.matmul(a, b) * call.real("alpha", 1.0)
    return _activated(call, y + call.tensor(2) * call.real("beta", 1.0) if call.has(2) else y)


@operator(f"{MS}FusedMatMul", f"{MS}TransposeMatMul")
def fused_matmul(call: Call) -> Tensor:
    """Multiply matrices that may be transposed, and scale."""
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise call.unsupported("FusedMatMul with transposed batches", "transA and transB")
    a, b = call.tensor(0), call.tensor(1)
    a = a.transpose(-1, -2) if call.integer("transA", 0) else a
    b = b.transpose(-1, -2) if call.integer("transB", 0) else b
    alpha = call.real("alpha", 1.0)
    product = torch.matmul(a, b)
    return product if alpha == 1.0 else product * alpha


def _skip_sum(call: Call, bias_index: int) -> Tensor:
    total = call.tensor(0) + call.tensor(1)
    return total + call.tensor(bias_index) if call.has(bias_index) else total


@operator(f"{MS}SkipLayerNormalization")
def skip_layer_normalization(call: Call) -> tuple[Tensor | None, ...]:
    """Normalise a sum over the last axis; the sum is the fourth output."""
    total, weight = _skip_sum(call, 4), call.tensor(2)
    y = F.layer_norm(total, list(weight.shape), weight, call.optional(3), call.real("epsilon", 1e-12))
    return y, None, None, total


@operator(f"{MS}SkipSimplifiedLayerNormalization")
def skip_rms_normalization(call: Call) -> tuple[Tensor | None, ...]:
    """Divide a sum by its root mean square over the last axis; the sum is the fourth output."""
    total, weight = _skip_sum(call, 3), call.tensor(2)
    return F.rms_norm(total, list(weight.shape), weight, call.real("epsilon", 1e-12)), None, None, total


@operator("SimplifiedLayerNormalization", f"{MS}SimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call) -> Tensor:
    """Divide by the root mean square over the last axes."""
    weight = call.tensor(1)
    return F.rms_norm(call.tensor(0), list(weight.shape), weight, call.real("epsilon", 1e-5))


@operator(f"{MS}EmbedLayerNormalization")
def embed_layer_normalization(call: Call) -> tuple[Tensor | None, ...]:
    """Sum the embeddings of tokens, positions and segments, and normalise."""
    ids = call.tensor(0)
    total = F.embedding(ids, call.tensor(2))
    positions = call.tensor(8) if call.has(8) else torch.arange(ids.shape[1])
    total = total + F.embedding(positions, call.tensor(3))
    if call.has(1) and call.has(4):
        total = total + F.embedding(call.tensor(1), call.tensor(4))
    weight = call.tensor(5)
    y = F.layer_norm(total, list(weight.shape), weight, call.tensor(6), call.real("epsilon", 1e-12))
    if call.wants(1) and not call.has(7):
        raise call.unsupported("EmbedLayerNormalization that returns a mask and is given none", "a mask as input 7")
    lengths = call.tensor(7).sum(1).to(torch.int32) if call.wants(1) else None
    return y, lengths, total


@operator(f"{MS}MultiHeadAttention")
def multi_head_attention(call: Call) -> Tensor | tuple[Tensor, ...]:
    """Attend with heads side by side in the last axis."""
    heads = call.integer("num_heads", 0)
    q = call.tensor(0)
    if q.dim() != 3 or not call.has(1) or not call.has(2):
        raise call.unsupported("MultiHeadAttention with packed inputs", "separate query, key and value")
    k, v = call.tensor(1), call.tensor(2)
    if call.has(3):
        widths = [q.shape[-1], q.shape[-1], v.shape[-1] if v.dim() == 3 else v.shape[1] * v.shape[3]]
        biases = torch.split(call.tensor(3), widths)
        q = q + biases[0]
        k, v = (part + bias if part.dim() == 3 else part for part, bias in ((k, biases[1]), (v, biases[2])))
    q = split_heads(q, heads)
    k, v = (split_heads(part, heads) if part.dim() == 3 else part for part in (k, v))
    if call.has(6):
        k, v = torch.cat([call.tensor(6), k], 2), torch.cat([call.tensor(7), v], 2)
    mask = both(_padding_mask(call, 4, k.shape[2]), call.optional(5), q.dtype)
    y = join_heads(_attend(call, q, k, v, mask))
    return (y, k, v) if call.output_count > 1 else y


def _padding_mask(call: Call, index: int, keys: Any) -> Tensor | None:
    """Return a mask (B, 1, 1 or T, S) of the keys that may be seen, given as one bit a key or as lengths."""
    given = call.optional(index)
    if given is None:
        return None
    if given.dim() == 1:
        return torch.arange(keys) < given.reshape(-1, 1, 1, 1)
    if given.dim() not in (2, 3):
        raise call.unsupported(f"a mask with {given.dim()} axes", "a mask (batch, keys)")
    seen = given != 0
    return seen[:, None, None, :] if given.dim() == 2 else seen[:, None]


def _attend(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scale = call.real("scale", 0.0) or None
    is_causal = bool(call.integer("unidirectional", 0))
    if is_causal and (mask is not None or call.has(6) or q.shape[2] != k.shape[2]):
        seen = causal_mask(q.shape[2], k.shape[2], k.shape[2] - q.shape[2])
        is_causal, mask = False, both(mask, seen, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale)


@operator(f"{MS}Attention")
def packed_attention(call: Call) -> Tensor:
    """Project to queries, keys and values by one matrix, and attend."""
    if call.has(4) or call.has(6) or call.wants(1):
        raise call.unsupported(
            "com.microsoft.Attention with a cache", "MultiHeadAttention with past_key and past_value"
        )
    heads, weight = call.integer("num_heads", 0), call.tensor(1)
    projected = torch.matmul(call.tensor(0), weight)
    projected = projected + call.tensor(2) if call.has(2) else projected
    widths = call.integers("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    q, k, v = (split_heads(part, heads) for part in torch.split(projected, widths, -1))
    mask = both(_padding_mask(call, 3, k.shape[2]), call.optional(5), q.dtype)
    return join_heads(_attend(call, q, k, v, mask))


@operator(f"{MS}RotaryEmbedding")
def rotary_embedding(call: Call) -> Tensor:
    """Turn pairs of features by the angles of their positions."""
    x, positions = call.tensor(0), call.tensor(1)
    if positions.dim() == 1:  # one offset for the whole batch
        positions = positions + torch.arange(x.shape[-2])
        positions = positions.unsqueeze(0)
    if x.dim() == 3 and not call.integer("num_heads", 0):
        heads = x.shape[-1] // (2 * call.tensor(2).shape[-1])
        if heads * 2 * call.tensor(2).shape[-1] != x.shape[-1]:
            raise MalformedError("its features are no multiple of the rotated ones")
        return join_heads(rotated(call, split_heads(x, heads), call.tensor(2), call.tensor(3), positions))
    return rotated(call, x, call.tensor(2), call.tensor(3), positions)

"""Scaled dot-product attention and rotary positions, as one node each where torch has it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.tensors import torch_dtype


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, S, H * D) as (B, H, S, D)."""
    if heads < 1 or x.shape[-1] % heads:
        raise MalformedError(f"{x.shape[-1]} features do not make {heads} heads")
    return torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Return (B, H, S, D) as (B, S, H * D)."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, H', S, D) with each head repeated until there are `heads`."""
    if x.shape[1] == heads:
        return x
    if heads % x.shape[1]:
        raise MalformedError(f"{heads} query heads do not share {x.shape[1]} key heads")
    return x.unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def causal_mask(queries: Any, keys: Any, offset: Any) -> Tensor:
    """Return (T, S) bool, or (B, 1, T, S) for an offset a sequence: key j is seen by query i where j <= i + offset."""
    return _distance(queries, keys, offset) >= 0


def _distance(queries: Any, keys: Any, offset: Any) -> Tensor:
    """Return how far each key lies before each query."""
    rows = torch.arange(queries).unsqueeze(1)
    if isinstance(offset, Tensor):
        rows = rows + to_type(offset, torch.int64).reshape(-1, 1, 1, 1)
    elif not (isinstance(offset, int) and offset == 0):
        rows = rows + offset
    return rows - torch.arange(keys).unsqueeze(0)


def both(left: Tensor | None, right: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Combine two masks, each bool (true where a key is seen) or additive."""
    if left is None or right is None:
        return left if right is None else right
    if left.dtype == torch.bool and right.dtype == torch.bool:
        return left & right
    return additive(left, dtype) + additive(right, dtype)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to the scores."""
    if mask.dtype != torch.bool:
        return to_type(mask, dtype)
    return torch.zeros([], dtype=dtype).masked_fill(~mask, -math.inf)


@operator("Attention")
def attention(call: Call) -> Tensor | tuple[Tensor, ...]:
    """Attend, with grouped heads, masks, a cache of keys and values, and windows."""
    q, k, v, mask = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    is_flat = q.dim() == 3
    if is_flat:
        heads, key_heads = call.integer("q_num_heads", 0), call.integer("kv_num_heads", 0)
        q, k, v = split_heads(q, heads), split_heads(k, key_heads), split_heads(v, key_heads)
    past = call.optional(4)
    if past is not None:
        k, v = torch.cat([past, k], 2), torch.cat([call.tensor(5), v], 2)
    present = k, v
    lengths = call.optional(6)
    offset: Any = 0 if past is None else past.shape[2]
    if lengths is not None and past is None:
        offset = lengths - q.shape[2]
    is_causal, mask = _mask(call, q, k, mask, offset, lengths)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scale = call.real("scale", 0.0) if "scale" in call.node.attributes else None
    softcap = call.real("softcap", 0.0)
    precise = call.integer("softmax_precision", 0)
    if not softcap and not call.wants(3) and (not precise or torch_dtype(precise, "softmax") == q.dtype):
        y = F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale)
        scores = None
    else:
        if is_causal:
            mask = causal_mask(q.shape[2], k.shape[2], 0)
        y, scores = _written_out(call, q, k, v, mask, softcap)
    y = join_heads(y) if is_flat else y
    outputs = (y, *present) if scores is None else (y, *present, scores)
    return outputs if call.output_count > 1 else y


def _mask(
    call: Call, q: Tensor, k: Tensor, mask: Tensor | None, offset: Any, lengths: Tensor | None
) -> tuple[bool, Tensor | None]:
    """Return whether torch's own causal mask does, and else the mask of all that restricts the keys."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None and isinstance(mask.shape[-1], int) and mask.shape[-1] != keys:
        fill = 0.0 if mask.dtype == torch.bool else -math.inf
        is_bool = mask.dtype == torch.bool
        widened = F.pad(mask.to(q.dtype) if is_bool else mask, [0, keys - mask.shape[-1]], value=fill)
        mask = widened != 0 if is_bool else widened
    left, right = call.integer("left_window_size", -1), call.integer("right_window_size", -1)
    is_causal = bool(call.integer("is_causal", 0))
    has_offset = not (isinstance(offset, int) and offset == 0)
    if is_causal and mask is None and lengths is None and left < 0 and right < 0 and not has_offset:
        return True, None
    if is_causal:
        mask = both(mask, causal_mask(queries, keys, offset), q.dtype)
    if left >= 0:
        mask = both(mask, _distance(queries, keys, offset) <= left, q.dtype)
    if right >= 0:
        mask = both(mask, _distance(queries, keys, offset) >= -right, q.dtype)
    if lengths is not None:
        mask = both(mask, torch.arange(keys) < lengths.reshape(-1, 1, 1, 1), q.dtype)
    return False, mask


def _written_out(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Return the result and the scores at the stage that the node asks for."""
    scale = call.real("scale", 0.0) if "scale" in call.node.attributes else 1.0 / math.sqrt(q.shape[-1])
    scores = torch.matmul(q * math.sqrt(scale), k.transpose(-1, -2) * math.sqrt(scale))
    capped = torch.tanh(scores / softcap) * softcap if softcap else scores
    bias = None if mask is None else additive(mask, q.dtype)
    biased = capped if bias is None else capped + bias
    precision = call.integer("softmax_precision", 0)
    wide = to_type(biased, torch_dtype(precision, "softmax")) if precision else biased
    weights = torch.softmax(wide, -1)
    if bias is not None:  # a query that sees no key gets zeros
        weights = torch.where(torch.isneginf(bias.amax(-1, keepdim=True)), torch.zeros_like(weights), weights)
    mode = call.integer("qk_matmul_output_mode", 0)
    stages = scores, capped, biased, to_type(weights, q.dtype)
    if not 0 <= mode < len(stages):
        raise MalformedError(f"attribute 'qk_matmul_output_mode' is {mode}")
    return torch.matmul(to_type(weights, q.dtype), v), stages[mode]


@operator("RotaryEmbedding")
def rotary_embedding(call: Call) -> Tensor:
    """Turn pairs of features by angles that depend on the position."""
    x, positions = call.tensor(0), call.optional(3)
    return rotated(call, x, call.tensor(1), call.tensor(2), positions)


def rotated(call: Call, x: Tensor, cosine: Tensor, sine: Tensor, positions: Tensor | None) -> Tensor:
    """Rotate (B, H, S, D) or (B, S, H * D) by cached cosines and sines."""
    is_flat = x.dim() == 3
    rows = split_heads(x, call.integer("num_heads", 0)) if is_flat else x
    width = call.integer("rotary_embedding_dim", 0) or rows.shape[-1]
    turning, rest = rows[..., :width], rows[..., width:]
    if positions is not None:
        cosine, sine = F.embedding(positions, cosine), F.embedding(positions, sine)
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    if call.integer("interleaved", 0):
        first, second = turning[..., 0::2], turning[..., 1::2]
        pairs = [cosine * first - sine * second, sine * first + cosine * second]
        turned = torch.stack(pairs, -1).flatten(-2)
    else:
        first, second = turning.chunk(2, -1)
        turned = torch.cat([cosine * first - sine * second, sine * first + cosine * second], -1)
    turned = turned if width == rows.shape[-1] else torch.cat([turned, rest], -1)
    return join_heads(turned) if is_flat else turned

"""Attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.cpu.cases import Cases, bools, floats, module, value

CASES = Cases()
Q, K = floats("B", 2, 5, 4), floats("B", 2, 7, 4)


def sdpa(**options: Any) -> Any:
    """Return attention with options; a fourth argument is the mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)

    return attend


class SelfAttention(nn.Module):
    """The usual block: one projection, split into heads, joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, 8))


CASES.add("plain", sdpa(), Q, Q, Q)
CASES.add("cross", sdpa(), Q, K, K)
CASES.add("scale", sdpa(scale=0.3), Q, K, K)
CASES.add("value_size", sdpa(), Q, K, floats("B", 2, 7, 6))
CASES.add("causal", sdpa(is_causal=True), Q, Q, Q)
CASES.add("causal_fewer_queries", sdpa(is_causal=True), Q, K, K)
CASES.add("causal_more_queries", sdpa(is_causal=True), K, Q, Q)
CASES.add("float_mask", sdpa(), Q, K, K, floats(5, 7))
CASES.add("float_mask_heads", sdpa(), Q, K, K, floats("B", 2, 5, 7))
CASES.add("float_mask_infinite_row", sdpa(), Q, K, K, value([[float("-inf")] * 7] + [[0.0] * 7] * 4))
CASES.add("bool_mask", sdpa(), Q, K, K, bools(5, 7))
CASES.add("bool_mask_padding", sdpa(), Q, K, K, bools("B", 1, 1, 7))
CASES.add("bool_mask_all_false", sdpa(), Q, K, K, value([[False] * 7] * 3 + [[True] * 7] * 2))
CASES.add("grouped_heads", sdpa(enable_gqa=True), floats("B", 4, 5, 4), K, K)
CASES.add("grouped_heads_causal", sdpa(enable_gqa=True, is_causal=True), floats("B", 4, 7, 4), K, K)
CASES.add("rank_3", sdpa(), floats("B", 5, 4), floats("B", 7, 4), floats("B", 7, 4))
CASES.add("rank_3_causal", sdpa(is_causal=True), floats("B", 5, 4), floats("B", 7, 4), floats("B", 7, 4))
CASES.add(
    "rank_5_masked", sdpa(), floats("B", 2, 2, 5, 4), floats("B", 2, 2, 7, 4), floats("B", 2, 2, 7, 4), bools(5, 7)
)
CASES.add("shared_keys", sdpa(), Q, floats(1, 2, 7, 4), floats(1, 2, 7, 4))
CASES.add("double", sdpa(), *[floats("B", 2, 5, 4, dtype=torch.float64)] * 3)
CASES.add("double_causal", sdpa(is_causal=True), *[floats("B", 2, 5, 4, dtype=torch.float64)] * 3)
CASES.add("half", sdpa(), *[floats("B", 2, 5, 4, dtype=torch.float16)] * 3, largest=3e-3)
CASES.add("large_scores", sdpa(scale=100.0), floats("B", 2, 5, 4, scale=10.0), K, K, largest=1e-4)
CASES.add("varying_length", sdpa(is_causal=True), *[floats(2, 2, "B", 4)] * 3)
CASES.add(
    "varying_lengths_masked",
    sdpa(),
    floats(2, 2, "B", 4),
    floats(2, 2, "2B", 4),
    floats(2, 2, "2B", 4),
    bools(1, 1, 1, "2B"),
)
CASES.add("self_attention", module(SelfAttention), floats("B", 5, 8))
CASES.add("self_attention_varying_length", module(SelfAttention), floats(2, "B", 8))
MULTIHEAD = module(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
CASES.add("multihead_module", lambda x: MULTIHEAD(x, x, x, need_weights=False)[0], floats("B", 5, 8))
CASES.add("multihead_weights", lambda x: MULTIHEAD(x, x, x), floats("B", 5, 8))
CASES.add("encoder_layer", module(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), floats("B", 5, 8))
CASES.add(
    "encoder_layer_norm_first", module(lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="gelu")),
    floats(5, "B", 8),
)  # fmt: skip
CASES.add(
    "decoder_layer",
    module(lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)),
    floats("B", 5, 8),
    floats("B", 3, 8),
)

"""Layers: convolutions, pools, norms, products, attention and recurrence, as users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.tir.case import Function, On

CONV: dict[str, Function] = {
    "plain": On(nn.Conv2d(6, 5, 3)),
    "padded": On(nn.Conv2d(6, 5, 3, padding=1)),
    "stride": On(nn.Conv2d(6, 4, 3, 2, 1)),
    "one": On(nn.Conv2d(6, 7, 1)),
    "one_stride": On(nn.Conv2d(6, 3, 1, 2)),
    "one_padded": On(nn.Conv2d(6, 3, 1, padding=1)),
    "no_bias": On(nn.Conv2d(6, 5, 3, bias=False)),
    "depthwise": On(nn.Conv2d(6, 6, 3, padding=1, groups=6)),
    "multiplier": On(nn.Conv2d(6, 12, 3, padding=1, groups=6)),
    "grouped": On(nn.Conv2d(6, 9, 3, padding=1, groups=3)),
    "dilated": On(nn.Conv2d(6, 4, 3, padding=2, dilation=2)),
    "dilated_stride": On(nn.Conv2d(6, 4, 3, 2, padding=3, dilation=3)),
    "uneven": On(nn.Conv2d(6, 4, (1, 5), (2, 1), (0, 2))),
    "wide_pad": On(nn.Conv2d(6, 4, 2, padding=3)),
    "same": On(nn.Conv2d(6, 4, 3, padding="same")),
    "same_even": On(nn.Conv2d(6, 4, 4, padding="same")),
    "valid": On(nn.Conv2d(6, 4, 2, padding="valid")),
    "large": On(nn.Conv2d(6, 4, (9, 7))),
    "reflect": On(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
    "circular": On(nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")),
    "conv1d": On(nn.Conv1d(6, 4, 5, padding=2), 1),
    "conv1d_dilated": On(nn.Conv1d(6, 6, 3, padding=4, dilation=4, groups=2), 1),
    "conv1d_stride": On(nn.Conv1d(6, 4, 4, 3), 1),
    "causal": lambda x, t, v: F.conv1d(F.pad(t, (2, 0)), torch.ones(6, 1, 3), groups=6),
    "conv3d": On(nn.Conv3d(2, 3, 3, padding=1), 2),
    "conv3d_stride": On(nn.Conv3d(2, 4, (1, 2, 3), (1, 2, 1), groups=2), 2),
    "transposed": On(nn.ConvTranspose2d(6, 4, 2, 2)),
    "transposed_pad": On(nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1)),
    "transposed_groups": On(nn.ConvTranspose2d(6, 4, 3, groups=2)),
    "transposed_dilated": On(nn.ConvTranspose2d(6, 3, 3, 2, 2, dilation=2)),
    "transposed1d": On(nn.ConvTranspose1d(6, 4, 4, 2, 1), 1),
    "transposed3d": On(nn.ConvTranspose3d(2, 3, 2, 2), 2),
    "max_pool": lambda x, t, v: F.max_pool2d(x, 2),
    "max_pool_pad": lambda x, t, v: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda x, t, v: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "max_pool_dilated": lambda x, t, v: F.max_pool2d(x, 3, 1, 1, 2),
    "max_pool_index": lambda x, t, v: F.max_pool2d(x, 2, return_indices=True)[1],
    "max_pool1d": lambda x, t, v: F.max_pool1d(t, 3, 2),
    "max_pool3d": lambda x, t, v: F.max_pool3d(v, 2),
    "avg_pool": lambda x, t, v: F.avg_pool2d(x, 2),
    "avg_pool_pad": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool_exclude": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool_ceil": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool_divisor": lambda x, t, v: F.avg_pool2d(x, 2, divisor_override=3),
    "avg_pool1d": lambda x, t, v: F.avg_pool1d(t, 3),
    "avg_pool3d": lambda x, t, v: F.avg_pool3d(v, 2),
    "global": lambda x, t, v: F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x, t, v: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive_max": lambda x, t, v: F.adaptive_max_pool2d(x, (3, 4)),
    "adaptive1d": lambda x, t, v: F.adaptive_avg_pool1d(t, 5),
    "adaptive_max1d": lambda x, t, v: F.adaptive_max_pool1d(t, 4),
    "lp_pool": lambda x, t, v: F.lp_pool2d(x.abs(), 2.0, 2),
    "nearest": lambda x, t, v: F.interpolate(x, scale_factor=2),
    "nearest_size": lambda x, t, v: F.interpolate(x, size=(7, 13)),
    "nearest_down": lambda x, t, v: F.interpolate(x, size=(4, 5)),
    "nearest_factor": lambda x, t, v: F.interpolate(x, scale_factor=1.7),
    "nearest_exact": lambda x, t, v: F.interpolate(x, size=(13, 6), mode="nearest-exact"),
    "nearest1d": lambda x, t, v: F.interpolate(t, scale_factor=3),
    "bilinear": lambda x, t, v: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear_align": lambda x, t, v: F.interpolate(x, size=(13, 7), mode="bilinear", align_corners=True),
    "bilinear_down": lambda x, t, v: F.interpolate(x, size=(4, 5), mode="bilinear"),
    "linear": lambda x, t, v: F.interpolate(t, scale_factor=2, mode="linear"),
    "trilinear": lambda x, t, v: F.interpolate(v, scale_factor=2, mode="trilinear"),
    "batch_norm": On(nn.BatchNorm2d(6)),
    "batch_norm_plain": On(nn.BatchNorm2d(6, affine=False)),
    "batch_norm1d": On(nn.BatchNorm1d(6), 1),
    "group_norm": On(nn.GroupNorm(3, 6)),
    "instance_norm": On(nn.InstanceNorm2d(6, affine=True)),
    "instance_norm_plain": On(nn.InstanceNorm1d(6), 1),
    "layer_norm": On(nn.LayerNorm(11)),
    "layer_norm2": On(nn.LayerNorm((9, 11))),
    "layer_norm_plain": lambda x, t, v: F.layer_norm(x, (11,)),
    "rms_norm": On(nn.RMSNorm(11)),
    "rms_norm_eps": lambda x, t, v: F.rms_norm(x, (9, 11), eps=1e-3),
    "local_response": On(nn.LocalResponseNorm(3)),
    "unbatched": lambda x, t, v: F.conv2d(x[0], torch.ones(2, 6, 3, 3)),
    "unbatched_pool": lambda x, t, v: F.max_pool2d(x[0], 2),
    "relu_after": lambda x, t, v: F.relu(F.conv2d(x, torch.ones(2, 6, 3, 3))),
}
MATMUL: dict[str, Function] = {
    "addmv": lambda a, b: torch.addmv(a[:, 0], a, a[0], beta=0.5, alpha=2),
    "addr": lambda a, b: torch.addr(a, a[:, 0], a[0]),
    "multi_dot": lambda a, b: torch.linalg.multi_dot([a, a.t(), a]),
    "linear": On(nn.Linear(8, 5)),
    "linear_no_bias": On(nn.Linear(8, 5, bias=False)),
    "linear3": On(nn.Linear(8, 3), 1),
    "bilinear": On(nn.Linear(8, 1), 1),
    "matmul": lambda a, b: a @ a.t(),
    "mv": lambda a, b: a @ a[0],
    "dot": lambda a, b: a[0] @ a[1],
    "vm": lambda a, b: a[:, 0] @ a,
    "bmm": lambda a, b: torch.bmm(b, b.transpose(1, 2)),
    "broadcast": lambda a, b: b @ a.t(),
    "broadcast_batch": lambda a, b: b[:, None] @ b[None].transpose(2, 3),
    "addmm": lambda a, b: torch.addmm(a[:, 0], a, a.t()),
    "addmm_scaled": lambda a, b: torch.addmm(a[:1, :5], a, a[:5].t(), beta=0.5, alpha=2),
    "baddbmm": lambda a, b: torch.baddbmm(b[:, :, :1], b, b.transpose(1, 2)),
    "mm": lambda a, b: torch.mm(a, a.t()),
    "einsum": lambda a, b: torch.einsum("bij,bkj->bik", b, b),
    "einsum_outer": lambda a, b: torch.einsum("i,j->ij", a[0], a[1]),
    "einsum_sum": lambda a, b: torch.einsum("bij->j", b),
    "einsum_dots": lambda a, b: torch.einsum("...ij,kj->...ik", b, a),
    "einsum_implicit": lambda a, b: torch.einsum("bij,kj", b, a),
    "einsum_three": lambda a, b: torch.einsum("ij,kj,bkj->bi", a, a, b.repeat(1, 2, 1)[:, :5]),
    "einsum_transpose": lambda a, b: torch.einsum("ij->ji", a),
    "tensordot": lambda a, b: torch.tensordot(b, a, dims=([2], [1])),
    "inner": lambda a, b: torch.inner(a, a),
    "outer": lambda a, b: torch.outer(a[0], a[1]),
    "matmul_4d": lambda a, b: b.reshape(2, 2, 2, 6) @ b.reshape(2, 2, 6, 2),
    "kron": lambda a, b: torch.kron(a[:2, :2], a[:2, :3]),
    "int_matmul": lambda a, b: (a * 10).long() @ (a * 10).long().t(),
}


class SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = On(nn.MultiheadAttention(8, 2, batch_first=True), 0).module
        self.options = options

    def forward(self, q: Tensor, k: Tensor, m: Tensor) -> Tensor:
        x = q.reshape(2, 4, 5, 8)[:, 0]
        return self.attention(x, x, x, **self.options)[0]


SDPA: dict[str, Function] = {
    "plain": lambda q, k, m: F.scaled_dot_product_attention(q, k, k),
    "causal": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, is_causal=True),
    "causal_square": lambda q, k, m: F.scaled_dot_product_attention(q, q, q, is_causal=True),
    "bool_mask": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m > 0),
    "float_mask": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m),
    "mask_heads": lambda q, k, m: F.scaled_dot_product_attention(
        q, k, k, m[None, None].expand(2, 4, 5, 7).contiguous()
    ),
    "mask_row": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m[:1]),
    "inf_mask": lambda q, k, m: F.scaled_dot_product_attention(
        q, k, k, torch.zeros(5, 7).masked_fill(m > 0.8, float("-inf"))
    ),
    "scale": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, scale=0.3),
    "grouped": lambda q, k, m: F.scaled_dot_product_attention(q, k[:, :2], k[:, :2], enable_gqa=True),
    "three_dims": lambda q, k, m: F.scaled_dot_product_attention(q[0], k[0], k[0]),
    "broadcast": lambda q, k, m: F.scaled_dot_product_attention(q, k[:1, :1], k[:1, :1]),
    "wide_values": lambda q, k, m: F.scaled_dot_product_attention(q, k, torch.cat([k, k], -1)),
    "by_hand": lambda q, k, m: ((q @ k.transpose(-1, -2)) / 8**0.5 + m).softmax(-1) @ k,
    "large_scores": lambda q, k, m: F.scaled_dot_product_attention(q * 50, k, k),
    "multihead": SelfAttention(need_weights=False),
    "multihead_weights": SelfAttention(need_weights=True),
}
RECURRENT: dict[str, Function] = {
    "lstm": On(nn.LSTM(5, 6)),
    "lstm_batch": On(nn.LSTM(5, 6, batch_first=True)),
    "lstm_deep": On(nn.LSTM(5, 4, 3)),
    "lstm_both": On(nn.LSTM(5, 4, bidirectional=True, batch_first=True)),
    "lstm_deep_both": On(nn.LSTM(5, 3, 2, bidirectional=True)),
    "lstm_no_bias": On(nn.LSTM(5, 6, bias=False)),
    "gru": On(nn.GRU(5, 6)),
    "gru_batch": On(nn.GRU(5, 6, batch_first=True)),
    "gru_deep_both": On(nn.GRU(5, 3, 2, bidirectional=True, batch_first=True)),
    "gru_no_bias": On(nn.GRU(5, 6, bias=False)),
    "rnn": On(nn.RNN(5, 6)),
    "rnn_relu": On(nn.RNN(5, 6, nonlinearity="relu", batch_first=True)),
}


class Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = On(cell).module

    def forward(self, x: Tensor) -> Tensor:
        result = self.cell(x[0])
        return torch.cat(result, -1) if isinstance(result, tuple) else result


class Final(nn.Module):
    """The last states of a recurrent layer, and its last output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = On(layer).module

    def forward(self, x: Tensor) -> Tensor:
        y, last = self.layer(x)
        states = last if isinstance(last, tuple) else (last,)
        return torch.cat([y[:, -1].flatten(), *(state.flatten() for state in states)])


class Unbatched(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = On(layer).module

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0])[0]


RECURRENT |= {
    "lstm_unbatched": Unbatched(nn.LSTM(5, 3)),
    "gru_unbatched": Unbatched(nn.GRU(5, 3)),
    "lstm_final": Final(nn.LSTM(5, 4, 2, batch_first=True)),
    "gru_final": Final(nn.GRU(5, 4, 2, bidirectional=True)),
    "lstm_cell": Cell(nn.LSTMCell(5, 4)),
    "gru_cell": Cell(nn.GRUCell(5, 4)),
    "rnn_cell": Cell(nn.RNNCell(5, 4)),
}

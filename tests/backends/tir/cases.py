"""Operators as users write them, by family: a name and a function of the family's inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Family:
    inputs: tuple[Tensor, ...]
    cases: dict[str, Function]
    tolerance: float = 1e-5
    skip: tuple[str, ...] = field(default=())


class Cases(nn.Module):
    """All cases of a family in one program, so that one export and one compiler run test them all."""

    def __init__(self, cases: dict[str, Function]) -> None:
        super().__init__()
        self.functions = list(cases.values())
        self.kept = nn.ModuleList([f for f in self.functions if isinstance(f, nn.Module)])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*inputs) for function in self.functions)


def _x(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _p(*shape: int, seed: int = 9) -> Tensor:
    return _x(*shape, seed=seed).abs() + 0.1


class Weighted(nn.Module):
    """A functional with weights of given shapes."""

    def __init__(self, function: Function, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for number, shape in enumerate(shapes):
            self.register_buffer(f"w{number}", _x(*shape, seed=100 + number))
        self.count = len(shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *(getattr(self, f"w{n}") for n in range(self.count)))


class On(nn.Module):
    """A module applied to one of the inputs."""

    def __init__(self, module: nn.Module, index: int = 0) -> None:
        super().__init__()
        self.module, self.index = module, index
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            seed = sum(map(ord, name)) % 1000
            with torch.no_grad():
                value.copy_(_p(*value.shape, seed=seed) if "var" in name else _x(*value.shape, seed=seed, scale=0.5))

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.module(inputs[self.index])
        return result[0] if isinstance(result, tuple) else result


UNARY: dict[str, Function] = {
    name: getattr(torch, name)
    for name in (
        "abs neg exp sin cos tan tanh sigmoid relu floor ceil round trunc erf erfc square sign expm1 sinh cosh exp2 frac"
    ).split()
}
ACTIVATIONS: dict[str, Function] = {
    "relu6": F.relu6, "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu, "elu": F.elu, "celu": lambda x: F.celu(x, 1.5),
    "selu": F.selu, "silu": F.silu, "mish": F.mish, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "softplus": F.softplus, "softplus2": lambda x: F.softplus(x, 2.0, 3.0),
    "logsigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink, "hardshrink": F.hardshrink,
    "softshrink": F.softshrink, "threshold": lambda x: F.threshold(x, 0.3, -2.0), "glu": lambda x: F.glu(x, -1),
    "clamp": lambda x: x.clamp(-0.5, 0.7), "clamp_min": lambda x: x.clamp_min(0.1), "clamp_max": lambda x: x.clamp(max=0.1),
    "clip": lambda x: torch.clip(x, -1, 1), "leaky_slope": lambda x: F.leaky_relu(x, 0.3), "elu2": lambda x: F.elu(x, 0.7),
    "relu_squared": lambda x: F.relu(x) ** 2, "rrelu": lambda x: F.rrelu(x),
}  # fmt: skip
POSITIVE: dict[str, Function] = {
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "log": torch.log, "log2": torch.log2, "log10": torch.log10, "log1p": torch.log1p,
    "reciprocal": torch.reciprocal, "pow2": lambda x: x**2, "pow3": lambda x: x**3, "pow_half": lambda x: x**0.5,
    "pow_minus": lambda x: x**-2, "pow_real": lambda x: x**1.7, "pow_base": lambda x: 2.0**x, "pow0": lambda x: x**0,
    "pow_minus_half": lambda x: x**-0.5, "logit": lambda x: torch.logit(x / 10.0), "pow_tensor": lambda x: x**x,
}  # fmt: skip
BINARY: dict[str, Function] = {
    "add": lambda a, b, c, s: a + b, "add_row": lambda a, b, c, s: a + c, "sub": lambda a, b, c, s: a - c,
    "mul": lambda a, b, c, s: a * b, "div": lambda a, b, c, s: a / (b.abs() + 1), "add_scalar": lambda a, b, c, s: a + 2,
    "mul_scalar": lambda a, b, c, s: 0.5 * a, "rsub": lambda a, b, c, s: 1 - a, "rdiv": lambda a, b, c, s: 2 / (a.abs() + 1),
    "alpha": lambda a, b, c, s: torch.add(a, b, alpha=0.3), "maximum": lambda a, b, c, s: torch.maximum(a, c),
    "minimum": lambda a, b, c, s: torch.minimum(a, b), "max_other": lambda a, b, c, s: torch.max(a, b),
    "zero_dim": lambda a, b, c, s: a * s, "outer": lambda a, b, c, s: c[:, None] * c[None, :],
    "column": lambda a, b, c, s: a + a[:, :1], "twice": lambda a, b, c, s: a + a, "atan2": lambda a, b, c, s: torch.atan2(a, b),
    "remainder": lambda a, b, c, s: torch.remainder(a, 0.7), "fmod": lambda a, b, c, s: torch.fmod(a, 0.7),
    "floor_div": lambda a, b, c, s: torch.floor_divide(a, 0.3), "trunc_div": lambda a, b, c, s: torch.div(a, 0.3, rounding_mode="trunc"),
    "addcmul": lambda a, b, c, s: torch.addcmul(a, b, c, value=0.5), "addcdiv": lambda a, b, c, s: torch.addcdiv(a, b, c.abs() + 1),
    "lerp": lambda a, b, c, s: torch.lerp(a, b, 0.25), "lerp_tensor": lambda a, b, c, s: torch.lerp(a, b, c),
    "eq": lambda a, b, c, s: a.round() == b.round(), "ne": lambda a, b, c, s: a.round() != b.round(), "lt": lambda a, b, c, s: a < b,
    "le": lambda a, b, c, s: a <= 0.0, "gt": lambda a, b, c, s: a > c, "ge": lambda a, b, c, s: a >= 1,
    "where": lambda a, b, c, s: torch.where(a > 0, a, b), "where_scalar": lambda a, b, c, s: torch.where(a > 0, a, -1.0),
    "where_scalars": lambda a, b, c, s: torch.where(a > 0, 1.0, -1.0), "where_row": lambda a, b, c, s: torch.where(c > 0, a, s),
    "masked_fill": lambda a, b, c, s: a.masked_fill(b > 0, float("-inf")), "masked_tensor": lambda a, b, c, s: a.masked_fill(b > 0, s),
    "logical_and": lambda a, b, c, s: torch.logical_and(a > 0, b > 0), "logical_or": lambda a, b, c, s: (a > 0) | (b > 0),
    "logical_xor": lambda a, b, c, s: torch.logical_xor(a > 0, b > 0), "logical_not": lambda a, b, c, s: ~(a > 0),
    "bool_and": lambda a, b, c, s: (a > 0) & (b > 0), "isnan": lambda a, b, c, s: torch.isnan(a), "isnan_of_nan": lambda a, b, c, s: torch.isnan(torch.sqrt(a)), "logical_float": lambda a, b, c, s: torch.logical_not(a),
    "clamp_tensor": lambda a, b, c, s: torch.clamp(a, min=b, max=b + 1), "hypot": lambda a, b, c, s: (a * a + b * b).sqrt(),
    "prelu": Weighted(lambda a, b, c, s, w: F.prelu(a, w), (7,)), "prelu_one": Weighted(lambda a, b, c, s, w: F.prelu(a, w), (1,)),
    "to_int": lambda a, b, c, s: (a * 10).to(torch.int32), "to_long": lambda a, b, c, s: (a * 10).long(), "to_bool": lambda a, b, c, s: a.round().bool(),
    "bool_to_float": lambda a, b, c, s: (a > 0).float(), "int_to_float": lambda a, b, c, s: (a * 10).long().float() / 3,
    "type_as": lambda a, b, c, s: (a > 0).type_as(b), "int_plus_float": lambda a, b, c, s: (a * 10).int() + 0.5,
    "in_place": lambda a, b, c, s: (a * 2).add_(1).mul_(b).relu_(), "residual": lambda a, b, c, s: (a * 2) + (a * 2).sigmoid() + b,
}  # fmt: skip
INTEGER: dict[str, Function] = {
    "add": lambda i, j: i + j, "mul": lambda i, j: i * 3, "sub": lambda i, j: 5 - i, "div": lambda i, j: i / j, "floor_div": lambda i, j: (i - 4) // j,
    "floor_div_scalar": lambda i, j: (i - 4) // 3, "remainder": lambda i, j: (i - 4) % j, "fmod": lambda i, j: torch.fmod(i - 4, 3),
    "trunc": lambda i, j: torch.div(i - 4, 3, rounding_mode="trunc"), "eq": lambda i, j: i == j, "lt_float": lambda i, j: i < 2.5,
    "and": lambda i, j: i & j, "or": lambda i, j: i | 4, "xor": lambda i, j: i ^ j, "not": lambda i, j: ~i, "neg": lambda i, j: -i, "abs": lambda i, j: (i - 4).abs(),
    "max": lambda i, j: torch.maximum(i, j), "clamp": lambda i, j: i.clamp(1, 4), "sum": lambda i, j: i.sum(), "sum_bool": lambda i, j: (i > 2).sum(1),
    "mean": lambda i, j: i.float().mean(1), "cumsum": lambda i, j: i.cumsum(0), "int32": lambda i, j: i.int() * 2, "pow": lambda i, j: i**2,
    "amax": lambda i, j: i.amax(1), "argmax": lambda i, j: i.argmax(1), "prod": lambda i, j: i.prod(0), "relu": lambda i, j: (i - 3).relu(),
    "sign": lambda i, j: (i - 3).sign(), "any": lambda i, j: (i > 5).any(1), "all": lambda i, j: (i > 0).all(), "max_all": lambda i, j: i.max(),
    "bool_eq": lambda i, j: (i > 2) == (j > 2), "uint8": lambda i, j: i.to(torch.uint8) + 1, "int8": lambda i, j: (i - 4).to(torch.int8).abs(),
}  # fmt: skip
REDUCE: dict[str, Function] = {
    "sum": lambda x: x.sum(), "sum_dim": lambda x: x.sum(1), "sum_last": lambda x: x.sum(-1, keepdim=True), "sum_two": lambda x: x.sum((0, 2)),
    "mean": lambda x: x.mean(), "mean_dims": lambda x: x.mean((1, 2)), "mean_keep": lambda x: x.mean(0, keepdim=True), "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin((0, 1)), "max": lambda x: x.max(), "min": lambda x: x.min(), "max_dim": lambda x: x.max(1)[0],
    "max_index": lambda x: x.max(2)[1], "min_dim": lambda x: x.min(0)[0], "min_index": lambda x: x.min(-1)[1], "argmax": lambda x: x.argmax(),
    "argmax_dim": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(-1, keepdim=True), "var": lambda x: x.var(), "var_dim": lambda x: x.var(1),
    "var_biased": lambda x: x.var((0, 2), unbiased=False), "std": lambda x: x.std(-1), "std_all": lambda x: x.std(), "std_correction": lambda x: x.std(1, correction=2),
    "var_mean": lambda x: torch.var_mean(x, 1)[0] + torch.var_mean(x, 1)[1], "norm": lambda x: x.norm(), "norm_dim": lambda x: x.norm(dim=1),
    "norm1": lambda x: x.norm(p=1, dim=-1), "norm3": lambda x: torch.linalg.vector_norm(x, 3, dim=1), "norm_inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=1),
    "normalize": lambda x: F.normalize(x, dim=1), "prod": lambda x: x.prod(1), "prod_all": lambda x: x[0, 0].prod(), "logsumexp": lambda x: x.logsumexp(1),
    "cumsum": lambda x: x.cumsum(1), "cumprod": lambda x: x.cumprod(-1), "softmax": lambda x: x.softmax(-1), "softmax1": lambda x: x.softmax(1), "softmax0": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(-1), "log_softmax1": lambda x: F.log_softmax(x, 1), "softmin": lambda x: F.softmin(x, 1),
    "softmax_large": lambda x: (x * 100).softmax(-1), "mean_int_dims": lambda x: x.mean(-1).mean(-1), "sum_dtype": lambda x: x.sum(1, dtype=torch.float32),
    "all": lambda x: (x > -9).all(), "any_dim": lambda x: (x > 1).any(1), "cosine": lambda x: F.cosine_similarity(x, x.flip(1), dim=1),
    "pairwise": lambda x: F.pairwise_distance(x[0], x[1]),
}  # fmt: skip
RELAYOUT: dict[str, Function] = {
    "flatten": lambda x: x.flatten(1), "view": lambda x: x.view(4, -1), "reshape": lambda x: x.reshape(-1, 9), "transpose": lambda x: x.transpose(1, 2),
    "permute": lambda x: x.permute(2, 0, 1), "permute_view": lambda x: x.permute(1, 0, 2).reshape(3, -1), "squeeze": lambda x: x[None].squeeze(0), "unsqueeze": lambda x: x.unsqueeze(1) * 1,
    "select": lambda x: x[1] + 0, "select_last": lambda x: x[:, -1] * 2, "select_mid": lambda x: x.select(2, 3), "slice": lambda x: x[:, 1:], "slice_step": lambda x: x[..., ::2],
    "slice_negative": lambda x: x[:, -2:], "slice_to": lambda x: x[:, :, :-1], "narrow": lambda x: x.narrow(1, 1, 2), "split": lambda x: x.split(2, 2)[1], "chunk": lambda x: x.chunk(2, 0)[1],
    "split_sizes": lambda x: x.split([1, 2], 1)[1], "tensor_split": lambda x: torch.tensor_split(x, 3, 2)[2], "unbind": lambda x: x.unbind(1)[2], "expand": lambda x: x[:1].expand(3, -1, -1), "expand_as": lambda x: x[:, :1].expand_as(x),
    "repeat": lambda x: x.repeat(2, 1, 3), "repeat_rank": lambda x: x.repeat(2, 1, 1, 2), "tile": lambda x: torch.tile(x, (2,)), "repeat_interleave": lambda x: x.repeat_interleave(2, 1), "repeat_interleave_flat": lambda x: x.repeat_interleave(3),
    "flip": lambda x: x.flip(2), "flip_two": lambda x: x.flip((0, 1)), "roll": lambda x: x.roll(2, 1), "roll_two": lambda x: x.roll((1, -2), (0, 2)), "roll_flat": lambda x: x.roll(3),
    "cat": lambda x: torch.cat([x, x + 1], 1), "cat_last": lambda x: torch.cat([x, x[..., :2], x], -1), "cat0": lambda x: torch.cat((x, x)), "stack": lambda x: torch.stack([x, x * 2], 1), "stack_last": lambda x: torch.stack([x, x, x], -1),
    "hstack": lambda x: torch.hstack([x, x]), "pad": lambda x: F.pad(x, (1, 2)), "pad_value": lambda x: F.pad(x, (0, 0, 2, 1), value=3.5), "pad_all": lambda x: F.pad(x, (1, 1, 0, 2, 3, 0)), "pad_negative": lambda x: F.pad(x, (-1, 2)),
    "reflect": lambda x: F.pad(x, (2, 3), mode="reflect"), "replicate": lambda x: F.pad(x, (2, 3), mode="replicate"), "circular": lambda x: F.pad(x, (2, 1), mode="circular"), "reflect2": lambda x: F.pad(x[None], (1, 2, 2, 1), mode="reflect"),
    "replicate2": lambda x: F.pad(x[None], (1, 2, 2, 1), mode="replicate"), "tril": lambda x: x.tril(), "triu": lambda x: x.triu(1), "tril_minus": lambda x: torch.tril(x, -1), "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "movedim": lambda x: x.movedim(0, 2), "swapaxes": lambda x: x.swapaxes(0, 1), "mT": lambda x: x.mT, "t": lambda x: x[0].t(), "unflatten": lambda x: x.unflatten(2, (2, 3)), "unfold": lambda x: x.unfold(2, 3, 2), "ravel": lambda x: x.ravel(),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 3, 6), 2), "pixel_unshuffle": lambda x: F.pixel_unshuffle(x.reshape(1, 3, 4, 6), 2), "channel_shuffle": lambda x: F.channel_shuffle(x.reshape(2, 6, 2, 3), 3),
    "same": lambda x: x, "contiguous": lambda x: x.transpose(0, 1).contiguous(), "clone": lambda x: x.clone(), "dropout": lambda x: F.dropout(x, 0.5, False), "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[1, 1], indexing="ij")[1],
    "as_strided": lambda x: x.contiguous().as_strided((3, 2), (4, 1), 1), "twice_view": lambda x: x.view(-1)[3:9].view(2, 3).t(), "atleast": lambda x: torch.atleast_3d(x[0]),
}  # fmt: skip
INDEX: dict[str, Function] = {
    "embedding": Weighted(lambda x, i, m, w: F.embedding(i, w), (9, 4)), "index_select": lambda x, i, m: x.index_select(1, i[0]), "gather": lambda x, i, m: x.gather(1, i), "take_along": lambda x, i, m: torch.take_along_dim(x, i, 1),
    "index": lambda x, i, m: x[i[0]], "index_negative": lambda x, i, m: x[-i[0] - 1], "index_pair": lambda x, i, m: x[i[0, :3], i[1, :3]], "index_gap": lambda x, i, m: x.reshape(2, 2, 8)[i[0] % 2, :, i[1]],
    "index_column": lambda x, i, m: x[:, i[0]], "index_list": lambda x, i, m: x[:, [2, 0, -1]], "index_broadcast": lambda x, i, m: x[i[:, :1], i[:1]], 
    "index_copy": lambda x, i, m: x.index_copy(0, i[0, :2], x[:2] * 2), "index_copy1": lambda x, i, m: x.index_copy(1, torch.tensor([1, 3]), x[:, :2]), "index_add": lambda x, i, m: x.index_add(0, i[0], torch.ones(4, 8), alpha=0.5),
    "scatter": lambda x, i, m: x.scatter(1, i[:, :2], x[:, 4:6]), "scatter_value": lambda x, i, m: x.scatter(1, i[:, :1], 7.0), "scatter_add": lambda x, i, m: x.scatter_add(1, i, x), "scatter0": lambda x, i, m: torch.zeros(4, 4).scatter(1, i, 1.0),
    "index_put": lambda x, i, m: x.index_put((i[0, :2],), torch.tensor(5.0)), "index_put_pair": lambda x, i, m: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 3])), x[0, :2]), "index_put_add": lambda x, i, m: x.index_put((i[0],), x, accumulate=True),
    "select_scatter": lambda x, i, m: x.select_scatter(x[0] * 2, 0, 1), "select_scatter1": lambda x, i, m: x.select_scatter(x[:, 0] * 2, 1, -1), "slice_scatter": lambda x, i, m: x.slice_scatter(x[:, :2] * 3, 1, 2, 4), "slice_scatter_step": lambda x, i, m: x.slice_scatter(x[:, :4], 1, 0, 8, 2),
    "write_slice": lambda x, i, m: _written(x), "one_hot": lambda x, i, m: F.one_hot(i[0], 9).float() if False else (i[0][:, None] == torch.arange(9)).float(), "masked": lambda x, i, m: torch.where(m, x, 0.0), "arange": lambda x, i, m: x + torch.arange(8),
    "full": lambda x, i, m: torch.full((2, 3), 2.5) + x[0, 0], "zeros": lambda x, i, m: torch.zeros(3) + x[0, :3], "ones_like": lambda x, i, m: torch.ones_like(x) - x, "new_full": lambda x, i, m: x.new_full((2,), 3.0) * x[0, 0], "linspace": lambda x, i, m: torch.linspace(0, 1, 8) * x, "eye": lambda x, i, m: torch.eye(4) @ x,
    "embedding_bag": Weighted(lambda x, i, m, w: F.embedding(i, w).mean(1), (9, 4)), "positions": Weighted(lambda x, i, m, w: F.embedding(torch.arange(4), w) + x[:, :4], (9, 4)),
}  # fmt: skip


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:5] = 1.5
    y[0] = y[1] * 2
    return y


CONV: dict[str, Function] = {
    "plain": On(nn.Conv2d(6, 5, 3)), "padded": On(nn.Conv2d(6, 5, 3, padding=1)), "stride": On(nn.Conv2d(6, 4, 3, 2, 1)), "one": On(nn.Conv2d(6, 7, 1)), "one_stride": On(nn.Conv2d(6, 3, 1, 2)), "one_padded": On(nn.Conv2d(6, 3, 1, padding=1)),
    "no_bias": On(nn.Conv2d(6, 5, 3, bias=False)), "depthwise": On(nn.Conv2d(6, 6, 3, padding=1, groups=6)), "multiplier": On(nn.Conv2d(6, 12, 3, padding=1, groups=6)), "grouped": On(nn.Conv2d(6, 9, 3, padding=1, groups=3)),
    "dilated": On(nn.Conv2d(6, 4, 3, padding=2, dilation=2)), "dilated_stride": On(nn.Conv2d(6, 4, 3, 2, padding=3, dilation=3)), "uneven": On(nn.Conv2d(6, 4, (1, 5), (2, 1), (0, 2))), "wide_pad": On(nn.Conv2d(6, 4, 2, padding=3)), "same": On(nn.Conv2d(6, 4, 3, padding="same")),
    "same_even": On(nn.Conv2d(6, 4, 4, padding="same")), "valid": On(nn.Conv2d(6, 4, 2, padding="valid")), "large": On(nn.Conv2d(6, 4, (9, 7))), "reflect": On(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")), "circular": On(nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")),
    "conv1d": On(nn.Conv1d(6, 4, 5, padding=2), 1), "conv1d_dilated": On(nn.Conv1d(6, 6, 3, padding=4, dilation=4, groups=2), 1), "conv1d_stride": On(nn.Conv1d(6, 4, 4, 3), 1), "causal": lambda x, t, v: F.conv1d(F.pad(t, (2, 0)), torch.ones(6, 1, 3), groups=6), "conv3d": On(nn.Conv3d(2, 3, 3, padding=1), 2), "conv3d_stride": On(nn.Conv3d(2, 4, (1, 2, 3), (1, 2, 1), groups=2), 2),
    "transposed": On(nn.ConvTranspose2d(6, 4, 2, 2)), "transposed_pad": On(nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1)), "transposed_groups": On(nn.ConvTranspose2d(6, 4, 3, groups=2)), "transposed_dilated": On(nn.ConvTranspose2d(6, 3, 3, 2, 2, dilation=2)), "transposed1d": On(nn.ConvTranspose1d(6, 4, 4, 2, 1), 1), "transposed3d": On(nn.ConvTranspose3d(2, 3, 2, 2), 2),
    "max_pool": lambda x, t, v: F.max_pool2d(x, 2), "max_pool_pad": lambda x, t, v: F.max_pool2d(x, 3, 2, 1), "max_pool_ceil": lambda x, t, v: F.max_pool2d(x, 2, 2, ceil_mode=True), "max_pool_dilated": lambda x, t, v: F.max_pool2d(x, 3, 1, 1, 2), "max_pool_index": lambda x, t, v: F.max_pool2d(x, 2, return_indices=True)[1], "max_pool1d": lambda x, t, v: F.max_pool1d(t, 3, 2),
    "max_pool3d": lambda x, t, v: F.max_pool3d(v, 2), "avg_pool": lambda x, t, v: F.avg_pool2d(x, 2), "avg_pool_pad": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1), "avg_pool_exclude": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "avg_pool_ceil": lambda x, t, v: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), "avg_pool_divisor": lambda x, t, v: F.avg_pool2d(x, 2, divisor_override=3),
    "avg_pool1d": lambda x, t, v: F.avg_pool1d(t, 3), "avg_pool3d": lambda x, t, v: F.avg_pool3d(v, 2), "global": lambda x, t, v: F.adaptive_avg_pool2d(x, 1), "adaptive": lambda x, t, v: F.adaptive_avg_pool2d(x, (4, 3)), "adaptive_max": lambda x, t, v: F.adaptive_max_pool2d(x, (3, 4)), "adaptive1d": lambda x, t, v: F.adaptive_avg_pool1d(t, 5), "adaptive_max1d": lambda x, t, v: F.adaptive_max_pool1d(t, 4), "lp_pool": lambda x, t, v: F.lp_pool2d(x.abs(), 2.0, 2),
    "nearest": lambda x, t, v: F.interpolate(x, scale_factor=2), "nearest_size": lambda x, t, v: F.interpolate(x, size=(7, 13)), "nearest_down": lambda x, t, v: F.interpolate(x, size=(4, 5)), "nearest_factor": lambda x, t, v: F.interpolate(x, scale_factor=1.7), "nearest_exact": lambda x, t, v: F.interpolate(x, size=(13, 6), mode="nearest-exact"), "nearest1d": lambda x, t, v: F.interpolate(t, scale_factor=3),
    "bilinear": lambda x, t, v: F.interpolate(x, scale_factor=2, mode="bilinear"), "bilinear_align": lambda x, t, v: F.interpolate(x, size=(13, 7), mode="bilinear", align_corners=True), "bilinear_down": lambda x, t, v: F.interpolate(x, size=(4, 5), mode="bilinear"), "linear": lambda x, t, v: F.interpolate(t, scale_factor=2, mode="linear"), "trilinear": lambda x, t, v: F.interpolate(v, scale_factor=2, mode="trilinear"),
    "batch_norm": On(nn.BatchNorm2d(6)), "batch_norm_plain": On(nn.BatchNorm2d(6, affine=False)), "batch_norm1d": On(nn.BatchNorm1d(6), 1), "group_norm": On(nn.GroupNorm(3, 6)), "instance_norm": On(nn.InstanceNorm2d(6, affine=True)), "instance_norm_plain": On(nn.InstanceNorm1d(6), 1), "layer_norm": On(nn.LayerNorm(11)), "layer_norm2": On(nn.LayerNorm((9, 11))), "layer_norm_plain": lambda x, t, v: F.layer_norm(x, (11,)),
    "rms_norm": On(nn.RMSNorm(11)), "rms_norm_eps": lambda x, t, v: F.rms_norm(x, (9, 11), eps=1e-3), "local_response": On(nn.LocalResponseNorm(3)), "unbatched": lambda x, t, v: F.conv2d(x[0], torch.ones(2, 6, 3, 3)), "unbatched_pool": lambda x, t, v: F.max_pool2d(x[0], 2), "relu_after": lambda x, t, v: F.relu(F.conv2d(x, torch.ones(2, 6, 3, 3))),
}  # fmt: skip
MATMUL: dict[str, Function] = {
    "linear": On(nn.Linear(8, 5)), "linear_no_bias": On(nn.Linear(8, 5, bias=False)), "linear3": On(nn.Linear(8, 3), 1), "bilinear": On(nn.Linear(8, 1), 1), "matmul": lambda a, b: a @ a.t(), "mv": lambda a, b: a @ a[0], "dot": lambda a, b: a[0] @ a[1], "vm": lambda a, b: a[:, 0] @ a, "bmm": lambda a, b: torch.bmm(b, b.transpose(1, 2)), "broadcast": lambda a, b: b @ a.t(),
    "broadcast_batch": lambda a, b: b[:, None] @ b[None].transpose(2, 3), "addmm": lambda a, b: torch.addmm(a[:, 0], a, a.t()), "addmm_scaled": lambda a, b: torch.addmm(a[:1, :5], a, a[:5].t(), beta=0.5, alpha=2), "baddbmm": lambda a, b: torch.baddbmm(b[:, :, :1], b, b.transpose(1, 2)), "mm": lambda a, b: torch.mm(a, a.t()),
    "einsum": lambda a, b: torch.einsum("bij,bkj->bik", b, b), "einsum_outer": lambda a, b: torch.einsum("i,j->ij", a[0], a[1]), "einsum_sum": lambda a, b: torch.einsum("bij->j", b), "einsum_dots": lambda a, b: torch.einsum("...ij,kj->...ik", b, a), "einsum_implicit": lambda a, b: torch.einsum("bij,kj", b, a), "einsum_three": lambda a, b: torch.einsum("ij,kj,bkj->bi", a, a, b[:, :3].repeat(1, 2, 1)[:, :5] if False else b.repeat(1, 2, 1)[:, :5]),
    "einsum_transpose": lambda a, b: torch.einsum("ij->ji", a), "tensordot": lambda a, b: torch.tensordot(b, a, dims=([2], [1])), "inner": lambda a, b: torch.inner(a, a), "outer": lambda a, b: torch.outer(a[0], a[1]), "matmul_4d": lambda a, b: b.reshape(2, 2, 2, 6) @ b.reshape(2, 2, 6, 2), "kron": lambda a, b: torch.kron(a[:2, :2], a[:2, :3]),
    "int_matmul": lambda a, b: (a * 10).long() @ (a * 10).long().t(),
}  # fmt: skip


class SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = On(nn.MultiheadAttention(8, 2, batch_first=True), 0).module
        self.options = options

    def forward(self, q: Tensor, k: Tensor, m: Tensor) -> Tensor:
        x = q.reshape(2, 4, 5, 8)[:, 0]
        return self.attention(x, x, x, **self.options)[0]


SDPA: dict[str, Function] = {
    "plain": lambda q, k, m: F.scaled_dot_product_attention(q, k, k), "causal": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, is_causal=True), "causal_square": lambda q, k, m: F.scaled_dot_product_attention(q, q, q, is_causal=True), "bool_mask": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m > 0),
    "float_mask": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m), "mask_heads": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m[None, None].expand(2, 4, 5, 7).contiguous()), "mask_row": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m[:1]), "inf_mask": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, torch.zeros(5, 7).masked_fill(m > 0.8, float("-inf"))),
    "scale": lambda q, k, m: F.scaled_dot_product_attention(q, k, k, scale=0.3), "grouped": lambda q, k, m: F.scaled_dot_product_attention(q, k[:, :2], k[:, :2], enable_gqa=True), "three_dims": lambda q, k, m: F.scaled_dot_product_attention(q[0], k[0], k[0]), "broadcast": lambda q, k, m: F.scaled_dot_product_attention(q, k[:1, :1], k[:1, :1]), "wide_values": lambda q, k, m: F.scaled_dot_product_attention(q, k, torch.cat([k, k], -1)),
    "by_hand": lambda q, k, m: ((q @ k.transpose(-1, -2)) / 8**0.5 + m).softmax(-1) @ k, "large_scores": lambda q, k, m: F.scaled_dot_product_attention(q * 50, k, k), "multihead": SelfAttention(need_weights=False), "multihead_weights": SelfAttention(need_weights=True),
    "encoder": On(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval(), 3) if False else lambda q, k, m: q,
}  # fmt: skip
RECURRENT: dict[str, Function] = {
    "lstm": On(nn.LSTM(5, 6)), "lstm_batch": On(nn.LSTM(5, 6, batch_first=True)), "lstm_deep": On(nn.LSTM(5, 4, 3)), "lstm_both": On(nn.LSTM(5, 4, bidirectional=True, batch_first=True)), "lstm_deep_both": On(nn.LSTM(5, 3, 2, bidirectional=True)), "lstm_no_bias": On(nn.LSTM(5, 6, bias=False)), "lstm_unbatched": lambda x, l=On(nn.LSTM(5, 3)): l(x[0]) if False else x,
    "gru": On(nn.GRU(5, 6)), "gru_batch": On(nn.GRU(5, 6, batch_first=True)), "gru_deep_both": On(nn.GRU(5, 3, 2, bidirectional=True, batch_first=True)), "gru_no_bias": On(nn.GRU(5, 6, bias=False)), "rnn": On(nn.RNN(5, 6)), "rnn_relu": On(nn.RNN(5, 6, nonlinearity="relu", batch_first=True)),
}  # fmt: skip


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
    "lstm_unbatched": Unbatched(nn.LSTM(5, 3)), "gru_unbatched": Unbatched(nn.GRU(5, 3)), "lstm_final": Final(nn.LSTM(5, 4, 2, batch_first=True)),
    "gru_final": Final(nn.GRU(5, 4, 2, bidirectional=True)), "lstm_cell": Cell(nn.LSTMCell(5, 4)), "gru_cell": Cell(nn.GRUCell(5, 4)), "rnn_cell": Cell(nn.RNNCell(5, 4)),
}  # fmt: skip
SDPA.pop("encoder")

FAMILIES: dict[str, Family] = {
    "unary": Family((_x(3, 37, scale=2.0),), {**UNARY, **{k: v for k, v in ACTIVATIONS.items() if k != "glu"}}),
    "glu": Family((_x(3, 8),), {"glu": ACTIVATIONS["glu"]}),
    "positive": Family((_p(4, 23),), POSITIVE),
    "binary": Family((_x(5, 7), _x(5, 7, seed=1), _x(7, seed=2), torch.tensor(0.7)), BINARY),
    "integer": Family((torch.arange(12).reshape(3, 4) % 7, torch.arange(12).reshape(3, 4) % 5 + 1), INTEGER),
    "reduce": Family((_x(4, 3, 6),), REDUCE),
    "relayout": Family((_x(4, 3, 6),), RELAYOUT),
    "index": Family((_x(4, 8), torch.tensor([[1, 0, 3, 2], [2, 2, 1, 0], [3, 1, 0, 2], [0, 3, 2, 1]]), _x(4, 8) > 0), INDEX),
    "conv": Family((_x(2, 6, 9, 11), _x(2, 6, 17, seed=1), _x(1, 2, 4, 6, 6, seed=2)), CONV),
    "matmul": Family((_x(5, 8), _x(2, 3, 8, seed=1)), MATMUL),
    "attention": Family((_x(2, 4, 5, 8), _x(2, 4, 7, 8, seed=1), _x(5, 7, seed=2)), SDPA),
    "recurrent": Family((_x(4, 3, 5),), RECURRENT),
}  # fmt: skip

"""One operator at a time between two layers: what is pruned equals the masked original, and the operator is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.passes.prune.inference import AxisInference
from tests.passes.prune.oracle import masked_difference, program_of, pruned

Function = Callable[[Tensor, Tensor], Tensor]


class Between(nn.Module):
    """f(a, b) between layers: a and b are (2, 4, 12), or (2, 12, 6, 6) of images."""

    def __init__(self, function: Function, of_images: bool) -> None:
        super().__init__()
        self.function = function
        make = (lambda: nn.Conv2d(3, 12, 1)) if of_images else (lambda: nn.Linear(6, 12))
        self.a, self.b = make(), make()
        with torch.no_grad():
            x = torch.zeros(2, 3, 6, 6) if of_images else torch.zeros(2, 4, 6)
            features = function(self.a(x), self.b(x)).flatten(1).shape[1]
        self.head = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.a(x), self.b(x)).flatten(1))


TOKENS: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "where": lambda a, b: torch.where(a > 0, a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "maximum": lambda a, b: torch.max(a, b),
    "glu": lambda a, b: F.glu(torch.cat([a, b], -1)),
    "stack": lambda a, b: torch.stack([a, b], 2),
    "stack_last": lambda a, b: torch.stack([a, b], -1),
    "concat": lambda a, b: torch.cat([a, b, a], -1),
    "chunk": lambda a, b: a.chunk(3, -1)[1] * b[..., 4:8],
    "split": lambda a, b: a.split([2, 7, 3], -1)[1] + b.split(7, -1)[0],
    "slice": lambda a, b: a[..., :10] * b[..., 2:],
    "every_second": lambda a, b: a[..., ::2] + b[..., 1::2],
    "narrow": lambda a, b: a.narrow(-1, 3, 6) + b.narrow(-1, -6, 6),
    "unflatten": lambda a, b: a.unflatten(-1, (3, 4)).transpose(2, 3).flatten(2) + b,
    "type_as": lambda a, b: a.float().type_as(b.mT) + torch.ones_like(b).to(a.dtype) * b,
    "reshape_as": lambda a, b: a.flatten(1).reshape_as(b) * b.view_as(a),
    "unbind": lambda a, b: sum(a.view(2, 4, 3, 4).unbind(2)) + b[..., :4],
    "select": lambda a, b: a.view(2, 4, 4, 3)[..., 1] + b.view(2, 4, 3, 4).select(2, 0),
    "movedim": lambda a, b: a.movedim(-1, 0).movedim(0, 1) + b.mT,
    "swapaxes": lambda a, b: a.swapaxes(1, 2) + b.permute(0, 2, 1),
    "squeeze": lambda a, b: a.unsqueeze(1).squeeze(1) + b[:, None].squeeze((1,)),
    "expand": lambda a, b: a[:, :1].expand(2, 4, 12) + b,
    "expand_as": lambda a, b: a.mean(1, keepdim=True).expand_as(b) * b,
    "repeat": lambda a, b: a.repeat(1, 1, 2) * torch.cat([b, b], -1),
    "repeat_interleave": lambda a, b: a.repeat_interleave(2, -1) * b.repeat_interleave(2, -1),
    "pad": lambda a, b: F.pad(a, (2, 3), value=1.5) + F.pad(b, (5, 0)),
    "roll": lambda a, b: torch.roll(a, 1, 1) * b.flip(1),
    "roll_channels": lambda a, b: torch.roll(a, 1, -1) + b,
    "matmul": lambda a, b: a.mT @ b,
    "outer_product": lambda a, b: a @ b.mT,
    "baddbmm": lambda a, b: torch.baddbmm(a, a @ b.mT, b),
    "einsum": lambda a, b: torch.einsum("btc,bsc->bts", a, b),
    "einsum_channels": lambda a, b: torch.einsum("btc,btd->bcd", a, b),
    "outer": lambda a, b: torch.outer(a[0, 0], b[0, 0])[None].expand(2, 12, 12),
    "softmax_over_places": lambda a, b: a.softmax(1) * b,
    "softmax_over_channels": lambda a, b: a.softmax(-1) * b,
    "max": lambda a, b: a.max(1).values + b.amax(1),
    "max_over_channels": lambda a, b: a.amax(-1, keepdim=True) * b,
    "argmax": lambda a, b: a * b.argmax(-1, keepdim=True),
    "cumsum": lambda a, b: a.cumsum(1) * b,
    "sort": lambda a, b: a.sort(1).values + b.topk(4, 1).values,
    "variance": lambda a, b: a.var(1) + b.std(1),
    "gather": lambda a, b: a.gather(1, torch.tensor([[[1], [2]]] * 2).expand(2, 2, 12)) * b[:, :2],
    "index": lambda a, b: a[:, [0, 2, 1]] + b[:, torch.tensor([1, 1, 0])],
    "index_select": lambda a, b: a.index_select(1, torch.tensor([0, 3])) + b[:, :2],
    "index_channels": lambda a, b: a[..., [5, 3, 4]] + b[..., :3],
    "windows": lambda a, b: a.unfold(1, 2, 2).sum(-1) * b[:, :2],
    "zeros": lambda a, b: torch.cat([a, a.new_zeros(2, 4, 5)], -1) + F.pad(b, (0, 5)),
    "ones": lambda a, b: a * torch.ones(12, dtype=a.dtype) + torch.full((4, 12), 0.5, dtype=a.dtype) * b,
    "positions": lambda a, b: a * torch.arange(12, dtype=a.dtype) + b,
    "attention": lambda a, b: F.scaled_dot_product_attention(*(x.view(2, 4, 3, 4).transpose(1, 2) for x in (a, b, a * b))),
    "cosine": lambda a, b: F.cosine_similarity(a, b, 1),
}  # fmt: skip

IMAGES: dict[str, Function] = {
    "pools": lambda a, b: (
        F.max_pool2d(a, 2) + F.avg_pool2d(b, 2) + F.adaptive_avg_pool2d(a, 3) + F.adaptive_max_pool2d(b, 3)
    ),
    "resize": lambda a, b: F.interpolate(a, scale_factor=0.5, mode="bilinear") + F.interpolate(b, size=(3, 3)),
    "reflect": lambda a, b: F.pad(a, (1, 1, 1, 1), mode="reflect") + F.pad(b, (1, 1, 1, 1), mode="replicate"),
    "pixel_shuffle": lambda a, b: F.pixel_shuffle(a, 2) + F.pixel_shuffle(b, 2),
    "pixel_unshuffle": lambda a, b: F.pixel_unshuffle(a * b, 3),
    "channel_shuffle": lambda a, b: F.channel_shuffle(a, 4) + b,
    "im2col": lambda a, b: F.unfold(a, 3, stride=3) * F.unfold(b, (3, 3), stride=3),
    "col2im": lambda a, b: F.fold(F.unfold(a, 2, stride=2), (6, 6), 2, stride=2) + b,
    "sample": lambda a, b: (
        F.grid_sample(
            a, torch.linspace(-1, 1, 36).double().view(1, 6, 3, 2).expand(2, 6, 3, 2).to(a), align_corners=False
        )
        + b[..., :3]
    ),
    "dynamic_filter": lambda a, b: F.conv2d(a.reshape(1, 24, 6, 6), b.mean((2, 3)).view(24, 1, 1, 1), groups=24).view(
        2, 12, 6, 6
    ),
    "instance_norm": lambda a, b: F.instance_norm(a) + b,
    "spatial_softmax": lambda a, b: (a.flatten(2).softmax(-1) * b.flatten(2)).sum(-1),
    "gram": lambda a, b: a.flatten(2) @ b.flatten(2).transpose(1, 2),
}

KEEPS = {"roll_channels", "softmax_over_channels", "index_channels", "positions", "argmax"}
"""Operators that keep the channels of an operand: the layers around them are pruned less."""


def check(function: Function, x: Tensor, name: str) -> None:
    program = program_of(Between(function, x.dim() == 4), x)
    inference = AxisInference(program)
    assert not inference.unknown, [program.where(node) for node in inference.unknown]
    changes: list[str] = []
    for ratio in (0.2, 0.5):
        result, record = pruned(program, f"prune{{ratio={ratio},scope=local}}")
        changes += record.changes
        assert masked_difference(program, result) <= 1e-10
    assert name in KEEPS or any(line.startswith(("a.weight", "b.weight")) for line in changes), changes


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_between_linear_layers(name: str) -> None:
    check(TOKENS[name], torch.randn(2, 4, 6), name)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_between_convolutions(name: str) -> None:
    check(IMAGES[name], torch.randn(2, 3, 6, 6), name)

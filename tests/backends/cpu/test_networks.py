"""Whole networks agree with eager torch: those of models/, and small ones in the styles that users bring."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
import models
from dsopt.backends.cpu import CpuBackend
from dsopt.ir import example_inputs
from dsopt.passes.base import PassManager
from dsopt.target import CpuTarget
from tests.backends.cpu.cases import Case, Maker, check, floats, ints, module
from tests.backends.cpu.harness import assert_close, executor_of, feeds, run

LARGE = {"mobilenet_v2", "resnet18", "resnet50", "resnet152"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in models.MODELS]
)
def test_a_model_agrees_after_the_default_passes(name: str) -> None:
    program = dsopt.capture(models.build(name))
    rewritten, _ = PassManager(CpuBackend().pipeline(CpuTarget())).run(program)
    executor = executor_of(rewritten)
    for sizes in ({}, {dim: max(program.dims[dim].min, 3) for dim in program.dims}):
        inputs = example_inputs(program, sizes)
        assert_close(run(executor, rewritten, inputs), list(program.run(*inputs)))


def test_a_decoder_that_runs_step_by_step_carries_its_states() -> None:
    program = dsopt.capture(models.build("gpt_decode"))
    executor = executor_of(program)
    states = {state.name: program.weights[state.name] for state in program.states}
    fed = feeds(program, (torch.tensor([3]), torch.tensor([0])))
    for step in range(4):
        inputs = (torch.tensor([3 + step]), torch.tensor([step]))
        expected, states = program.run_stateful(inputs, states)
        results = executor.run(
            {**fed, **{k: v for k, v in feeds(program, inputs).items() if not k.startswith("state.")}}
        )
        assert_close([torch.from_numpy(results["output"])], list(expected))
        for name, state in states.items():
            assert_close([torch.from_numpy(results[f"next.{name}"])], [state])
        fed = {f"state.{name}": results[f"next.{name}"] for name in states}


# ---- small networks in the styles that users bring ----


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, a class token, torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.places
        return self.head(self.encoder(y)[:, 0])


class ShiftedWindows(nn.Module):
    """A Swin block: rolled windows, attention with a bias looked up by relative place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(49, 2))
        self.register_buffer("index", torch.randint(0, 49, (16, 16)))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(b, h // 4, 4, w // 4, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)[None]
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, 16, c)).view(b, h // 4, w // 4, 4, 4, c)
        return x + torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), (2, 2), (1, 2))


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm on the channels, inverted bottleneck, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, 1e-6)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """A MobileNetV3 block."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Hardswish(inplace=True))
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Sequential(nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x)
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)


class Rotary(nn.Module):
    """A Llama block: RMS norm, rotary places, grouped heads, gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(16, 1e-6), nn.RMSNorm(16, 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(16, n, bias=False) for n in (16, 8, 8, 16))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.register_buffer("frequencies", 1 / 100 ** (torch.arange(0, 4, 2) / 4))

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.frequencies
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm(x)
        q = self.turn(self.q(y).view(b, t, 4, 4).transpose(1, 2))
        k = self.turn(self.k(y).view(b, t, 2, 4).transpose(1, 2))
        v = self.v(y).view(b, t, 2, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class RelativeBias(nn.Module):
    """T5's attention bias: buckets of log distance."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(8, 2)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        distance = torch.arange(k.shape[2])[None] - torch.arange(q.shape[2])[:, None]
        near = distance.abs()
        far = 4 + (torch.log(near.float().clamp(min=1) / 4) / 1.5 * 4).long().clamp(0, 3)
        bias = self.bias(torch.where(near < 4, near, far)).permute(2, 0, 1).unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, k, attn_mask=bias.expand(q.shape[0], -1, -1, -1), scale=1.0)


class Detector(nn.Module):
    """A detection head: anchors on a grid, boxes, the best scores."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 3 * 7, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, _, h, w = x.shape
        y = self.head(x).view(b, 3, 7, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([columns, rows], -1).to(y.dtype)
        y = torch.cat([(y[..., :2] * 2 - 0.5 + grid) * 8, (y[..., 2:4] * 2) ** 2, y[..., 4:]], -1).flatten(1, 3)
        scores, classes = (y[..., 5:] * y[..., 4:5]).max(-1)
        best = scores.topk(5, -1).indices
        return y.gather(1, best[..., None].expand(-1, -1, 7)), classes.gather(1, best), scores.amax(-1)


class Wave(nn.Module):
    """Gated dilated causal convolutions with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for i, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            a, b = layer(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(y)
            x = x + y
        return total


class Translator(nn.Module):
    """GRU encoder, additive attention, one decoder step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(9, 6), nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.bridge, self.score, self.cell, self.out = (
            nn.Linear(10, 5),
            nn.Linear(15, 1),
            nn.GRUCell(16, 5),
            nn.Linear(5, 9),
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states, last = self.encoder(self.embed(source))
        hidden = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        scores = self.score(torch.cat([states, hidden[:, None].expand(-1, states.shape[1], -1)], -1)).squeeze(-1)
        scores = scores.masked_fill(source == 0, float("-inf"))
        context = torch.bmm(scores.softmax(-1)[:, None], states)[:, 0]
        return self.out(self.cell(torch.cat([self.embed(target), context], -1), hidden)).log_softmax(-1)


class GraphConvolution(nn.Module):
    """Messages along edges, summed at their targets, normalised by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = self.linear(x)[edges[0]]
        total = torch.zeros(x.shape[0], 6).index_add(0, edges[1], messages)
        degree = torch.zeros(x.shape[0]).scatter_add(0, edges[1], torch.ones_like(edges[1], dtype=torch.float32))
        return F.elu(total / degree.clamp(min=1)[:, None])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Maker, ...]]] = {
    "vision_transformer": (VisionTransformer, (floats("B", 3, 16, 16),)),
    "shifted_windows": (ShiftedWindows, (floats("B", 8, 8, 8),)),
    "convnext": (ConvNeXt, (floats("B", 8, 9, 9),)),
    "convnext_varying_image": (ConvNeXt, (floats(1, 8, "2B", "3B"),)),
    "squeeze_excite": (SqueezeExcite, (floats("B", 4, 7, 7),)),
    "rotary": (Rotary, (floats("B", 6, 16),)),
    "rotary_varying_length": (Rotary, (floats("B", "2B", 16),)),
    "relative_bias": (RelativeBias, (floats("B", 2, 5, 4), floats("B", 2, 7, 4))),
    "detector": (Detector, (floats("B", 4, 4, 5),)),
    "wave": (Wave, (floats("B", 4, 11),)),
    "wave_varying_length": (Wave, (floats(2, 4, "4B"),)),
    "translator": (Translator, (ints("B", 6, low=1, high=9), ints("B", high=9))),
    "graph_convolution": (GraphConvolution, (floats(5, 4), ints(2, "3B"))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_a_users_style_agrees_at_varying_sizes(name: str) -> None:
    make, makers = NETWORKS[name]
    check(Case(module(make), makers), is_dynamic=True)

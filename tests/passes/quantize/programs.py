"""Programs of one operator each, and how they are taken from floats to integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, PassRecord, parse_pipeline

DSOPT = torch.ops.dsopt
ROUNDING = (DSOPT.quantize.default, DSOPT.dequantize.default)


class Function(nn.Module):
    """A function of tensors; with parameters where it is made from a module."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.parts, *inputs)


Case = tuple[Callable[..., Any], tuple[Callable[[], nn.Module], ...], tuple[Any, ...]]
"""(function of modules and inputs, what makes the modules, shapes of the inputs)."""


def _called(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def _last(module: nn.Module, x: Tensor) -> Any:
    return module(x)[0]


_IMAGE, _LINE, _ROWS = (2, 4, 7, 6), (2, 4, 9), (3, 5, 8)

WEIGHTED: dict[str, Case] = {
    "conv1d": (_called, (lambda: nn.Conv1d(4, 5, 3, padding=1, stride=2),), (_LINE,)),
    "conv2d": (_called, (lambda: nn.Conv2d(4, 5, 3, padding=1),), (_IMAGE,)),
    "no bias": (_called, (lambda: nn.Conv2d(4, 5, 3, dilation=2, bias=False),), (_IMAGE,)),
    "depthwise": (_called, (lambda: nn.Conv2d(4, 8, 3, groups=4),), (_IMAGE,)),
    "grouped": (_called, (lambda: nn.Conv2d(4, 6, 3, groups=2),), (_IMAGE,)),
    "transposed": (_called, (lambda: nn.ConvTranspose2d(4, 5, 3, stride=2, output_padding=1),), (_IMAGE,)),
    "transposed 1d": (_called, (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),), (_LINE,)),
    "transposed groups": (_called, (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),), (_IMAGE,)),
    "conv relu": (lambda conv, x: F.relu(conv(x)), (lambda: nn.Conv2d(4, 5, 3),), (_IMAGE,)),
    "conv relu6": (lambda conv, x: F.relu6(conv(x)), (lambda: nn.Conv2d(4, 5, 3),), (_IMAGE,)),
    "conv norm": (lambda conv, norm, x: norm(conv(x)), (lambda: nn.Conv2d(4, 5, 3), lambda: normed(5)), (_IMAGE,)),
    "conv norm relu": (
        lambda conv, norm, x: F.relu(norm(conv(x))), (lambda: nn.Conv2d(4, 5, 3, bias=False), lambda: normed(5)), (_IMAGE,)
    ),
    "linear": (_called, (lambda: nn.Linear(8, 5),), (_ROWS,)),
    "linear no bias": (_called, (lambda: nn.Linear(8, 5, bias=False),), (_ROWS,)),
    "linear clamp": (lambda linear, x: linear(x).clamp(-0.3, 0.4), (lambda: nn.Linear(8, 5),), (_ROWS,)),
}  # fmt: skip

PLAIN: dict[str, Case] = {
    "norm": (_called, (lambda: normed(4),), (_IMAGE,)),
    "matmul": (torch.matmul, (), ((2, 3, 4, 6), (2, 3, 6, 5))),
    "bmm": (torch.bmm, (), ((3, 4, 6), (3, 6, 5))),
    "add": (torch.add, (), (_ROWS, _ROWS)),
    "add broadcast": (torch.add, (), (_ROWS, (8,))),
    "add relu": (lambda a, b: F.relu(a + b), (), (_ROWS, _ROWS)),
    "sub": (torch.sub, (), (_ROWS, _ROWS)),
    "mul": (torch.mul, (), (_ROWS, (3, 5, 1))),
    "add number": (lambda x: x + 1.5, (), (_ROWS,)),
    "rsub": (lambda x: 1.0 - x, (), (_ROWS,)),
    "scale": (lambda x: x * 0.37, (), (_ROWS,)),
    "divide": (lambda x: x / 3, (), (_ROWS,)),
    "square": (lambda x: x**2, (), (_ROWS,)),
    "cat": (lambda a, b: torch.cat([a, 3 * b], -1), (), (_ROWS, _ROWS)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (), (_IMAGE,)),
    "avg_pool2d own": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (), (_IMAGE,)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3), (), (_LINE,)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), (), (_IMAGE,)),
    "mean": (lambda x: x.mean((2, 3)), (), (_IMAGE,)),
    "mean keepdim": (lambda x: x.mean(-1, keepdim=True), (), (_ROWS,)),
    "max_pool2d": (lambda x: F.max_pool2d(0.9 * x, 3, 2, 1), (), (_IMAGE,)),
    "max_pool1d": (lambda x: F.max_pool1d(0.9 * x, 2), (), (_LINE,)),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(0.9 * x, (1, 2)), (), (_IMAGE,)),
    "softmax": (lambda x: x.softmax(-1), (), (_ROWS,)),
    "softmax channels": (lambda x: x.softmax(1), (), (_IMAGE,)),
    "layer_norm": (_called, (lambda: shifted(nn.LayerNorm(8)),), (_ROWS,)),
    "layer_norm plain": (lambda x: F.layer_norm(x, (8,)), (), (_ROWS,)),
    "where": (lambda c, a, b: torch.where(c > 0, a, b), (), (_ROWS, _ROWS, _ROWS)),
    "upsample": (lambda x: F.interpolate(0.9 * x, scale_factor=2), (), (_IMAGE,)),
    "pad": (lambda x: F.pad(0.9 * x, (1, 2)), (), (_LINE,)),
    "moves": (lambda x: (0.9 * x).permute(0, 2, 3, 1).reshape(2, -1)[:, 3:90:2].flip(1), (), (_IMAGE,)),
    **{
        name: (function, (), (_ROWS,))
        for name, function in {
            "relu": lambda x: F.relu(0.9 * x), "relu6": F.relu6, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "hardswish": F.hardswish,
            "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu,
            "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "elu": F.elu, "softplus": F.softplus,
            "mish": F.mish, "exp": torch.exp, "abs": torch.abs, "sin": torch.sin,
        }.items()
    },
}  # fmt: skip

LARGER: dict[str, Case] = {
    "attention": (F.scaled_dot_product_attention, (), ((2, 2, 5, 8), (2, 2, 6, 8), (2, 2, 6, 8))),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (), ((2, 2, 5, 8),) * 3),
    "multihead": (
        lambda attention, x: attention(x, x, x, need_weights=False)[0],
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True),),
        (_ROWS,),
    ),
    "lstm": (_last, (lambda: nn.LSTM(8, 6, batch_first=True),), (_ROWS,)),
    "lstm layers": (_last, (lambda: nn.LSTM(8, 4, 2, bidirectional=True),), (_ROWS,)),
    "gru": (_last, (lambda: nn.GRU(8, 6, batch_first=True),), (_ROWS,)),
    "gru layers": (_last, (lambda: nn.GRU(8, 4, 2, bidirectional=True),), (_ROWS,)),
}


def normed(channels: int) -> nn.Module:
    """Return a batch norm with numbers of its own."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
    return norm


def shifted(norm: nn.LayerNorm) -> nn.Module:
    """Return a layer norm with numbers of its own."""
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return norm


def capture(case: Case, seed: int = 0) -> tuple[Program, list[dict[str, Tensor]]]:
    """Return a case as a program, with three batches of data."""
    function, makers, shapes = case
    torch.manual_seed(seed)
    module = Function(function, *(make() for make in makers)).eval()
    inputs = [tuple(torch.randn(shape) * 1.7 for shape in shapes) for _ in range(3)]
    program = export_module(module, inputs[0])
    names = [spec.name for spec in program.signature.inputs]
    return program, [dict(zip(names, each, strict=True)) for each in inputs]


def run_passes(
    program: Program, text: str, data: list[dict[str, Tensor]] | None = None
) -> tuple[Program, tuple[PassRecord, ...]]:
    """Run a pipeline."""
    return PassManager(parse_pipeline(text)).run(program, PassContext(calibration=data or ()))


def stages(
    program: Program, data: list[dict[str, Tensor]], options: str = "", before: str = "canonicalize,fold-batch-norm"
) -> tuple[Program, Program, Program, list[PassRecord]]:
    """Return the prepared, the converted and the lowered program, and all records."""
    prepared, first = run_passes(program, f"{before},quantize-prepare{{{options}}}", data)
    converted, second = run_passes(prepared, "fold-batch-norm,quantize-convert,remove-dead-code")
    lowered, third = run_passes(converted, "lower-integer,remove-dead-code")
    return prepared, converted, lowered, [*first, *second, *third]


def values(program: Program, batch: dict[str, Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return the outputs of one run."""
    with torch.no_grad():
        found = program.run(*(batch[spec.name] for spec in program.signature.inputs))
    return [each.numpy() for each in found if isinstance(each, Tensor)]


def float_operators(program: Program) -> list[str]:
    """Return the operators that compute floats from inputs, other than those that only stand between integers and floats."""
    computed = set(program.inputs)
    for node in program.graph.nodes:
        if node.op == "call_function" and not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
    return [
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function"
        and node in computed
        and node.target not in ROUNDING
        and isinstance(node.meta["val"], Tensor)
        and node.meta["val"].is_floating_point()
    ]


def result_step(program: Program) -> float:
    """Return the step of the last rounding."""
    steps = [node.args[1] for node in program.graph.nodes if node.target is DSOPT.dequantize.default]
    return float(steps[-1])

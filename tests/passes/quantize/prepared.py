"""A small network of all kinds of layers, prepared with 4-bit weights, and what follows that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsopt import PassContext, PassManager, PassRecord, Program, capture, parse_pipeline


def net(seed: int = 0, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2, bias=bias), nn.Flatten(), nn.Linear(4 * 144, 5, bias=bias),
    ).eval()  # fmt: skip


def images(count: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).abs()


def passed(
    model: nn.Module, x: Tensor, passes: str, seed: int = 0, options: str = ""
) -> tuple[Program, Program, tuple[PassRecord, ...]]:
    program = capture(model, (x[:2],), {"input": {0: "batch"}})
    context = PassContext(calibration=[{"input": x[:10]}, {"input": x[10:]}], seed=seed)
    return program, *PassManager(parse_pipeline(f"canonicalize,quantize-prepare{{weights=4{options}}}{passes}")).run(
        program, context
    )


def layers(program: Program) -> list[str]:
    kinds = ("conv", "linear")
    return [
        node.name
        for node in program.graph.nodes
        if any(kind in str(node.target) for kind in kinds) and node.op == "call_function"
    ]

"""Placement of real programs: kernels run in the order that needs the smallest arena, and what is generated follows."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt import api
from dsopt.backends.mcu.place import place
from dsopt.backends.tir.lower import lower
from dsopt.passes.memory.arena import lower_bound
from dsopt.passes.memory.overlay import verify_overlays
from tests.backends.mcu.desk import prepared


class Branches(nn.Module):
    """Wide values of four branches, computed breadth first; `seen` is a state that is read before its update."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(8, 256) for _ in range(4))
        self.narrow = nn.ModuleList(nn.Linear(256, 8) for _ in range(4))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.seen
        wide = [layer(y) for layer in self.wide]
        self.seen.copy_(x)
        narrow = [layer(value) for layer, value in zip(self.narrow, wide, strict=True)]
        return narrow[0] * narrow[1] + narrow[2] * narrow[3]


def program() -> dsopt.Program:
    torch.manual_seed(0)
    return dsopt.capture(Branches().eval(), (torch.randn(1, 8),))


def test_kernels_run_in_the_order_that_needs_the_smallest_arena() -> None:
    loops = lower(prepared(program()))
    placement = place(loops)
    assert sorted(k.name for k in placement.program.kernels) == sorted(k.name for k in loops.kernels)
    assert placement.plan.arena_bytes < 2 * 256 * 4 < 4 * 256 * 4, "one wide value at a time"
    assert lower_bound(placement.lives.values()) == placement.plan.arena_bytes


@pytest.mark.mcu
def test_the_generated_code_and_the_manifest_follow_that_order() -> None:
    artifact = api.build(
        program(), "mcu:cortex-m4"
    ).artifact  # runs the image and compares it with the captured program
    source = artifact.files["model.c"].decode()
    run = source[source.index("_run(void)\n{") :]
    called = re.findall(r"^    (\w+)\(", run[: run.index("\n}")], re.MULTILINE)
    layers = [row["function"] for row in artifact.manifest["layers"]]
    assert [name for name in called if name in layers] == layers
    order = [name.split("_")[0] for name in layers if name.startswith(("wide", "narrow"))]
    assert order[:4] == ["wide", "narrow", "wide", "narrow"]


def test_a_chain_keeps_its_order() -> None:
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).eval()
    loops = lower(prepared(dsopt.capture(layers, (torch.randn(1, 8),))))
    assert place(loops).program is loops


def test_the_plan_of_the_arena_is_verified() -> None:
    placement = place(lower(prepared(program())))
    verify_overlays(list(placement.lives.values()), {}, placement.plan)
    wrong = dict.fromkeys(placement.plan.offsets, 0)
    with pytest.raises(ValueError, match="overlap"):
        verify_overlays(list(placement.lives.values()), {}, type(placement.plan)(wrong, 10_000, 0, False))

"""Patches give the bits of whole images; the judge is the program itself, whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu import McuBackend
from dsopt.errors import BudgetError, UsageError
from dsopt.ir import Program
from dsopt.passes.patch import Patch
from dsopt.passes.patch.cascade import Cascade
from dsopt.passes.patch.plan import choices, products
from dsopt.passes.patch.stage import stages
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.tir.integer_modules import Settings, conv, integers


class Block(nn.Module):
    """A convolution, with or without a residual that other layers have read, too."""

    def __init__(
        self, seed: int, inputs: int, outputs: int, kernel: int, options: dict[str, Any], residual: bool
    ) -> None:
        super().__init__()
        depthwise = options.get("groups", 1) > 1
        s = Settings(seed, x_zero=seed % 256 - 128)
        self.conv = conv((outputs, 1 if depthwise else inputs, kernel, kernel), s, **options)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.residual:
            return y
        return torch.ops.dsopt.q_add(y, x, 5, -5, 700_001, -450_000, 20, -7, -128, 120, 8)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[Block], tuple[int, int, int]]:
    channels, side = draw(st.integers(1, 4)), draw(st.tuples(st.integers(7, 14), st.integers(7, 14)))
    found: list[Block] = []
    shape = (channels, *side)
    while len(found) < 4:
        kernel, stride, dilation = (
            draw(st.integers(1, 4)),
            draw(st.sampled_from([1, 1, 2])),
            draw(st.sampled_from([1, 1, 2])),
        )
        reach = (kernel - 1) * dilation + 1
        padding = draw(st.integers(0, reach - 1))
        out = [(size + 2 * padding - reach) // stride + 1 for size in shape[1:]]
        if min(shape[1:]) + 2 * padding < reach or min(out) < 1:
            break
        depthwise = draw(st.booleans()) and shape[0] > 1
        outputs = shape[0] if depthwise else draw(st.integers(1, 4))
        options = {
            "stride": (stride,),
            "padding": (padding,),
            "dilation": (dilation,),
            "groups": shape[0] if depthwise else 1,
        }
        residual = (outputs, *out) == shape and draw(st.booleans())
        found.append(Block(draw(st.integers(0, 255)), shape[0], outputs, kernel, options, residual))
        shape = (outputs, *out)
    return found, (channels, *side)


def captured(layers: list[Block], shape: tuple[int, int, int]) -> Program:
    x = torch.from_numpy(integers(np.random.default_rng(1), (1, *shape)))
    program = dsopt.capture(nn.Sequential(*layers).eval(), (x,))
    return dsopt.PassManager(dsopt.parse_pipeline("fuse-residual")).run(program)[0]


def in_parts(program: Program, way: Patch | Cascade, shape: tuple[int, int, int]) -> tuple[Program, bool]:
    """Return a program in parts, which gives the same bits, and whether anything changed."""
    parts, (record,) = dsopt.PassManager((way,)).run(program)
    x = torch.from_numpy(integers(np.random.default_rng(way.rows * 31 + way.columns), (1, *shape)))
    torch.testing.assert_close(parts.run(x), program.run(x), rtol=0, atol=0)
    return parts, bool(record.changes)


@given(blocks(), st.data())
def test_any_stage_in_any_patches_gives_the_same_bits(
    made: tuple[list[Block], tuple[int, int, int]], data: st.DataObject
) -> None:
    layers, shape = made
    if len(layers) < 2:
        return
    program = captured(layers, shape)
    for stage in stages(program):
        height, width = (int(size) for size in program.shape(stage.end)[2:])
        rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        _, is_changed = in_parts(program, Patch(stage.end.name, rows, columns), shape)
        assert is_changed


@given(blocks(), st.data())
def test_any_stage_in_any_strips_gives_the_same_bits_and_computes_no_row_twice(
    made: tuple[list[Block], tuple[int, int, int]], data: st.DataObject
) -> None:
    layers, shape = made
    if len(layers) < 2:
        return
    program = captured(layers, shape)
    for stage in stages(program):
        rows, columns = data.draw(st.integers(1, shape[1])), data.draw(st.integers(1, program.shape(stage.end)[3]))
        cascaded, is_changed = in_parts(program, Cascade(stage.end.name, rows, columns), shape)
        if columns == 1:  # rows that nobody reads are not computed
            assert products(cascaded) <= products(program)
        assert is_changed or (rows, columns) == (shape[1], 1)


def chain(height: int = 24, width: int = 20) -> Program:
    """Return 3 -> 24 -> 24 (depthwise) -> 8 channels of an image, and a smaller end."""
    s = Settings(3)
    layers = [
        conv((24, 3, 3, 3), s, padding=(1,)), conv((24, 1, 3, 3), s, stride=(2,), padding=(1,), groups=24),
        conv((8, 24, 1, 1), s), conv((4, 8, 3, 3), s, stride=(2,)),
    ]  # fmt: skip
    x = torch.from_numpy(integers(np.random.default_rng(2), (1, 3, height, width)))
    return dsopt.capture(nn.Sequential(*layers).eval(), (x,))


def test_a_stage_ends_where_nothing_inside_is_read_from_outside() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (conv((3, 3, 1, 1), Settings(n)) for n in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.a(x)
            return self.b(a), self.c(a)

    x = torch.from_numpy(integers(np.random.default_rng(2), (1, 3, 4, 4)))
    assert list(stages(dsopt.capture(Branches().eval(), (x,)))) == []


def test_an_unknown_stage_and_too_many_patches_are_refused() -> None:
    with pytest.raises(UsageError, match="DS0309: patch has no stage that ends with 'nowhere'") as caught:
        dsopt.PassManager((Patch("nowhere"),)).run(chain())
    assert "q_conv_1, q_conv_2, q_conv_3" in caught.value.fix
    with pytest.raises(UsageError, match="DS0309: patch cannot share 12 x 10 pixels between 13 x 1 patches"):
        dsopt.PassManager((Patch("q_conv_2", 13, 1),)).run(chain())


def test_choices_cost_more_products_the_less_memory_they_take() -> None:
    program = chain()
    ways = [choices(program, limit) for limit in (9000, 6000, 4000)]
    cheapest = [found[0] for found in ways]
    assert [each.products for each in cheapest] == sorted(each.products for each in cheapest)
    assert all(each.ram_bytes <= limit for found, limit in zip(ways, (9000, 6000, 4000), strict=True) for each in found)
    assert choices(program, 1000) == []


@pytest.mark.mcu
def test_a_chip_with_less_memory_than_whole_layers_need_gets_patches() -> None:
    program = chain()
    whole = McuBackend().emit(program, McuTarget("cortex-m4"), EmitOptions())
    assert "patches" not in whole.manifest
    limit = whole.manifest["memory"]["ram_bytes"] * 6 // 10
    artifact = McuBackend().emit(program, McuTarget("cortex-m4", ram_bytes=limit), EmitOptions())
    assert artifact.manifest["memory"]["ram_bytes"] <= limit
    assert artifact.manifest["patches"]["rows"] * artifact.manifest["patches"]["columns"] > 1
    x = torch.from_numpy(integers(np.random.default_rng(5), (1, 3, 24, 20)))
    (want,) = program.run(x)
    (got,) = open_executor(artifact).run({program.signature.inputs[0].name: x.numpy()}).values()
    np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.mcu
def test_code_made_for_ram_runs_in_patches_where_that_takes_less() -> None:
    program = chain()
    whole = McuBackend().emit(program, McuTarget("cortex-m4"), EmitOptions())
    small = McuBackend().emit(program, McuTarget("cortex-m4"), EmitOptions(optimize="ram"))
    assert small.manifest["memory"]["ram_bytes"] < whole.manifest["memory"]["ram_bytes"]
    x = torch.from_numpy(integers(np.random.default_rng(6), (1, 3, 24, 20)))
    (want,) = program.run(x)
    (got,) = open_executor(small).run({program.signature.inputs[0].name: x.numpy()}).values()
    np.testing.assert_array_equal(got, want.numpy())
    assert small.manifest["limits"] == whole.manifest["limits"]


@pytest.mark.mcu
@pytest.mark.parametrize("sizes", [(24, 20), (40, 16), (18, 18)])
def test_no_limit_gives_a_better_plan_than_code_made_for_ram(sizes: tuple[int, int]) -> None:
    """Whatever is reached with --optimize ram, a limit of as much reaches with no less work; a limit below it costs more, or is refused."""
    program = chain(*sizes)
    small = McuBackend().emit(program, McuTarget("cortex-m4"), EmitOptions(optimize="ram")).manifest
    reached = small["memory"]["ram_bytes"]
    same = McuBackend().emit(program, McuTarget("cortex-m4", ram_bytes=reached), EmitOptions()).manifest
    assert same["memory"]["ram_bytes"] <= reached
    assert same["patches"] == small["patches"]
    try:
        less = McuBackend().emit(program, McuTarget("cortex-m4", ram_bytes=reached - 1), EmitOptions()).manifest
    except BudgetError:
        return
    assert less["patches"]["multiply_adds"] > small["patches"]["multiply_adds"]


@pytest.mark.mcu
def test_code_made_for_ram_stays_whole_where_patches_would_exceed_another_budget() -> None:
    program = chain()
    whole = McuBackend().emit(program, McuTarget("cortex-m4"), EmitOptions())
    tight = McuTarget("cortex-m4", flash_bytes=whole.manifest["memory"]["flash_bytes"])
    artifact = McuBackend().emit(program, tight, EmitOptions(optimize="ram"))
    assert "patches" not in artifact.manifest
    assert artifact.manifest["why_whole"].startswith("no way takes less RAM within the other budgets")


def test_what_fits_in_no_patches_is_refused() -> None:
    with pytest.raises(BudgetError, match="DS0601"):
        McuBackend().emit(chain(), McuTarget("cortex-m4", ram_bytes=2048), EmitOptions())

"""Integer operators on emulated cores and through the generated API: every bit as the NumPy references give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

import dsopt
from dsopt.ir import Program
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.mcu.desk import DeskModel
from tests.backends.mcu.kernel_cases import usual
from tests.backends.tir.integer_cases import INTEGER_FAMILIES

SMALL: dict[str, tuple[str, ...]] = {
    "conv": ("padded", "depthwise", "int4", "factors", "in_16", "transposed_pad", "one_dim_dilated"),
    "linear": ("plain", "int4_odd", "factors_int8", "in_16"),
    "requantize": ("all", "all_wide", "high", "only_32", "only_33", "only_62", "only_4_wide", "largest"),
    "matmul": ("batches", "in_16"),
    "elementwise": ("add_ends", "add_16", "mul_row", "mul_16", "rescale", "lookup", "lookup_16", "lookup_16_fine"),
    "pool": ("max_pad", "average_ceil_exclude", "mean"),
    "normalization": ("softmax", "softmax_16", "softmax_mask", "norm", "norm_16"),
    "embedding": ("int4_factors",),
    "recurrent": ("lstm_batch_first", "lstm_int4", "gru"),
    "quantize": ("low", "uint8", "int16_special", "int32_special", "dequantize_16"),
    "channels": ("groups_rest",),
}


class Joined(nn.Module):
    """Cases of several families in one program: one image holds them all."""

    def __init__(self, cases: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.names = [(family, case) for family, names in cases.items() for case in names]
        functions = [INTEGER_FAMILIES[family].cases[case] for family, case in self.names]
        self.functions: list[Callable[..., Tensor]] = list(functions)
        self.kept = nn.ModuleList([function for function in functions if isinstance(function, nn.Module)])
        self.ranges: dict[str, slice] = {}
        self.inputs: tuple[Tensor, ...] = ()
        for family in cases:
            start = len(self.inputs)
            self.inputs += INTEGER_FAMILIES[family].inputs
            self.ranges[family] = slice(start, len(self.inputs))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = zip(self.names, self.functions, strict=True)
        return tuple(function(*inputs[self.ranges[family]]) for (family, _), function in named)


def joined(cases: dict[str, tuple[str, ...]] = SMALL) -> tuple[Joined, Program]:
    model = Joined(cases)
    return model, dsopt.capture(model.eval(), model.inputs)


def assert_equal(model: Joined, program: Program, got: list[np.ndarray]) -> None:  # type: ignore[type-arg]
    for name, one, want in zip(model.names, got, program.run(*model.inputs), strict=True):
        assert one.shape == tuple(want.shape), name
        np.testing.assert_array_equal(one, want.numpy(), err_msg=" ".join(name))


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4", "rv32imc", "rv32imafc"])
def test_emulated_cores_give_the_bits_of_the_reference(core: str) -> None:
    model, program = joined()
    artifact = usual(program, McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20))
    names = [spec.name for spec in program.signature.inputs]
    outputs = open_executor(artifact).run(dict(zip(names, (x.numpy() for x in model.inputs), strict=True)))
    assert_equal(model, program, [outputs[spec.name] for spec in program.signature.outputs])


@pytest.mark.parametrize("family", INTEGER_FAMILIES)
def test_the_generated_api_gives_the_bits_of_the_reference(family: str, tmp_path: Path) -> None:
    """Through planner and arena, and with every warning that users may have switched on."""
    model, program = joined({family: tuple(INTEGER_FAMILIES[family].cases)})
    assert_equal(model, program, DeskModel(program, tmp_path).run(*(x.numpy() for x in model.inputs)))

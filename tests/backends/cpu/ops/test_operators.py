"""Every operator of the tables agrees with eager torch through ONNX Runtime, with fixed and with varying batch."""

from __future__ import annotations

import pytest

from tests.backends.cpu.cases import check
from tests.backends.cpu.ops import (
    activations,
    attentions,
    convolutions,
    elementwise,
    indexings,
    linears,
    normalizations,
    poolings,
    recurrents,
    reductions,
    resizes,
    shapes,
)

TABLES = (
    activations, attentions, convolutions, elementwise, indexings, linears, normalizations, poolings, recurrents,
    reductions, resizes, shapes,
)  # fmt: skip
CASES = {f"{table.__name__.rpartition('.')[2]}.{name}": case for table in TABLES for name, case in table.CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_eager_at_a_fixed_size(name: str) -> None:
    check(CASES[name], is_dynamic=False)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.is_static])
def test_agrees_with_eager_at_varying_sizes(name: str) -> None:
    check(CASES[name], is_dynamic=True)

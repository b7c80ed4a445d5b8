"""Every operator of the tables agrees with eager torch through ONNX Runtime, with fixed and with varying batch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backends.cpu.cases import check
from tests.backends.cpu.ops import (
    activations,
    attentions,
    convolutions,
    elementwise,
    indexings,
    linears,
    lowered,
    normalizations,
    poolings,
    recurrents,
    reductions,
    resizes,
    shapes,
)

TABLES = (
    activations, attentions, convolutions, elementwise, indexings, linears, lowered, normalizations, poolings, recurrents,
    reductions, resizes, shapes,
)  # fmt: skip
CASES = {f"{table.__name__.rpartition('.')[2]}.{name}": case for table in TABLES for name, case in table.CASES.items()}
VARYING = [name for name, case in CASES.items() if case.varies]
SIZED = ("attentions", "convolutions", "indexings", "poolings", "recurrents", "resizes", "shapes")
"""Tables of operators that are written otherwise where all sizes are known; of the others a varying batch tells as much."""


RECURRENT = ("recurrents.LSTM_batch_first", "recurrents.GRU_states", "recurrents.cells")
"""The recurrent cases whose slow export with a varying batch is worth its time in every run."""


def _varying(name: str) -> Any:
    is_slow = name.startswith("recurrents.") and name not in RECURRENT
    return pytest.param(name, marks=[pytest.mark.slow] if is_slow else [])


def _fixed(name: str) -> Any:
    is_told = name in VARYING and not name.startswith(SIZED)
    return pytest.param(name, marks=[pytest.mark.slow] if is_told else [])


@pytest.mark.parametrize("name", [_fixed(name) for name in CASES])
def test_agrees_with_eager_at_a_fixed_size(name: str) -> None:
    check(CASES[name], is_dynamic=False)


@pytest.mark.parametrize("name", [_varying(name) for name in VARYING])
def test_agrees_with_eager_at_varying_sizes(name: str) -> None:
    check(CASES[name], is_dynamic=True)

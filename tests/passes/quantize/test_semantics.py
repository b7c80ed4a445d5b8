"""Each operator is rounded by what it means: to integers without a float left, on the grids that training saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsopt.frontend.export import export_module
from tests.passes.quantize.programs import (
    LARGER,
    PLAIN,
    WEIGHTED,
    capture,
    float_operators,
    result_step,
    stages,
    values,
)

ALL = WEIGHTED | PLAIN | LARGER
BITS = [*((name, 8) for name in sorted(ALL)), *((name, 4) for name in sorted(WEIGHTED | LARGER))]


@pytest.mark.parametrize(("name", "bits"), BITS)
def test_an_operator_becomes_integers_alone(name: str, bits: int) -> None:
    program, data = capture(ALL[name])
    text = program.text()
    prepared, converted, lowered, records = stages(program, data, f"weights={bits}")
    assert program.text() == text
    assert float_operators(lowered) == []
    assert [
        skip for record in records if "quant" in record.name or "lower" in record.name for skip in record.skips
    ] == []
    step = result_step(lowered)
    for batch in data:
        wanted, simulated, stored, integer = (
            values(each, batch)[0] for each in (program, prepared, converted, lowered)
        )
        assert np.isfinite(integer).all()
        if name not in LARGER:
            # biases move by half a step of the products, which is far below one of the result
            assert np.abs(simulated - stored).max() <= step * 1.001
            assert np.abs(stored - integer).max() <= step * 1.001
        # and all that stands for the float program: better than the mean alone by far
        noise = np.square(wanted - integer).mean() / np.square(wanted - wanted.mean()).mean()
        assert noise < (0.02 if bits == 8 else 0.15)


@pytest.mark.parametrize("name", sorted(set(ALL) - {name for name in LARGER if "lstm" in name or "gru" in name}))
def test_activations_of_16_bits_come_closer_to_the_float_program(name: str) -> None:
    program, data = capture(ALL[name])
    coarse, fine = (stages(program, data, options) for options in ("observer=minmax", "observer=minmax,activations=16"))
    assert float_operators(fine[2]) == []
    wanted, eight, sixteen = (
        np.concatenate([values(each, batch)[0] for batch in data]) for each in (program, coarse[2], fine[2])
    )
    assert np.abs(wanted - sixteen).mean() <= np.abs(wanted - eight).mean()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("options", ["", "weights=4", "activations=16", "weights=4,per=group,group=4"])
def test_an_embedding_becomes_integers(options: str, dtype: torch.dtype) -> None:
    table = torch.nn.Embedding(12, 8)
    ids = torch.arange(12, dtype=dtype).reshape(2, 6)
    program = export_module(table, (ids,))
    data = [{program.signature.inputs[0].name: ids}]
    prepared, converted, lowered, _ = stages(program, data, options)
    assert float_operators(lowered) == []
    stored, integer, simulated = (values(each, data[0])[0] for each in (converted, lowered, prepared))
    assert np.array_equal(stored, simulated)
    assert np.abs(stored - integer).max() <= result_step(lowered) * 1.001
    wanted = table(ids).detach().numpy()
    assert np.square(wanted - integer).mean() < (0.02 if "4" in options else 1e-3) * np.square(wanted).mean()

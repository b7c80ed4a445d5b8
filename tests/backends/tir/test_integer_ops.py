"""Integer operators through C built by the host's compiler: every bit as the NumPy references give it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dsopt
from dsopt.backends.tir.lower import blockers
from tests.backends.tir.case import Cases
from tests.backends.tir.host_runner import run_on_host
from tests.backends.tir.integer_cases import INTEGER_FAMILIES


@pytest.mark.parametrize("name", INTEGER_FAMILIES)
def test_kernels_give_the_bits_of_the_reference(name: str, tmp_path: Path) -> None:
    family = INTEGER_FAMILIES[name]
    program = dsopt.capture(Cases(family.cases).eval(), family.inputs)
    assert blockers(program) == ()
    with torch.no_grad():
        wanted = program.run(*family.inputs)
    outputs, _ = run_on_host(program, family.inputs, tmp_path)
    for case, got, want in zip(family.cases, outputs, wanted, strict=True):
        assert (str(want.dtype), tuple(want.shape)) == (f"torch.{got.dtype}", got.shape), case
        np.testing.assert_array_equal(got, want.numpy(), err_msg=case)

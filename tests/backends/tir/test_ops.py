"""Every operator family against eager torch, through C built by the host's compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

import dsopt
from dsopt.backends.tir.lower import blockers
from tests.backends.tir.case import Cases
from tests.backends.tir.cases import FAMILIES
from tests.backends.tir.host_runner import errors_on_host


@pytest.mark.parametrize("name", FAMILIES)
def test_operators_agree_with_eager_torch(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    program = dsopt.capture(Cases(family.cases).eval(), family.inputs)
    assert blockers(program) == ()
    errors = errors_on_host(program, family.inputs, tmp_path)
    wrong = {case: error for case, error in zip(family.cases, errors, strict=True) if not error <= family.tolerance}
    assert wrong == {}

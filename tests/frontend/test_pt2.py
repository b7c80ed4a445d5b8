from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from dsopt.frontend.pt2 import read_pt2
from tests.frontend.programs import CASES, Case


def export_case(case: Case, path: Path) -> torch.export.ExportedProgram:
    """Export and save as a user does; torch warns of its own LSTM weights and of views."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(case.model, case.args, case.kwargs, dynamic_shapes=case.dynamic)
        torch.export.save(program, path)
    return program


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found = CASES[request.param]
    return found._replace(model=copy.deepcopy(found.model))


def test_an_archive_reads_back_to_the_numbers_of_eager_torch(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    export_case(case, path)
    program = read_pt2(path)
    expected = pytree.tree_leaves(case.model(*case.args, **case.kwargs))
    actual = pytree.tree_leaves(program.module()(*case.args, **case.kwargs))
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours == theirs

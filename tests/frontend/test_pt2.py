from __future__ import annotations

import copy
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from dsopt.errors import ReadError
from dsopt.frontend.pt2 import read_pt2
from dsopt.ir.torch_private import register_operators
from tests.frontend.archives import altered, text_edit
from tests.frontend.programs import CASES, Case


def export_case(case: Case, path: Path) -> torch.export.ExportedProgram:
    """Export and save as a user does; torch warns of its own LSTM weights and of views."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(case.model, case.args, dict(case.kwargs), dynamic_shapes=case.dynamic)
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


class UsesOurs(nn.Module):
    """Calls an operator of dsopt, as a rewritten and exported program does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.dsopt.linear_act(x, self.linear.weight, self.linear.bias, "clamp", [0.0, 0.5])


class Quantized(nn.Module):
    """Rounds its input to int8 and back, as torch's own quantizer writes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed
        q = ops.quantize_per_tensor.default(x, 0.1, 3, -128, 127, torch.int8)
        return ops.dequantize_per_tensor.default(q, 0.1, 3, -128, 127, torch.int8)


def test_operators_of_dsopt_survive(tmp_path: Path) -> None:
    case = Case(UsesOurs(), (torch.randn(2, 4),))
    export_case(case, tmp_path / "m.pt2")
    program = read_pt2(tmp_path / "m.pt2")
    torch.testing.assert_close(program.module()(*case.args), case.model(*case.args), rtol=0, atol=0)


def test_quantized_programs_are_read(tmp_path: Path) -> None:
    register_operators("quantized_decomposed")
    case = Case(Quantized(), (torch.randn(2, 4),))
    export_case(case, tmp_path / "m.pt2")
    program = read_pt2(tmp_path / "m.pt2")
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [
        "quantized_decomposed.quantize_per_tensor.default",
        "quantized_decomposed.dequantize_per_tensor.default",
    ]
    torch.testing.assert_close(program.module()(*case.args), case.model(*case.args), rtol=0, atol=0)


def test_sizes_keep_their_ranges(tmp_path: Path) -> None:
    export_case(CASES["nested"], tmp_path / "m.pt2")
    bounds = [(int(found.lower), int(found.upper)) for found in read_pt2(tmp_path / "m.pt2").range_constraints.values()]
    assert bounds == [(2, 64)]


def test_weights_that_shared_memory_share_it_again(tmp_path: Path) -> None:
    export_case(CASES["tied"], tmp_path / "m.pt2")
    state = read_pt2(tmp_path / "m.pt2").state_dict
    assert state["embedding.weight"].data_ptr() == state["head.weight"].data_ptr()
    assert state["first"].untyped_storage().data_ptr() == state["second"].untyped_storage().data_ptr()


def test_named_tuples_become_dicts_with_their_fields(tmp_path: Path) -> None:
    export_case(CASES["containers"], tmp_path / "m.pt2")
    first, second = read_pt2(tmp_path / "m.pt2").module()(torch.ones(3))
    assert list(first) == ["b", "a"]
    assert type(first["a"]) is dict
    assert list(second) == ["left", "right"]
    assert second["right"][1:] == [None, 3]


def test_layers_and_source_lines_survive(tmp_path: Path) -> None:
    export_case(CASES["nested"], tmp_path / "m.pt2")
    node = next(node for node in read_pt2(tmp_path / "m.pt2").graph.nodes if "aten.linear" in str(node.target))
    assert 'y = self.linear(x) * options["gain"]' in node.meta["stack_trace"]
    assert [path for path, _ in node.meta["nn_module_stack"].values()] == ["", "linear"]


def test_a_program_of_another_device_is_put_on_the_cpu(tmp_path: Path) -> None:
    export_case(CASES["odd arguments"], tmp_path / "here.pt2")
    elsewhere = text_edit(('{"type": "cpu", "index": null}', '{"type": "cuda", "index": 1}'))
    with zipfile.ZipFile(tmp_path / "here.pt2") as archive:
        edits = {name.split("/", 1)[1]: elsewhere for name in archive.namelist() if name.endswith("model.json")}
    program = read_pt2(altered(tmp_path / "here.pt2", tmp_path / "there.pt2", edits))
    x = torch.randn(4, 6)
    torch.testing.assert_close(program.module()(x), CASES["odd arguments"].model(x), rtol=0, atol=0, equal_nan=True)


def test_two_programs_in_one_archive_are_named(tmp_path: Path) -> None:
    export_case(CASES["no grad"], tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        document = archive.read("m/models/model.json")
    with pytest.raises(ReadError, match=r"holds 2 programs \(models/decoder.json, models/model.json\)"):
        read_pt2(altered(tmp_path / "m.pt2", tmp_path / "two.pt2", {"models/decoder.json": document}))

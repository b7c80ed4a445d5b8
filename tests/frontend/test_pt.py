from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dsopt.errors import CaptureError, ReadError
from dsopt.frontend.pt import read_pt
from tests.frontend.archives import Bomb
from tests.frontend.programs import Counter


def refusal(path: Path, trust_pickle: bool = False) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        read_pt(path, trust_pickle)
    return caught.value


def test_an_exported_program_under_another_name_is_read(tmp_path: Path) -> None:
    model, x = nn.Linear(2, 3), torch.randn(1, 2)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    program = read_pt(tmp_path / "m.pt")
    assert isinstance(program, torch.export.ExportedProgram)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_module_is_refused_with_what_it_would_import(is_zip: bool, tmp_path: Path) -> None:
    torch.save(Counter(), tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    error = refusal(tmp_path / "m.pt")
    assert error.code == "DS0152"
    assert "reading it would run code: it imports tests.frontend.programs.Counter" in error.what
    assert "--trust-pickle" in error.fix


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_trusted_pickle_gives_the_module_in_eval_mode(is_zip: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    found = read_pt(tmp_path / "m.pt", trust_pickle=True)
    assert isinstance(found, nn.Module)
    assert not found.training
    x = torch.randn(3, 2)
    torch.testing.assert_close(found(x), model.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_bomb_goes_off_only_when_it_is_trusted(is_zip: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "m.pt"
    if is_zip:
        torch.save(Bomb(marker), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    error = refusal(path)
    assert error.code == "DS0152"
    assert "posix.mkdir" in error.what
    assert not marker.exists()
    assert refusal(path, trust_pickle=True).code == "DS0154"
    assert marker.exists()


def test_torchscript_is_answered_with_how_to_export(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    error = refusal(tmp_path / "m.pt")
    assert error.code == "DS0151"
    assert "torch.export.save(program, 'model.pt2')" in error.fix


def test_weights_alone_are_answered_with_a_factory(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    error = refusal(tmp_path / "weights.pt")
    assert error.code == "DS0153"
    assert "model.load_state_dict(torch.load('weights.pt'))" in error.fix


def test_a_trusted_checkpoint_says_which_entry_is_the_module(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "net": nn.Linear(2, 2)}, tmp_path / "m.pt")
    error = refusal(tmp_path / "m.pt", trust_pickle=True)
    assert error.what.endswith("holds a builtins.dict, not a module")
    assert error.fix == "Its entry 'net' is a module: save that one alone."


def test_a_trusted_pickle_of_a_class_that_is_not_here_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"\x80\x02cnot_installed_here\nNet\n)\x81.")
    error = refusal(tmp_path / "m.pt", trust_pickle=True)
    assert error.code == "DS0154"


def test_machine_code_of_aotinductor_is_answered_with_how_to_export(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.so", "x")
    with pytest.raises(ReadError, match="holds machine code and no exported program") as caught:
        read_pt(tmp_path / "m.pt2")
    assert caught.value.code == "DS0150"


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ReadError, match="a dsopt artifact"):
        read_pt(tmp_path)

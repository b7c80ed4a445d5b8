from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dsopt.errors import DsoptError, ReadError
from dsopt.frontend.sniff import Kind, sniff
from tests.frontend.archives import Bomb


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind, none with a telling name."""
    import onnx

    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / name for name in KINDS}
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    torch.export.save(torch.export.export(model, (torch.randn(1, 2),)), found["pt2"])
    with zipfile.ZipFile(found["old_pt2"], "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with zipfile.ZipFile(found["aoti"], "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.so", "x")
        archive.writestr("m/archive_format", "pt2")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(model, torch.randn(1, 2)), found["script"])
    torch.save(model, found["module"])
    torch.save(torch.ones(2), found["tensors"])
    torch.save(model.state_dict(), found["state"])
    torch.save([1, 2], found["list"])
    torch.save(model, found["old_module"], _use_new_zipfile_serialization=False)
    torch.save(model.state_dict(), found["old_tensors"], _use_new_zipfile_serialization=False)
    found["bomb"].write_bytes(pickle.dumps(Bomb(folder / "marker")))
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    made = onnx.helper.make_model(graph, producer_name="tests")
    found["onnx"].write_bytes(made.SerializeToString())
    made.ClearField("ir_version")
    found["onnx_reordered"].write_bytes(made.SerializeToString() + b"\x08\x0a")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    found["safetensors"].write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for name, member in (("program", "program.json"), ("artifact", "manifest.json")):
        with zipfile.ZipFile(found[name], "w") as archive:
            archive.writestr(f"root/{member}", "{}")
            archive.writestr("root/other.bin", "x")
    found["artifact_folder"].mkdir()
    (found["artifact_folder"] / "manifest.json").write_text("{}")
    return found


KINDS = {
    "pt2": Kind.PT2,
    "old_pt2": Kind.PT2,
    "aoti": Kind.COMPILED_PT2,
    "script": Kind.TORCHSCRIPT,
    "module": Kind.PICKLED_OBJECTS,
    "old_module": Kind.PICKLED_OBJECTS,
    "bomb": Kind.PICKLED_OBJECTS,
    "tensors": Kind.PICKLED_TENSORS,
    "state": Kind.PICKLED_TENSORS,
    "list": Kind.PICKLED_TENSORS,
    "old_tensors": Kind.PICKLED_TENSORS,
    "onnx": Kind.ONNX,
    "onnx_reordered": Kind.ONNX,
    "safetensors": Kind.SAFETENSORS,
    "program": Kind.PROGRAM,
    "artifact": Kind.ARTIFACT,
    "artifact_folder": Kind.ARTIFACT,
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_file_is_told_by_its_content(name: str, files: dict[str, Path]) -> None:
    assert sniff(files[name]) is KINDS[name]


def test_nothing_is_unpickled_to_tell(files: dict[str, Path]) -> None:
    sniff(files["bomb"])
    assert not (files["bomb"].parent / "marker").exists()


def test_a_cut_onnx_file_is_still_told_to_be_one(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(files["onnx"].read_bytes()[:-4])
    assert sniff(tmp_path / "m") is Kind.ONNX


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00" * 100, "is not a model that dsopt knows"),
        (b"hello, world", "begins with 'hello, world'"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (gzip.compress(b"x"), "gzip"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), "TensorFlow Lite"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"PK\x03\x04", "truncated"),
        (np.random.default_rng(0).bytes(500), "is not a model"),
    ],
    ids=range(10),
)
def test_other_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ReadError) as caught:
        sniff(path)
    assert words in str(caught.value)
    assert caught.value.code in ("DS0141", "DS0143")


def test_a_zip_of_something_else_says_what_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(ReadError, match=r"zip archive without a model in it"):
        sniff(tmp_path / "m.zip")


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"without manifest.json"):
        sniff(tmp_path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="No such file"):
        sniff(tmp_path / "none")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x08\x0a", b"\x02\0\0\0\0\0\0\0{"]),
)
def test_any_bytes_are_told_or_refused(data: bytes, head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(head + data)
    try:
        assert isinstance(sniff(path), Kind)
    except DsoptError as error:
        assert str(error)

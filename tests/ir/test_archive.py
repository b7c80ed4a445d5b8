"""The program archive takes files from strangers: whatever is altered, the answer is a sentence and no code runs."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsopt.errors import DsoptError, ReadError, WriteError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.archive import program_bytes
from dsopt.ir.build import evaluate_size


@pytest.fixture(scope="module")
def content() -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return program_bytes(export_module(model, (torch.randn(2, 3),), {}, {"input": {0: "batch"}}))


def _altered(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "program.json":
                document = json.loads(data)
                change(document)
                data = json.dumps(document).encode()
            target.writestr(name, data)
    return buffer.getvalue()


def _load(content: bytes, folder: Path) -> Program:
    path = folder / "p.dsp"
    path.write_bytes(content)
    return Program.load(path)


def test_weights_begin_at_multiples_of_64_bytes_so_that_they_can_be_mapped(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            header = content[info.header_offset : info.header_offset + 30]
            start = (
                info.header_offset
                + 30
                + int.from_bytes(header[26:28], "little")
                + int.from_bytes(header[28:30], "little")
            )
            assert start % 64 == 0
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_STORED


@given(data=st.data())
@settings(max_examples=60)
def test_a_flipped_or_cut_archive_is_answered_with_a_sentence(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cut = data.draw(st.integers(0, len(content)))
    place = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    for broken in (content[:cut], bytes(flipped)):
        try:
            _load(broken, tmp_path_factory.mktemp("fuzz"))
        except ReadError as problem:
            assert problem.what


def _mutations() -> dict[str, Callable[[dict[str, Any]], None]]:
    def operator(name: str) -> Callable[[dict[str, Any]], None]:
        def change(document: dict[str, Any]) -> None:
            next(node for node in document["nodes"] if "op" in node)["op"] = name

        return change

    def set_in(path: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
        def change(document: dict[str, Any]) -> None:
            target: Any = document
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value

        return change

    return {
        "an operator that opens files": operator("torch.ops.aten.from_file.default"),
        "a function of os": operator("os.system"),
        "a builtin": operator("builtins.eval"),
        "a dunder": operator("torch.ops.aten.__class__.mro"),
        "code in a size": set_in(["inputs", 0, "shape"], ["__import__('os').system('true')", 3]),
        "a negative size": set_in(["inputs", 0, "shape"], [-1, 3]),
        "a huge size": set_in(["weights", 0, "shape"], [1 << 60, 3]),
        "an unknown dtype": set_in(["weights", 0, "dtype"], "object"),
        "a wrong shape": set_in(["weights", 0, "shape"], [3, 4]),
        "a missing node": set_in(["results"], ["n99"]),
        "an unknown output tree": set_in(["output_tree"], {"set": []}),
        "a newer schema": set_in(["schema"], 2),
        "no schema": set_in(["schema"], None),
        "a name that is code": set_in(["nodes", 0, "name"], "x = 1; import os"),
    }


@pytest.mark.parametrize("name", sorted(_mutations()))
def test_an_altered_document_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DsoptError) as caught:
        _load(_altered(content, _mutations()[name]), tmp_path)
    assert isinstance(caught.value, ReadError), caught.value


def test_the_untouched_document_loads(content: bytes, tmp_path: Path) -> None:
    program = _load(_altered(content, lambda document: None), tmp_path)
    assert program_bytes(program) == content


def test_a_program_that_cannot_be_written_leaves_nothing_behind(content: bytes, tmp_path: Path) -> None:
    program = _load(content, tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="cannot write"):
        program.save(tmp_path / "folder" / "missing" / "p.dsp")
    with pytest.raises(WriteError, match="cannot write"):
        program.save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "p.dsp"]


@given(st.text(alphabet="0123456789 +-*/%()ab_", max_size=30))
def test_sizes_are_evaluated_as_python_would(text: str) -> None:
    sizes = {"a": 7, "b": 3}
    try:
        got = evaluate_size(text, sizes)
    except (ValueError, ZeroDivisionError):
        return
    text = re.sub(r"\b0+(?=\d)", "", text)  # Python refuses leading zeros, a size may have them
    assert got == eval(text.strip(), {"__builtins__": {}}, sizes)


@pytest.mark.parametrize(
    ("text", "value"), [("2*batch", 8), ("(batch+1)//2", 2), ("-batch + 10 % 4", -2), ("batch - 1 - 1", 2)]
)
def test_sizes_follow_the_precedence_of_python(text: str, value: int) -> None:
    assert evaluate_size(text, {"batch": 4}) == value


def test_the_sizes_of_the_example_are_kept(tmp_path: Path) -> None:
    program = export_module(nn.Linear(4, 3), (torch.zeros(6, 4),), {}, {"input": {0: ("rows", 2, 9)}})
    program.save(tmp_path / "saved.dsoptp")
    assert Program.load(tmp_path / "saved.dsoptp").example_sizes() == program.example_sizes() == {"rows": 6}

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsopt.frontend.pickles import name_list, scan_pickle
from tests.frontend.archives import Bomb


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_imports_is_listed_in_every_protocol(protocol: int) -> None:
    scan = scan_pickle(pickle.dumps([Bomb(Path("m")), collections.OrderedDict(a=1), Bomb(Path("n"))], protocol))
    assert scan.is_complete
    assert scan.foreign in (("posix.mkdir",), ("nt.mkdir",))
    assert "collections.OrderedDict" in scan.names


def test_nothing_is_imported_while_looking(tmp_path: Path) -> None:
    scan_pickle(pickle.dumps(Bomb(tmp_path / "marker")))
    assert not (tmp_path / "marker").exists()


def test_weights_need_no_foreign_name() -> None:
    buffer = io.BytesIO()
    torch.save(
        nn.Linear(2, 2).state_dict() | {"step": 3, "size": torch.Size([1]), "half": torch.ones(1).half()}, buffer
    )
    import zipfile

    with zipfile.ZipFile(buffer) as archive:
        data = archive.read("archive/data.pkl")
    assert scan_pickle(data).foreign == ()


def test_a_name_fetched_from_the_memo_is_found() -> None:
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93."
    assert scan_pickle(data).names == ("os.system",)


def test_a_cut_pickle_is_said_to_be_incomplete() -> None:
    data = pickle.dumps([Bomb(Path("m"))] * 3)
    assert not scan_pickle(data[:-10]).is_complete
    assert scan_pickle(data[:-10]).foreign


def test_a_long_pickle_is_not_read_without_end() -> None:
    assert not scan_pickle(b"N0" * 1000 + b"N.", max_opcodes=100).is_complete


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_scanned(data: bytes) -> None:
    assert all(name.isprintable() for name in scan_pickle(b"\x80\x04" + data).names)


def test_long_lists_of_names_are_cut() -> None:
    assert name_list([f"m.n{i}" for i in range(10)], 3) == "m.n0, m.n1, m.n2 and 7 more"

"""The arena benchmark packs files and seeded instances with each engine, and judges what it packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import arena
from dsopt.passes.memory.packing_native import native_engine

LINES = "id,lower,upper,size\n0,0,2,32\n1,2,4,32\n2,0,4,16\n3,1,3,16\n"


def rows(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    arena.main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["name"]) == (1, "arena")
    found: list[dict[str, object]] = document["rows"]
    return found


def test_files_are_packed_at_the_capacity_in_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.64.csv").write_text(LINES)
    (tmp_path / "b.csv").write_text(LINES)
    found = rows(["--instances", str(tmp_path), "--engine", "python"], capsys)
    assert [(row["instance"], row["capacity"]) for row in found] == [("a.64", 64), ("b", None)]
    for row in found:
        assert (row["buffers"], row["bound"], row["packed"], row["engine"]) == (4, 64, 64, "python")
        assert row["solved"] is row["optimal"] is True
        assert row["cpu_seconds"] < 5  # type: ignore[operator]
        assert row["greedy_bytes"] >= 64  # type: ignore[operator]


@pytest.mark.skipif(native_engine() is None, reason="no C compiler")
def test_both_engines_are_compared_on_seeded_instances(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(["--quick", "--engine", "both", "--networks", "none", "--nodes", "120"], capsys)
    c, python = ([row for row in found if row.get("engine") == name] for name in ("c", "python"))
    keys = ("instance", "buffers", "packed", "bound", "nodes", "greedy_bytes")
    assert [[row[key] for key in keys] for row in c] == [[row[key] for key in keys] for row in python]
    assert [row["instance"] for row in c][-1] == "chain 1,000"


@pytest.mark.slow
def test_networks_are_placed_in_float_and_in_int8(capsys: pytest.CaptureFixture[str]) -> None:
    float_, int8 = [row for row in rows(["--quick", "--networks", "digits"], capsys) if "network" in row]
    assert (float_["network"], int8["network"]) == ("digits float", "digits int8")
    for row in (float_, int8):
        assert row["packed"] == row["bound"]
        assert row["optimal"] is True
        assert row["packed"] <= row["given_bytes"] <= row["greedy_bytes"]  # type: ignore[operator]


def test_the_peer_places_the_largest_first_at_the_lowest_gap() -> None:
    instance = arena.Instance("three", [0, 1, 0], [2, 3, 3], [32, 48, 16])
    assert arena.greedy_by_size(instance) == 96


def test_a_packing_that_overlaps_is_not_reported() -> None:
    instance = arena.Instance("two", [0, 1], [2, 3], [32, 32])
    arena._judge(instance, [0, 32], 64)
    with pytest.raises(AssertionError, match="two overlaps"):
        arena._judge(instance, [0, 16], 64)
    with pytest.raises(AssertionError):
        arena._judge(instance, [0, 40], 64)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--instances", "/nowhere"], "no folder"),
        (["--networks", "kws,vgg"], "no 'vgg'; known: ad, digits"),
        (["--engine", "rust"], "invalid choice"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "seeded", lambda quick: iter(()))
    with pytest.raises(SystemExit):
        arena.main(arguments)
    assert complaint in capsys.readouterr().err


def test_a_file_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv has no columns lower, upper, size"):
        list(arena.read(tmp_path, None))

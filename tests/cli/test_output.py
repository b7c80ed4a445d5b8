"""Results are aligned text or one JSON document; bars only for people who watch."""

from __future__ import annotations

import io
import json
import sys

import pytest

from dsopt.cli.output import Output, pairs, table


def test_columns_are_aligned_numbers_to_the_right() -> None:
    assert table(["layer", "bytes"], [("a", 1234567), ("features.0", None), ("b", 5)]) == (
        "layer           bytes\na           1,234,567\nfeatures.0\nb                   5\n"
    )
    assert table(["x"], []) == ""


def test_pairs_leave_out_what_is_not_known() -> None:
    assert pairs([("a", 1), ("long name", [1, "n"]), ("b", None), ("c", "")]) == "a          1\nlong name  [1, n]\n"


def test_json_has_no_numbers_that_are_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output("bench", json=True).result({"x": float("inf"), "y": [float("nan"), 1.5], "z": (1, None)}, "text")
    assert json.loads(capsys.readouterr().out) == {
        "command": "bench", "schema": 1, "x": "inf", "y": ["nan", 1.5], "z": [1, None],
    }  # fmt: skip


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _drawn(monkeypatch: pytest.MonkeyPatch, output: Output, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with output.bars() as progress:
        progress(0, 2, "folding")
        progress(1, 2, "folding")
        progress(0, 1, "checking")
        progress(1, 1, "checking")
    return stream.getvalue()


def test_bars_are_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "checking" in _drawn(monkeypatch, Output("compile"), _Terminal())
    assert _drawn(monkeypatch, Output("compile"), io.StringIO()) == ""
    assert _drawn(monkeypatch, Output("compile", quiet=True), _Terminal()) == ""


def test_ci_and_no_color_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CI", "1")
    assert _drawn(monkeypatch, Output("compile"), _Terminal()) == ""
    monkeypatch.delenv("CI")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in _drawn(monkeypatch, Output("compile"), _Terminal())


def test_verbose_says_each_step_once_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _drawn(monkeypatch, Output("compile", verbose=True), io.StringIO()) == "dsopt: folding\ndsopt: checking\n"

"""The page: well formed, without anything that runs or loads, with bars where the counts are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.report.entries import read_values
from dsopt.report.histogram import histogram
from dsopt.report.markup import clean, percent, plain
from dsopt.report.page import page
from tests.report.test_entries import ACCURACY, MANIFEST, VALUE, WEIGHT

_VOID = {"meta"}


class Nesting(HTMLParser):
    """Checks that every element is closed in order; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag != "br":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _nesting(text: str) -> Nesting:
    return Nesting(text.replace("<br>", "<br/>"))


def test_the_page_says_what_was_measured() -> None:
    found = _nesting(page("net", MANIFEST))
    words = " ".join(found.words.split())
    for part in (
        "net for cpu", "Accuracy gate passed. accuracy 91 against 91.5 in float: a drop of 0.5 points, and 1 are allowed.",
        "1 of 1 operators have a higher precision", "4,321", "1,234", "%gru: why", "%conv: dead", "16-bit results", "25 %", "31.5",
        "100 samples", "by here",
    ):  # fmt: skip
        assert part in words, part
    assert found.tags.count("svg") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"passes": False, "drop": 3.0}, "Accuracy gate missed."),
        ({"max_drop": None}, "Accuracy. accuracy 91 against 91.5 in float: a drop of 0.5 points. Judged"),
        ({"drop": None, "max_drop": None}, "a drop of infinite"),
        ({"held_out": False}, "800 samples, some of which it was calibrated on"),
    ],
)
def test_the_verdict_is_in_words(change: dict[str, Any], words: str) -> None:
    text = page("net", MANIFEST | {"accuracy": ACCURACY | change})
    assert words in " ".join(_nesting(text).words.split())


@given(text=st.text(max_size=60))
def test_no_text_of_a_manifest_becomes_markup_or_is_lost(text: str) -> None:
    plain_page, layer = _nesting(page("net", MANIFEST)), f"a{text}z"
    values = [VALUE | {"layer": layer, "op": layer}]
    found = _nesting(page("net", MANIFEST | {"quantization": values}))
    assert set(found.tags) <= set(plain_page.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in plain_page.attributes}
    assert clean(layer) in found.words


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "\ud800", "\x00", "\u2066x"])
def test_characters_that_deceive_or_cannot_be_written_are_replaced(text: str) -> None:
    written = page(text, MANIFEST | {"quantization": [VALUE | {"layer": text}]}).encode()
    assert b"\x1b" not in written
    assert not {"\u202e", "\u2066", "\x00"} & set(written.decode())


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = page("net", MANIFEST)
    assert "default-src &#x27;none&#x27;" in text
    assert not re.search(r"<(script|iframe|object|link|img)|javascript:|url\(|@import|https?:", text)
    assert "prefers-color-scheme: dark" in text


def test_bars_stand_where_the_counts_are_and_tell_what_is_cut() -> None:
    """Four bins over 0 to 200 and a grid to 127.5: bins of 50, of which the middles 25 and 75 are held and 175 is not."""
    drawn = histogram(read_values({"quantization": [VALUE]})[0])
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    assert [kind for kind, *_ in bars] == ["bar", "bar", "beyond"]  # an empty bin has no bar
    heights = [float(height) for *_, height in bars]
    assert heights[1] / heights[0] == pytest.approx(2 / 3, rel=0.01)  # square roots of 4 and 9
    lefts = [float(x) for _, x, *_ in bars]
    assert lefts[1] - lefts[0] == pytest.approx((lefts[2] - lefts[0]) / 3, rel=0.01)
    grid = re.search(r'class="grid" d="M([\d.]+) \d+v6H([\d.]+)', drawn)
    assert grid is not None
    assert float(grid[2]) - float(grid[1]) == pytest.approx(344 * 127.5 / 200, abs=0.2)


def test_a_value_without_width_and_one_without_counts_are_drawn_or_left_out() -> None:
    flat = VALUE | {"observed": [0, 0], "grid": [0, 0], "histogram": [7]}
    assert "nan" not in histogram(read_values({"quantization": [flat]})[0])
    assert histogram(read_values({"quantization": [WEIGHT | {"histogram": [0, 0]}]})[0]) == ""


def test_a_small_share_never_looks_like_nothing() -> None:
    assert [percent(share) for share in (None, 0.0, 1e-9, 0.00025, 1.0)] == [
        None,
        "0 %",
        "< 0.001 %",
        "0.025 %",
        "100 %",
    ]
    assert (plain(1234567), plain(None), plain(True), plain(0.123456)) == ("1,234,567", "–", "yes", "0.1235")

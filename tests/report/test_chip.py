"""What the page says of a program on a chip: rows, bars and rectangles are where the manifest puts them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import ArtifactError
from dsopt.report.chip import Buffer, read_chip
from dsopt.report.memory_map import memory_map, shapes
from dsopt.report.page import page
from tests.report.test_entries import ANYTHING
from tests.report.test_page import _nesting

ROW: dict[str, Any] = {
    "node": "conv", "function": "stem_conv", "layer": "stem", "op": "dsopt.q_conv.default", "source": "", "shape": [1, 8, 4, 4],
    "multiply_adds": 9216, "weight_bytes": 160, "kernel": "matrix: 4 pixels", "why_generic": "", "is_float": False, "live_bytes": 300,
    "code_bytes": 548, "instructions": 4000, "estimated_cycles": 5000,
}  # fmt: skip
LAST = ROW | {
    "function": "head_linear", "layer": "head", "kernel": "generic loops", "why_generic": "an odd number of channels",
    "live_bytes": 150, "instructions": 1000, "estimated_cycles": 1500,
}  # fmt: skip
BUFFERS = [
    {"name": "input", "offset": 0, "bytes": 200, "first": 0, "last": 0, "shape": [200], "layer": ""},
    {"name": "stem_conv", "offset": 200, "bytes": 100, "first": 0, "last": 2, "shape": [100], "layer": "stem"},
    {"name": "head_linear", "offset": 0, "bytes": 50, "first": 1, "last": 2, "shape": [50], "layer": "head"},
]
CHIP: dict[str, Any] = {
    "target": "mcu:cortex-m4", "inputs": [], "outputs": [], "files": {}, "layers": [ROW, ROW | {"function": "stem_pool"}, LAST],
    "memory": {"arena_bytes": 300, "ram_bytes": 380, "flash_bytes": 900, "instructions": 9000, "buffers": BUFFERS},
    "limits": {"ram_bytes": 480, "flash_bytes": 1000},
}  # fmt: skip
SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def figure(text: str, words: str) -> ET.Element:
    """Return the drawing whose label contains these words."""
    return next(root for root in map(ET.fromstring, SVG.findall(text)) if words in root.attrib["aria-label"])


def box(rect: ET.Element) -> tuple[float, float, float, float]:
    """Return left, top, width and height."""
    left, top, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
    return left, top, width, height


def by_title(root: ET.Element) -> dict[str, ET.Element]:
    """Return what has a title, by the first word of it."""
    return {title.text.split(":")[0]: each for each in root for title in each if title.tag == "title" and title.text}


def test_each_rectangle_is_where_the_plan_puts_the_buffer() -> None:
    root = figure(page("net", CHIP), "arena over time")
    (arena,) = (box(each) for each in root if each.get("class") == "arena")
    column, a_byte = arena[2] / 3, arena[3] / 300
    found = by_title(root)
    for buffer in BUFFERS:
        left, top, width, height = box(found[str(buffer["name"])])
        offset, count, first, last = (buffer[key] for key in ("offset", "bytes", "first", "last"))
        assert isinstance(offset, int) and isinstance(count, int) and isinstance(first, int) and isinstance(last, int)
        assert left == pytest.approx(arena[0] + first * column, abs=0.02)
        assert width == pytest.approx((last - first + 1) * column, abs=0.02)
        assert height == pytest.approx(count * a_byte, abs=0.02)
        assert top == pytest.approx(arena[1] + arena[3] - (offset + count) * a_byte, abs=0.02)
    assert found["stem_conv"][0].text == "stem_conv: 100 bytes at 200, layers 0 to 2 (stem)"
    (limit,) = (each for each in root if each.get("class") == "limit")
    assert float(limit.attrib["y1"]) == pytest.approx(arena[1] + arena[3] - 400 * a_byte, abs=0.02)  # 480 - (380 - 300)


def test_bars_are_as_high_as_what_layers_cost() -> None:
    text = page("net", CHIP)
    for words, ratio in (("Instructions of each", 4), ("Bytes of values", 2)):
        found = by_title(figure(text, words))
        first, last = box(found["0 stem_conv (stem)"]), box(found["2 head_linear (head)"])
        assert first[3] / last[3] == pytest.approx(ratio, rel=0.01)
        assert first[1] + first[3] == pytest.approx(last[1] + last[3], abs=0.02)
        assert first[0] < last[0]


def test_the_table_has_every_layer_and_says_what_is_an_estimate() -> None:
    words = " ".join(_nesting(page("net", CHIP)).words.split())
    for part in (
        "cycles (estimate)", "stem_conv", "matrix: 4 pixels", "an odd number of channels", "9,216", "44.4 %", "5,000", "548",
        "Cycles are an estimate", "380 of 480 bytes, 79.2 %", "900 of 1,000 bytes, 90 %",
    ):  # fmt: skip
        assert part in words, part
    assert "patches" not in words
    assert "instructions 9,000 of" not in words  # no limit was set


def test_every_way_to_write_a_layer_has_a_row_and_the_chosen_one_is_marked() -> None:
    ways = [
        {"kernel": "short turns", "instructions": 4321, "bytes": 654, "chosen": False},
        {"kernel": "long turns", "instructions": 4000, "bytes": 987, "chosen": True},
    ]
    rows = [CHIP["layers"][0] | {"candidates": ways}, *CHIP["layers"][1:]]
    words = " ".join(re.sub("<[^>]*>", " ", page("net", CHIP | {"layers": rows})).split())
    assert "stem short turns 4,321 654 0 stem_conv stem long turns 4,000 987 chosen" in words
    assert "Kernels that were measured" not in _nesting(page("net", CHIP)).words
    with pytest.raises(ArtifactError, match="chosen"):
        page("net", CHIP | {"layers": [ROW | {"candidates": [ways[0] | {"chosen": 1}]}]})


def test_what_was_not_counted_is_left_out() -> None:
    rows = [row | {"instructions": None, "estimated_cycles": None} for row in CHIP["layers"]]
    text = page("net", CHIP | {"layers": rows, "limits": {}})
    assert "Instructions of each" not in text
    assert "estimate from them" not in text
    assert 'class="limit"' not in text


def test_a_far_limit_does_not_flatten_the_map() -> None:
    root = figure(page("net", CHIP | {"limits": {"ram_bytes": 640 << 10}}), "arena over time")
    assert not [each for each in root if each.get("class") == "limit"]


def test_patches_are_told() -> None:
    patches = {"until": "relu_4", "rows": 3, "columns": 2, "multiply_adds": 123456}
    words = " ".join(_nesting(page("net", CHIP | {"patches": patches})).words.split())
    assert "The layers up to relu_4 run in 6 patches, in 3 rows and 2 columns" in words
    named = " ".join(_nesting(page("net", CHIP | {"patches": {**patches, "layer": "blocks.4"}})).words.split())
    assert "The layers up to blocks.4 run in 6 patches" in named
    assert "123,456 multiply-adds" in words


def test_the_page_of_a_chip_is_well_formed_and_repeats_to_the_byte() -> None:
    text = page("net", CHIP)
    assert text == page("net", CHIP)
    assert _nesting(text).tags.count("svg") == 4
    assert not re.search(r"<(script|iframe|object|link|img)|javascript:|url\(|@import|https?:", text)
    assert not re.search(r"(fill|stroke)=", text)  # colours come from the style sheet, for light and dark


def test_other_targets_have_no_such_sections() -> None:
    assert read_chip({"target": "cpu", "layers": [{"name": 3}]}) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"offset": 250}, "'buffers' .* 'stem_conv' leaves the arena"),
        ({"last": 3}, "'buffers' .* lives when no layer runs"),
        ({"first": 2, "last": 1}, "'buffers' .* lives when no layer runs"),
        ({"bytes": None}, "'bytes' .* no whole number"),
        ({"name": 3}, "'name' .* no text"),
    ],
)
def test_a_malformed_buffer_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ArtifactError, match=f"DS0804: .*{why}"):
        page("net", CHIP | {"memory": CHIP["memory"] | {"buffers": [BUFFERS[1] | change]}})


@given(key=st.sampled_from(["layers", "memory", "limits", "patches"]), part=ANYTHING)
def test_any_record_becomes_a_page_or_a_sentence(key: str, part: Any) -> None:
    try:
        text = page("net", CHIP | {key: part})
    except ArtifactError:
        return
    assert text.encode().endswith(b"</html>\n")


@given(key=st.sampled_from(sorted(ROW)), part=ANYTHING)
def test_any_row_becomes_a_page_or_a_sentence(key: str, part: Any) -> None:
    try:
        text = page("net", CHIP | {"layers": [ROW | {key: part}, ROW, LAST]})
    except ArtifactError:
        return
    assert text.encode().endswith(b"</html>\n")


BUFFER = st.builds(
    lambda offset, count, first, more: Buffer(f"b{offset}", "", offset, count, first, first + more),
    st.integers(0, 5000), st.integers(1, 500), st.integers(0, 200), st.integers(0, 40),
)  # fmt: skip


@given(st.lists(BUFFER, max_size=60), st.integers(1, 20))
def test_many_buffers_are_joined_and_none_is_lost(buffers: list[Buffer], most: int) -> None:
    found = shapes(buffers, most)
    assert len(found) <= max(most, 1) or not buffers
    assert sorted(each.name for shape in found for each in shape.buffers) == sorted(each.name for each in buffers)
    for shape in found:
        assert shape.offset == min(each.offset for each in shape.buffers)
        assert shape.end == max(each.offset + each.bytes for each in shape.buffers)
        assert all(shape.first <= each.first and each.last <= shape.last for each in shape.buffers)


def test_buffers_that_touch_and_live_together_are_drawn_as_one_without_loss() -> None:
    many = [Buffer(f"b{n}", "", 8 * n, 8, 2 * (n // 50), 2 * (n // 50) + 1) for n in range(2000)]
    found = shapes(many, 100)
    assert len(found) == 40
    assert [(shape.end - shape.offset, shape.last - shape.first) for shape in found] == [(400, 1)] * 40
    assert all(one.last < other.first for one, other in pairwise(found))


def test_a_thousand_buffers_are_drawn_each_and_more_are_not() -> None:
    def drawn(count: int) -> int:
        buffers = [
            {"name": f"b{n}", "offset": 3 * n % 2000, "bytes": 2, "first": n % 500, "last": n % 500 + 20, "layer": ""}
            for n in range(count)
        ]
        manifest = {
            "target": "mcu:cortex-m4",
            "layers": [ROW] * 600,
            "memory": {"arena_bytes": 3000, "buffers": buffers},
        }
        found = read_chip(manifest)
        assert found is not None
        return memory_map(found).count('class="buffer')

    assert drawn(1000) == 1000
    assert 100 < drawn(4000) <= 1000

"""Padding: constant, reflecting, repeating the edge, going round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter, Extent
from dsopt.backends.cpu.registry import RefusalError, converter

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@converter("aten.pad.default")
def convert_pad(
    cx: Emitter, x: fx.Node, pad: Sequence[Any], mode: str = "constant", value: float | None = None
) -> Value:
    """Write padding in any mode."""
    return padded(cx, x, pad, _MODES[mode], value)


@converter("aten.constant_pad_nd.default")
def convert_constant_pad(cx: Emitter, x: fx.Node, pad: Sequence[Any], value: Any = 0) -> Value:
    """Write padding with a number."""
    return padded(cx, x, pad, "constant", value)


@converter("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def convert_reflection_pad(cx: Emitter, x: fx.Node, pad: Sequence[Any]) -> Value:
    """Write padding that mirrors the inside."""
    return padded(cx, x, pad, "reflect", None)


@converter("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def convert_replication_pad(cx: Emitter, x: fx.Node, pad: Sequence[Any]) -> Value:
    """Write padding that repeats the edge."""
    return padded(cx, x, pad, "edge", None)


@converter("aten._pad_circular.default")
def convert_circular_pad(cx: Emitter, x: fx.Node, pad: Sequence[Any]) -> Value:
    """Write padding that goes round."""
    return padded(cx, x, pad, "wrap", None)


def padded(cx: Emitter, x: fx.Node, pad: Sequence[Any], mode: str, number: Any) -> Value:
    """Append Pad. torch counts from the last axis, both ends of each; negative padding cuts off."""
    rank, count = cx.rank(x), len(pad) // 2
    pairs: list[tuple[Extent, Extent]] = [(0, 0)] * (rank - count)
    pairs += [(cx.size(pad[2 * i]), cx.size(pad[2 * i + 1])) for i in reversed(range(count))]
    if all(each == (0, 0) for each in pairs):
        return cx.value(x)
    fill = None
    if mode == "constant" and number not in (None, 0):
        fill = cx.operand(number, cx.dtype)
    value = cx.value(x)
    if any(isinstance(end, int) and end < 0 for pair in pairs for end in pair):
        value, pairs = _cropped(cx, value, pairs)
        if all(each == (0, 0) for each in pairs):
            return value
    amounts = cx.sizes([first for first, _ in pairs] + [last for _, last in pairs])
    return cx.op("Pad", value, amounts, fill, mode=None if mode == "constant" else mode)


def _cropped(
    cx: Emitter, value: Value, pairs: list[tuple[Extent, Extent]]
) -> tuple[Value, list[tuple[Extent, Extent]]]:
    """Cut off what negative amounts take away; return the rest of the amounts."""
    rest: list[tuple[Extent, Extent]] = []
    for axis, (first, last) in enumerate(pairs):
        if not isinstance(first, int) or not isinstance(last, int):
            raise RefusalError("negative padding beside padding that varies", "cut and pad in two steps")
        if first < 0 or last < 0:
            value = cx.slice(value, axis, max(-first, 0), last if last < 0 else 2**63 - 1)
        rest.append((max(first, 0), max(last, 0)))
    return value, rest

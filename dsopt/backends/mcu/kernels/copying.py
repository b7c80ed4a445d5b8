"""Copies of int8 values that lie one behind the other, and views where not even that is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsopt.backends.mcu.kernels.assembly import SUPPORT, micro_kernel
from dsopt.backends.tir.ops.relayout import merged
from dsopt.backends.tir.program import ITEM_BYTES, Buffer, MicroKernel
from dsopt.backends.tir.registry import Context, Layout
from dsopt.backends.tir.tvm_adapter import Expr, address

COPY = "copy"
"""The choice of kernels that copy bytes in a row from the first to the last."""
_LEAST = 8
"""Bytes from which on a call is worth it."""

_REGISTERS = ("r3", "r4", "r5", "r12")
_WORDS = [*(f"ldr {each}, [r1], #4" for each in _REGISTERS), *(f"str {each}, [r0], #4" for each in _REGISTERS)]

COPY_WORDS = micro_kernel(
    "dsopt_copy_words",
    "int8_t *target, const int8_t *source, int32_t count",
    """    for (int32_t i = 0; i < count; ++i) {
        target[i] = source[i];
    }""",
    [
        "push {r4, r5}",
        "b 2f",
        "1:",
        *_WORDS,
        "2:",
        "subs r2, #16",
        "bge 1b",
        "adds r2, #16",
        "beq 4f",
        "3:",
        "ldrb r3, [r1], #1",
        "strb r3, [r0], #1",
        "subs r2, #1",
        "bne 3b",
        "4:",
        "pop {r4, r5}",
        "bx lr",
    ],
)
"""Bytes from the first to the last, so that they may go to a place before where they are."""


def part_of(context: Context, x: Buffer, layout: Layout) -> Buffer | None:
    """Return the bytes of a part of `x` where they are; None if they are scattered, or not where kernels can load words."""
    size = ITEM_BYTES[x.dtype]
    _, strides = merged(layout.shape, layout.strides)
    offset = layout.offset * size
    if strides not in ((1,), (0,)) or offset % 4 or context.root(x).kind == "weight":
        return None
    return context.session.add_buffer(f"{x.name}_part", context.shape, x.dtype, x.name, offset=offset)


def copied(copy: MicroKernel, context: Context, x: Buffer, layout: Layout) -> Buffer | None:
    """Copy what lies one behind the other in one call each. layout: of `x`; None for single bytes, and for other types than int8."""
    extents, strides = merged(layout.shape, layout.strides)
    if x.dtype != "int8" or strides[-1] != 1 or extents[-1] < _LEAST or context.root(x).kind == "weight":
        return None
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(extents, strides, strict=True))
    part = context.session.add_buffer(f"{x.name}_from", (span,), x.dtype, x.name, offset=layout.offset)
    result = context.result()
    with context.kernel() as k:
        k.choice = "copies of rows"
        k.use(SUPPORT)
        source, y = k.read("x", part), k.write("y", result, (math.prod(extents[:-1]), extents[-1]))
        with k.grid(**{f"i{n}": extent for n, extent in enumerate(extents[:-1] or (1,))}) as index:
            place: Expr = 0
            row: Expr = 0
            for at, stride, extent in zip(index, strides[:-1], extents[:-1], strict=False):
                place, row = place + at * stride, row * extent + at
            k.call(copy, address(y, row, 0), address(source, place), extents[-1])
    return result


def joined_in_place(copy: MicroKernel, context: Context, parts: Sequence[Buffer]) -> Buffer:
    """Put parts one behind the other: they are computed where they belong if nothing else reads them, and copied there if not.

    Copies come before what is computed in place, so that they may lie over what they are copied from.
    """
    result = context.result()
    offset = copies = 0
    for number, part in enumerate(parts):
        if not context.session.adopt(part, result, offset):
            _copy_part(copy, context, number, part, result, offset)
            copies += 1
        offset += part.size_bytes
    context.session.move_ahead(copies, result)
    return result


def _copy_part(copy: MicroKernel, context: Context, number: int, part: Buffer, result: Buffer, offset: int) -> None:
    target = context.session.add_buffer(f"{result.name}_{number}", part.shape, part.dtype, result.name, offset=offset)
    with context.kernel(str(number)) as k:
        x, y = k.read("x", part, (part.elements,)), k.write("y", target, (part.elements,))
        if part.dtype == "int8" and part.elements >= _LEAST:
            k.choice = COPY
            with k.grid(i=1):
                k.use(SUPPORT)
                k.call(copy, address(y, 0), address(x, 0), part.elements)
            k.may_lie_over(target, part, 0)
        else:
            with k.grid(i=part.elements) as (i,):
                k.store(y, x[i], i)

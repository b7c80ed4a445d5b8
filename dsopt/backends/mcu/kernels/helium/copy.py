"""Copy rows of an image to where they have a border and columns lie one behind the other."""

from __future__ import annotations

from dsopt.backends.mcu.kernels.assembly import MOST_DISTANCE, MOST_OFFSET, MVE, micro_kernel
from dsopt.backends.mcu.kernels.helium.lanes import BYTES
from dsopt.backends.tir.program import MicroKernel
from dsopt.backends.tir.registry import UnsuitedError

COPY = micro_kernel(
    "dsopt_copy",
    "int8_t *target, const int8_t *source, int32_t count",
    """    for (int32_t i = 0; i < count; ++i) {
        target[i] = source[i];
    }""",
    [
        "push {r7, lr}",
        "dlstp.8 lr, r2",
        "1:",
        "vldrb.u8 q0, [r1], #16",
        "vstrb.8 q0, [r0], #16",
        "letp lr, 1b",
        "pop {r7, pc}",
    ],
    MVE,
)
"""Bytes, at least one."""

FILL = micro_kernel(
    "dsopt_fill_bytes",
    "int8_t *target, int32_t value, int32_t count",
    """    for (int32_t i = 0; i < count; ++i) {
        target[i] = (int8_t)value;
    }""",
    [
        "push {r7, lr}",
        "vdup.8 q0, r1",
        "dlstp.8 lr, r2",
        "1:",
        "vstrb.8 q0, [r0], #16",
        "letp lr, 1b",
        "pop {r7, pc}",
    ],
    MVE,
)
"""The zero point outside of an image, at least one byte."""


FILL_COLUMNS = MicroKernel(
    "dsopt_fill_columns",
    """/* One row of a block of columns at a value. */
DSOPT_UNUSED static void dsopt_fill_columns(int8_t *target, int32_t value, int32_t size, int32_t step, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        for (int32_t c = 0; c < size; ++c) {
            target[i * step + c] = (int8_t)value;
        }
    }
}
""",
)


def spread_kernel(source_step: int, target_step: int) -> MicroKernel:
    """Return the function that copies `count` single bytes between places that are a fixed distance apart."""
    if 8 * max(source_step, target_step) > MOST_DISTANCE:
        raise UnsuitedError(f"its rows have {target_step} values of a column")
    body = f"""    for (int32_t i = 0; i < count; ++i) {{
        target[i * {target_step}] = source[i * {source_step}];
    }}"""
    gathers = source_step > 1
    lines = ["push {r4, lr}", "mov r4, r2", "movs r2, #0", "vidup.u16 q2, r2, #1", f"movw r3, #{target_step}"]
    lines += ["vmul.i16 q1, q2, r3", *([f"movw r3, #{source_step}", "vmul.i16 q2, q2, r3"] if gathers else [])]
    lines += ["dlstp.16 lr, r4", "1:", "vldrb.u16 q0, [r1, q2]" if gathers else "vldrb.u16 q0, [r1], #8"]
    lines += ["vstrb.16 q0, [r0, q1]", f"addw r0, r0, #{8 * target_step}"]
    lines += [*([f"addw r1, r1, #{8 * source_step}"] if gathers else []), "letp lr, 1b", "pop {r4, pc}"]
    name = f"dsopt_spread_{source_step}_{target_step}"
    return micro_kernel(name, "int8_t *target, const int8_t *source, int32_t count", body, lines, MVE)


def blocks_kernel(size: int, target_step: int) -> MicroKernel:
    """Return the function that copies `count` blocks of `size` bytes, one behind the other, to places `target_step` apart."""
    whole, tail = divmod(size, BYTES)
    forward = target_step - whole * BYTES
    if forward > MOST_DISTANCE:
        raise UnsuitedError(f"its rows have {target_step} values of a column")
    body = f"""    for (int32_t i = 0; i < count; ++i) {{
        for (int32_t c = 0; c < {size}; ++c) {{
            target[i * {target_step} + c] = source[i * {size} + c];
        }}
    }}"""
    moves = ["vldrb.u8 q0, [r1], #16", "vstrb.8 q0, [r0], #16"] * whole
    if tail:
        moves += ["vpstt", "vldrbt.u8 q0, [r1]", "vstrbt.8 q0, [r0]", f"adds r1, #{tail}", f"addw r0, r0, #{forward}"]
    elif BYTES + forward <= MOST_OFFSET:
        moves[-1] = f"vstrb.8 q0, [r0], #{BYTES + forward}"
    elif forward:
        moves += [f"addw r0, r0, #{forward}"]
    start = [f"movs r3, #{tail}", "vctp.8 r3"] if tail else []
    lines = ["push {r7, lr}", *start, "dls lr, r2", "1:", *moves, "le lr, 1b", "pop {r7, pc}"]
    name = f"dsopt_blocks_{size}_{target_step}"
    return micro_kernel(name, "int8_t *target, const int8_t *source, int32_t count", body, lines, MVE)

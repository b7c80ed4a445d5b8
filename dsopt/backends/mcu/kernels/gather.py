"""Copy inputs of one pixel into the columns that `matrix` reads: int8 to int16, two pairs for every four channels.

`sxtb16` makes a pair of the first and third of four bytes, and another of the second and fourth: this is the order (0, 2, 1, 3) in
which columns and weights hold each four inputs.
"""

from __future__ import annotations

import zlib

import numpy as np

from dsopt.backends.mcu.kernels.assembly import micro_kernel
from dsopt.backends.mcu.kernels.stream import Array
from dsopt.backends.tir.program import MicroKernel

ORDER = (0, 2, 1, 3)

_PORTABLE = """    for (int32_t i = 0; i < quads; ++i) {
        columns[16 * i] = x[4 * i];
        columns[16 * i + 1] = x[4 * i + 2];
        columns[16 * i + 8] = x[4 * i + 1];
        columns[16 * i + 9] = x[4 * i + 3];
    }"""

_PARAMETERS = "int16_t *columns, const int8_t *x, int32_t quads"
_QUAD = [
    "ldr r3, [r1], #4",
    "sxtb16 r12, r3",
    "sxtb16 r3, r3, ror #8",
    "str r12, [r0], #16",
    "str r3, [r0], #16",
]

_PIXEL = [
    "ldr r3, [r1], #4",
    "sxtb16 r4, r3",
    "sxtb16 r3, r3, ror #8",
    "str r4, [r12], #16",
    "str r3, [r12], #16",
]


def pixels_kernel(quads: int) -> MicroKernel:
    """Return the function that copies up to four pixels of 4 * quads values, one behind the other, each into its column."""
    turn = _turn(quads)
    body = f"""    for (int32_t p = 0; p < pixels; ++p) {{
        for (int32_t i = 0; i < {quads}; ++i) {{
            int16_t *const quad = columns + 16 * i + 2 * p;
            const int8_t *const from = x + {4 * quads} * p + 4 * i;
            quad[0] = from[0];
            quad[1] = from[2];
            quad[8] = from[1];
            quad[9] = from[3];
        }}
    }}"""
    loop = [f"movw r5, #{quads // turn}", "1:", *_PIXEL * turn, "subs r5, #1", "bne 1b"]
    lines = [
        "push {r4, r5}",
        "2:",
        "mov r12, r0",
        *(loop if quads > turn else _PIXEL * turn),
        "adds r0, #4",
        "subs r2, #1",
    ]
    name = f"dsopt_gather_pixels_{quads}"
    parameters = "int16_t *columns, const int8_t *x, int32_t pixels"
    return micro_kernel(name, parameters, body, [*lines, "bne 2b", "pop {r4, r5}", "bx lr"])


def _turn(quads: int) -> int:
    """Return how many quads a turn of the loop takes."""
    return next(turn for turn in (8, 4, 2, 1) if quads % turn == 0)


FILL = MicroKernel(
    "dsopt_fill",
    """/* Columns of a pixel outside of the image: its zero point. */
DSOPT_UNUSED static void dsopt_fill(int16_t *columns, int32_t value, int32_t quads)
{
    for (int32_t i = 0; i < quads; ++i) {
        columns[16 * i] = (int16_t)value;
        columns[16 * i + 1] = (int16_t)value;
        columns[16 * i + 8] = (int16_t)value;
        columns[16 * i + 9] = (int16_t)value;
    }
}
""",
)


def gather_kernel(quads: int) -> MicroKernel:
    """Return the function for rows of 4 * quads values; `quads` is also its last argument."""
    turn = 4 if quads % 4 == 0 else 2 if quads % 2 == 0 else 1
    lines = ["1:", f"subs r2, #{turn}", *_QUAD * turn, "bne 1b", "bx lr"]
    return micro_kernel(f"dsopt_gather_{turn}", _PARAMETERS, _PORTABLE, lines)


def quad_order(count: int) -> Array:
    """Return where the inputs of a row, a multiple of 4, come to lie in its columns: position -> input."""
    order: Array = (4 * np.arange(count // 4)[:, None] + np.array(ORDER)).reshape(-1)
    return order


def window_kernel(offsets: list[int]) -> MicroKernel:
    """Return the function that copies the whole window of a pixel: input `offsets[k]` becomes value k. For few, scattered inputs."""
    moves = [f"    columns[{k // 2 * 8 + k % 2}] = x[{offset}];" for k, offset in enumerate(offsets)]
    body = "\n".join(moves)
    name = f"dsopt_window_{len(offsets)}_{zlib.crc32(body.encode()):08x}"
    return MicroKernel(name, f"DSOPT_PORTABLE void {name}(int16_t *columns, const int8_t *x)\n{{\n{body}\n}}\n")

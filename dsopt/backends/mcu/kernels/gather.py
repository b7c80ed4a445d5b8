"""Copy inputs of one pixel into the columns that `matrix` reads: int8 to int16, two pairs for every four channels.

`sxtb16` makes a pair of the first and third of four bytes, and another of the second and fourth: this is the order (0, 2, 1, 3) in
which columns and weights hold each four inputs.
"""

from __future__ import annotations

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


def window_kernel(name: str, offsets: list[int]) -> MicroKernel:
    """Return the function that copies the whole window of a pixel: input `offsets[k]` becomes value k. For few, scattered inputs."""
    moves = [f"    columns[{k // 2 * 8 + k % 2}] = x[{offset}];" for k, offset in enumerate(offsets)]
    body = "\n".join(moves)
    return MicroKernel(name, f"static void {name}(int16_t *columns, const int8_t *x)\n{{\n{body}\n}}\n")

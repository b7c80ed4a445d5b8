"""Depthwise convolution, channel by channel: its plane is widened to int16 with a border of the zero point, then runs through 3x3
windows two results at a time. The results go back over the channel that they came from, so that the layer needs no second image.

With (x0, x1) and (x2, x3) in two registers and stride 1, the results are (x0, x1).(w0, w1) + x2 w2 and x1 w0 + (x2, x3).(w1, w2):
five instructions for six products of a row, the load included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsopt.backends.mcu.kernels.assembly import micro_kernel, requantize_lines, unpack_scale
from dsopt.backends.mcu.kernels.image import Image
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, word_of_bytes, words
from dsopt.backends.tir.program import MicroKernel

_MOST_CHANNELS = 2047
"""So that two results can be reached with offsets of 12 bits."""


@dataclass(frozen=True)
class Planes(Image):
    """How a depthwise kernel moves over one channel: N is the distance of two results, C that of two pixels."""

    @property
    def pitch(self) -> int:
        """Return the values of a row of the plane, an even number."""
        reach = (self.out[1] - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        return -(-max(self.padding[1] + self.size[1], reach) // 2) * 2

    @property
    def rows(self) -> int:
        """Return the rows of the plane, with its border."""
        reach = (self.out[0] - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        return max(self.padding[0] + self.size[0], reach)

    @property
    def elements(self) -> int:
        """Return the values of the plane; loads of pairs may reach a little beyond its end."""
        return self.rows * self.pitch + 4

    @property
    def row_words(self) -> int:
        """Return the words of a row of weights."""
        return -(-self.kernel[1] // 4)

    @property
    def is_fast(self) -> bool:
        """Return whether there is an assembly body."""
        square = self.kernel == (3, 3) and self.dilation == (1, 1) and self.stride in ((1, 1), (2, 2))
        return square and self.N <= _MOST_CHANNELS and self.pitch * 2 * 2 + 8 <= 1020

    @property
    def tag(self) -> str:
        """Return what tells this geometry from others, for names."""
        pairs = (self.size, self.out, self.kernel, self.stride, self.padding, self.dilation)
        return "_".join([str(self.N), *("x".join(map(str, pair)) for pair in pairs)])


FILL_PLANE = MicroKernel(
    "dsopt_fill_plane",
    """/* A plane with its border at the zero point. */
DSOPT_UNUSED static void dsopt_fill_plane(int16_t *plane, int32_t value, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        plane[i] = (int16_t)value;
    }
}
""",
)


def plane_kernel(g: Planes) -> MicroKernel:
    """Return the function that widens one channel of an image with channels last into the inside of the plane."""
    (H, W), C = g.size, g.C
    body = f"""    for (int32_t i = 0; i < {H}; ++i) {{
        for (int32_t j = 0; j < {W}; ++j) {{
            plane[i * {g.pitch} + j] = x[(i * {W} + j) * {C}];
        }}
    }}"""
    turn = next((turn for turn in (8, 6, 5, 4, 3, 2) if W % turn == 0 and (turn - 1) * C <= 4095), 1)
    name = f"dsopt_plane_{H}x{W}x{C}_{g.pitch}"
    parameters = "int16_t *plane, const int8_t *x"
    moves: list[str] = []
    for p in range(turn):
        moves += [f"ldrsb r3, [r1, #{p * C}]", f"strh r3, [r0, #{2 * p}]"]
    step = turn * C
    forward = [f"add r1, r1, #{step}"] if step <= 4095 else [f"movw r3, #{step}", "add r1, r1, r3"]
    lines = ["push {r4}", f"movw r12, #{H}", "2:", f"movw r4, #{W // turn}", "1:", *moves, *forward, f"adds r0, #{2 * turn}",
             "subs r4, #1", "bne 1b", *([f"add r0, #{2 * (g.pitch - W)}"] if g.pitch > W else []), "subs r12, #1", "bne 2b",
             "pop {r4}", "bx lr"]  # fmt: skip
    return micro_kernel(name, parameters, body, lines)


def channel_kernel(g: Planes, store: Store) -> MicroKernel:
    """Return the function for one channel: its padded plane, its record (`depthwise_stream`), its first result."""
    name = f"dsopt_depthwise_{g.tag}_{store.tag}"
    parameters = "const int16_t *plane, const int32_t *record, int8_t *y"
    if g.is_fast:
        return micro_kernel(name, parameters, _portable(g, store), _assembly(g, store))
    return MicroKernel(name, f"DSOPT_PORTABLE void {name}({parameters})\n{{\n{_portable(g, store)}\n}}\n")


def depthwise_stream(weights: Array, layer: Weights) -> Array:
    """Return a record for each channel: its weights (kh, kw), each row filled up to words, its bias and its scale."""
    C = weights.shape[0]
    filled = np.pad(weights, ((0, 0), (0, 0), (0, -weights.shape[2] % 4)))
    packed = word_of_bytes(filled.reshape(C, -1, 4))
    return np.concatenate([packed, words(layer.bias)[:, None], words(layer.scale)[:, None]], 1)


def _portable(g: Planes, store: Store) -> str:
    (KH, KW), (OH, OW), words_of_row = g.kernel, g.out, g.row_words
    return f"""    const int32_t *const finish = record + {KH * words_of_row};
    int32_t weights[{KH * KW}];
    for (int32_t k = 0; k < {KH * KW}; ++k) {{
        weights[k] = dsopt_byte(record[k / {KW} * {words_of_row} + k % {KW} / 4], (uint32_t)(k % {KW} % 4));
    }}
    for (int32_t i = 0; i < {OH}; ++i) {{
        for (int32_t j = 0; j < {OW}; ++j) {{
            const int16_t *const x = plane + i * {g.stride[0] * g.pitch} + j * {g.stride[1]};
            int32_t sum = finish[0];
            for (int32_t a = 0; a < {KH}; ++a) {{
                for (int32_t b = 0; b < {KW}; ++b) {{
                    sum += x[a * {g.dilation[0] * g.pitch} + b * {g.dilation[1]}] * weights[a * {KW} + b];
                }}
            }}
            y[(i * {OW} + j) * {g.N}] = (int8_t){store.portable("sum", "finish[1]")};
        }}
    }}"""


_WEIGHTS = (("r3", "r4"), ("r5", "r6"), ("r7", "r8"))
"""(w0, w1) and (w1, w2) of each row of weights."""


def _assembly(g: Planes, store: Store) -> list[str]:
    """r0: plane, r1: scale, r2: y, lr: bias; the stack holds what rounding adds, the shift, the end of the row, and rows left."""
    stride, C, (OH, OW) = g.stride[0], g.N, g.out
    step, pairs = 4 * stride, OW // 2
    lines = ["push {r4-r11, lr}", "sub sp, #16"]
    for first, second in _WEIGHTS:
        lines += [
            "ldr r11, [r1], #4",
            "sxtb16 r12, r11",
            "sxtb16 r11, r11, ror #8",
            f"pkhbt {first}, r12, r11, lsl #16",
            f"pkhbt {second}, r11, r12",
        ]
    lines += [
        "ldrd lr, r1, [r1]",
        *unpack_scale("r1", "r11", "r12", store.zero),
        "strd r11, r12, [sp]",
        f"movw r11, #{OH}",
    ]
    lines += ["2:", "str r11, [sp, #12]"]
    if pairs:
        lines += [f"add r12, r0, #{step * pairs}", "str r12, [sp, #8]", "1:"]
        for row, (first, second) in enumerate(_WEIGHTS):
            start = ("lr", "lr") if row == 0 else ("r9", "r10")
            lines += _pair(stride, 2 * g.pitch * row, first, second, start)
        lines += ["ldrd r11, r12, [sp]"]
        for value in ("r9", "r10"):
            lines += requantize_lines(value, "r1", "r11", "r12", store)
        lines += [
            f"strb r10, [r2, #{C}]",
            *_stored("r9", 2 * C),
            f"add r0, #{step}",
            "ldr r11, [sp, #8]",
            "cmp r0, r11",
            "bne 1b",
        ]
    if OW % 2:
        for row, (first, second) in enumerate(_WEIGHTS):
            lines += [
                f"ldrd r11, r12, [r0, #{2 * g.pitch * row}]",
                f"smlad r9, r11, {first}, {'lr' if row == 0 else 'r9'}",
                f"smlabt r9, r12, {second}, r9",
            ]
        lines += [
            "ldrd r11, r12, [sp]",
            *requantize_lines("r9", "r1", "r11", "r12", store),
            *_stored("r9", C),
        ]
    forward = 2 * g.pitch * stride - step * pairs
    lines += [f"add r0, #{forward}"] if forward else []
    return [*lines, "ldr r11, [sp, #12]", "subs r11, #1", "bne 2b", "add sp, #16", "pop {r4-r11, pc}"]


def _stored(value: str, step: int) -> list[str]:
    """Return the store of a byte at r2, which moves on by `step`."""
    return [f"strb {value}, [r2], #{step}"] if step <= 255 else [f"strb {value}, [r2]", f"add r2, r2, #{step}"]


def _pair(stride: int, offset: int, first: str, second: str, start: tuple[str, str]) -> list[str]:
    """Return one row of weights for two results, r9 and r10, which go on from the registers of `start`."""
    lines = [
        f"ldrd r11, r12, [r0, #{offset}]",
        f"smlad r9, r11, {first}, {start[0]}",
        f"smlabt r9, r12, {second}, r9",
    ]
    if stride == 1:
        return [*lines, f"smlatb r10, r11, {first}, {start[1]}", f"smlad r10, r12, {second}, r10"]
    return [
        *lines,
        f"smlad r10, r12, {first}, {start[1]}",
        f"ldrsh r11, [r0, #{offset + 8}]",
        f"smlabt r10, r11, {second}, r10",
    ]

"""Depthwise convolution of up to 4x4 taps, channel by channel.

The plane of a channel is gathered into lines of bytes with a border of the zero point. For each line of results, the lines that it
needs are interleaved into columns of four bytes (`vst4`), so that the window of a result is up to 16 bytes in a row: one load and one
`vmladav`. Lines run along the longer side of the result. The results go back over the channel that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsopt.backends.mcu.kernels.assembly import MOST_DISTANCE, MVE, micro_kernel, to_word
from dsopt.backends.mcu.kernels.helium.lanes import BYTES, LANES, clamp, scaled_alike
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, word_of_bytes, words
from dsopt.backends.tir.program import MicroKernel

TAPS = 4
"""The most taps in a direction, and the bytes of a column."""
_MOST_OFFSET = (1 << 16) - 1


@dataclass(frozen=True)
class Lines:
    """The geometry of one channel. Pairs are (across lines, along a line); the places of x and y are distances in bytes.

    turned: whether lines are columns of the image.
    """

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    x_step: tuple[int, int]
    y_step: tuple[int, int]
    turned: bool

    @property
    def columns(self) -> int:
        """Return the bytes of a line that results are made of."""
        return max(self.padding[1] + self.size[1], (self.out[1] - 1) * self.stride[1] + self.kernel[1])

    @property
    def rows(self) -> int:
        """Return the lines of the plane."""
        return max(self.padding[0] + self.size[0], (self.out[0] - 1) * self.stride[0] + self.kernel[0])

    @property
    def blocks(self) -> int:
        """Return the vectors of a line."""
        return -(-self.columns // BYTES)

    @property
    def plane_bytes(self) -> int:
        """Return the bytes of the plane; whole vectors are read of its last line."""
        return self.rows * self.columns + BYTES

    @property
    def strip_bytes(self) -> int:
        """Return the bytes of interleaved lines; a whole vector is read of the last window."""
        return self.blocks * BYTES * TAPS + BYTES

    @property
    def is_fast(self) -> bool:
        """Return whether the kernels here take it."""
        near = max(4 * self.y_step[1], 8 * self.x_step[1], self.columns * TAPS) <= MOST_DISTANCE
        return max(self.kernel) <= TAPS and 4 * self.stride[1] <= 127 and near and 7 * self.x_step[1] <= _MOST_OFFSET

    @property
    def tag(self) -> str:
        """Return what tells this geometry from others, for names."""
        pairs = (self.size, self.out, self.kernel, self.stride, self.padding, self.x_step, self.y_step)
        return "_".join("x".join(map(str, pair)) for pair in pairs)


def lines_of(
    channels: int, inputs: int, size: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int],
) -> Lines:  # fmt: skip
    """Return the lines along the longer side of the result, of an image with channels last. Pairs are (height, width)."""
    turned = out[0] > out[1]

    x_step, y_step = (size[1] * inputs, inputs), (out[1] * channels, channels)
    pairs = (size, out, kernel, stride, padding, x_step, y_step)
    a, b, c, d, e, f, h = ((pair[1], pair[0]) if turned else pair for pair in pairs)
    return Lines(a, b, c, d, e, f, h, turned)


def depthwise_stream(weights: Array, layer: Weights, lines: Lines) -> Array:
    """Return a record for each channel: its columns of weights, its bias and its scale. weights: (C, kh, kw)."""
    across = weights.transpose(0, 2, 1) if lines.turned else weights
    columns = np.pad(across.transpose(0, 2, 1), ((0, 0), (0, 0), (0, TAPS - lines.kernel[0])))
    return np.concatenate([word_of_bytes(columns), words(layer.bias)[:, None], words(layer.scale)[:, None]], 1)


def lines_kernel(g: Lines) -> MicroKernel:
    """Return the function that gathers one channel into the inside of its plane."""
    (rows, length), (far, near) = g.size, g.x_step
    body = f"""    for (int32_t i = 0; i < {rows}; ++i) {{
        for (int32_t j = 0; j < {length}; ++j) {{
            plane[i * {g.columns} + j] = x[i * {far} + j * {near}];
        }}
    }}"""
    moved = -(-length // 8) * 8
    forward = _moved("r0", g.columns - moved) + _moved("r1", far - moved * near)
    lines = [
        "push {r4, lr}",
        "movs r2, #0",
        "vidup.u16 q1, r2, #1",
        f"movw r3, #{near}",
        "vmul.i16 q1, q1, r3",
        f"movw r3, #{length}",
        f"movw r4, #{rows}",
        "2:",
        "dlstp.16 lr, r3",
        "1:",
        "vldrb.u16 q0, [r1, q1]",
        f"add r1, r1, #{8 * near}" if 8 * near < 256 else f"addw r1, r1, #{8 * near}",
        "vstrb.16 q0, [r0], #8",
        "letp lr, 1b",
        *forward,
        "subs r4, #1",
        "bne 2b",
        "pop {r4, pc}",
    ]
    name = f"dsopt_lines_{rows}x{length}_{g.columns}_{far}_{near}"
    return micro_kernel(name, "int8_t *plane, const int8_t *x", body, lines, MVE)


def _moved(register: str, distance: int) -> list[str]:
    """Return the instructions that add a number to a register, by way of r12 where it is large."""
    if distance == 0:
        return []
    operation = "add" if distance > 0 else "sub"
    if abs(distance) <= MOST_DISTANCE:
        return [f"{operation}w {register}, {register}, #{abs(distance)}"]
    return [*to_word("r12", abs(distance)), f"{operation} {register}, {register}, r12"]


def channel_kernel(g: Lines, store: Store) -> MicroKernel:
    """Return the function for one channel: its plane, its record, its first result, and room for interleaved lines."""
    name = f"dsopt_depth_{g.tag}_{store.tag}"
    parameters = "const int8_t *plane, const int32_t *record, int8_t *y, int8_t *strip"
    return micro_kernel(name, parameters, _portable(g, store), _assembly(g, store), MVE)


def _portable(g: Lines, store: Store) -> str:
    (KA, KB), (A, B) = g.kernel, g.out
    return f"""    (void)strip;
    for (int32_t i = 0; i < {A}; ++i) {{
        for (int32_t j = 0; j < {B}; ++j) {{
            const int8_t *const x = plane + i * {g.stride[0] * g.columns} + j * {g.stride[1]};
            int32_t sum = record[{KB}];
            for (int32_t a = 0; a < {KA}; ++a) {{
                for (int32_t b = 0; b < {KB}; ++b) {{
                    sum += x[a * {g.columns} + b] * dsopt_byte(record[b], (uint32_t)a);
                }}
            }}
            y[i * {g.y_step[0]} + j * {g.y_step[1]}] =
                (int8_t){store.portable("sum", f"record[{KB + 1}]")};
        }}
    }}"""


_SUMS = ("r4", "r6", "r8", "r10")


def _assembly(g: Lines, store: Store) -> list[str]:
    """r0: line, r1: far away along a line of results, r2: result, r3: strip, r5: bias, r7: count of the shift, r9: zero point,
    r11: lines left, r12: place in the strip; q5: distances of four results, q6: multiplier, q7: weights.
    """
    (KA, KB), (A, B), step = g.kernel, g.out, g.y_step[1]
    blocks, rest = divmod(B, LANES)
    lines = [
        "push {r4-r11, lr}",
        "vpush {d8-d15}",
        f"movs r4, #{TAPS * KB}",
        "vctp.8 r4",
        "vpst",
        "vldrbt.u8 q7, [r1]",
        f"ldrd r5, r6, [r1, #{4 * KB}]",
        "and r7, r6, #31",
        "bic r6, r6, #31",
        "rsb r7, r7, #0",
        "vdup.32 q6, r6",
        *(to_word("r9", store.zero) if store.zero else []),
        "movs r4, #0",
        "vidup.u32 q5, r4, #1",
        f"movw r1, #{step}",
        "vmul.i32 q5, q5, r1",
        f"movw r1, #{4 * step}",
        f"movw r11, #{A}",
        "2:",
        "mov r4, r0",
        *(f"addw {line}, r0, #{(number + 1) * g.columns}" for number, line in enumerate(_SUMS[1:KA])),
        "mov r12, r3",
    ]
    interleave = [f"vldrb.u8 q{number}, [{line}], #16" for number, line in enumerate(_SUMS[:KA])]
    interleave += [f"vst4{number}.8 {{q0, q1, q2, q3}}, [r12]" for number in (0, 1, 2)]
    interleave += ["vst43.8 {q0, q1, q2, q3}, [r12]!"]
    lines += [f"movw lr, #{g.blocks}", "1:", *interleave, "le lr, 1b"] if g.blocks > 1 else interleave
    lines += ["mov r12, r3"]
    results = _results(g, store, LANES)
    if blocks:
        block = [*results, "vstrb.32 q0, [r2, q5]", "add r2, r2, r1"]
        lines += [f"movw lr, #{blocks}", "1:", *block, "le lr, 1b"] if blocks > 1 else block
    if rest:
        lines += [f"movs r4, #{rest}", "vctp.32 r4", *_results(g, store, rest), "vpst", "vstrbt.32 q0, [r2, q5]"]
    lines += _moved("r0", g.stride[0] * g.columns) + _moved("r2", g.y_step[0] - blocks * 4 * step)
    return [*lines, "subs r11, r11, #1", "bne.w 2b", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def _results(g: Lines, store: Store, count: int) -> list[str]:
    """Return the instructions that put results into the lanes of q0."""
    lines = []
    for total in _SUMS[:count]:
        lines += [f"vldrb.u8 q1, [r12], #{TAPS * g.stride[1]}", f"vmladav.s8 {total}, q1, q7"]
    lines += ["vmov q0[2], q0[0], r4, r8", "vmov q0[3], q0[1], r6, r10"]
    return (
        lines + scaled_alike("q0", "r5", "q6", "r7", "r9", store) + clamp(("q0",), store.low, store.high, ("q1", "q2"))
    )

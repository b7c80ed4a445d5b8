"""The inside of convolutions and matrix products on cores with the DSP extension: four pixels times all channels.

Eight sums of four pixels and two channels stay in registers. `columns` holds the inputs of the four pixels, int16 [K / 2][4][2];
the stream of each pair of channels is two biases, K / 2 words of weights and two scales. `sxtb16` makes of one word the pairs of
both channels, and each `smlad` is two multiply-adds: 13 instructions for 16 products. Weights of 4 bits: K / 4 words, each for four
inputs of two channels; one mask and one shift more make bytes of them that are 16 times the weight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dsopt.backends.mcu.kernels.assembly import clamp_lines, micro_kernel, requantize_lines, unpack_scale
from dsopt.backends.mcu.kernels.store import Addition, Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, nibbles, word_of_bytes, words
from dsopt.backends.mcu.kernels.style import BALANCED, Style
from dsopt.backends.tir.program import MicroKernel
from dsopt.backends.tir.registry import UnsuitedError

PIXELS = 4
_MOST_CHANNELS = 4095 // (PIXELS - 1)
"""So that the pixels of a group can be reached with offsets of 12 bits."""

_SUMS = (("r2", "r3", "r4", "r5"), ("r6", "r7", "r8", "r9"))


def matrix_kernel(
    K: int, N: int, store: Store, addition: Addition | None = None, bits: int = 8, style: Style = BALANCED
) -> MicroKernel:
    """Return the function for K inputs, a multiple of 4 (see `padded`), and N channels, an even number that is also their stride."""
    store = store if bits == 8 else replace(store, lift=0)  # its sums are 16 times as large anyway
    if N * store.bits // 8 > _MOST_CHANNELS:
        raise UnsuitedError(
            f"it has {N} channels of {store.bits} bits, and the kernel takes up to {_MOST_CHANNELS} bytes"
        )
    assert padded(K, style) == K
    assert N % 2 == 0
    name = f"dsopt_matrix{'' if bits == 8 else bits}_{K}x{N}_by{turn_of(K, style)}_{store.tag}"
    if addition is None:
        parameters = f"const int16_t *columns, const int32_t *stream, {store.dtype}_t *y"
    else:
        name += f"_add_{addition.tag}"
        parameters = "const int16_t *columns, const int32_t *stream, int8_t *y, const int8_t *residual"
    return micro_kernel(
        name, parameters, _portable(K, N, store, addition, bits), _assembly(K, N, store, addition, bits, style)
    )


def padded(K: int, style: Style = BALANCED) -> int:
    """Return the number of inputs rounded up to what the loop over them takes."""
    pairs = -(-K // 4) * 2
    turn = _turn(pairs, style)
    return 2 * -(-pairs // turn) * turn


def turn_of(K: int, style: Style = BALANCED) -> int:
    """Return how many pairs of K inputs, a number of `padded`, one turn of the inner loop takes."""
    return _turn(K // 2, style)


def _turn(pairs: int, style: Style) -> int:
    """Return the fewest pairs that are about as fast as any, by the number of instructions of the loop."""
    turns = range(2, style.longest_turn + 2, 2)
    cost = {turn: -(-pairs // turn) * (len(_STEP) * turn + 3) for turn in turns}
    return min(
        turn for turn, instructions in cost.items() if instructions <= (1 + style.tolerance) * min(cost.values())
    )


def matrix_stream(weights: Array, layer: Weights) -> Array:
    """Return the stream of a layer. weights: (N, K) in the order of the columns, N even."""
    N, K = weights.shape
    pairs = weights.reshape(N // 2, 2, K // 2, 2).transpose(0, 2, 3, 1)  # (N / 2, K / 2, k, n): the bytes of a word
    packed = word_of_bytes(pairs.reshape(N // 2, K // 2, 4))
    if layer.bits == 4:
        packed, layer = nibbles(packed.reshape(N // 2, K // 4, 2)), layer.sixteenfold()
    bias, scale = (words(values).reshape(N // 2, 2) for values in (layer.bias, layer.scale))
    return np.concatenate([bias, packed, scale], 1)


def _portable(K: int, N: int, store: Store, addition: Addition | None, bits: int) -> str:
    length = K * bits // 16
    word = "stream[2 + k]" if bits == 8 else "stream[2 + k / 2]"
    weight = "dsopt_byte(word, {})" if bits == 8 else "dsopt_nibble(word, {}, k & 1)"
    value = store.portable("sums[i]", f"stream[{2 + length} + (i & 1)]")
    finish = f"            y[(i >> 1) * {N} + n + (i & 1)] = ({store.dtype}_t){value};"
    if addition is not None:
        finish = f"""            const int32_t at = (i >> 1) * {N} + n + (i & 1);
            y[at] = (int8_t){addition.portable(value, "residual[at]")};"""
    return f"""    for (int32_t n = 0; n < {N}; n += 2) {{
        int32_t sums[8];
        for (int32_t i = 0; i < 8; ++i) {{
            sums[i] = stream[i & 1];
        }}
        for (int32_t k = 0; k < {K // 2}; ++k) {{
            const int32_t word = {word};
            for (int32_t p = 0; p < 4; ++p) {{
                const int32_t first = columns[k * 8 + p * 2], second = columns[k * 8 + p * 2 + 1];
                sums[p * 2] += first * {weight.format(0)} + second * {weight.format(2)};
                sums[p * 2 + 1] += first * {weight.format(1)} + second * {weight.format(3)};
            }}
        }}
        for (int32_t i = 0; i < 8; ++i) {{
{finish}
        }}
        stream += {4 + length};
    }}"""


_STEP = [
    "ldr lr, [r1], #4",
    "ldrd r10, r11, [r0], #8",
    "sxtb16 r12, lr",
    "sxtb16 lr, lr, ror #8",
    "smlad r2, r12, r10, r2",
    "smlad r6, lr, r10, r6",
    "smlad r3, r12, r11, r3",
    "smlad r7, lr, r11, r7",
    "ldrd r10, r11, [r0], #8",
    "smlad r4, r12, r10, r4",
    "smlad r8, lr, r10, r8",
    "smlad r5, r12, r11, r5",
    "smlad r9, lr, r11, r9",
]
"""Two inputs of four pixels and two channels. r0: columns, r1: stream, r2 to r9: sums."""


_MASK = "#0xF0F0F0F0"
_NIBBLES = (["ldr lr, [r1]", f"and lr, lr, {_MASK}"], ["ldr lr, [r1], #4", "lsl lr, lr, #4", f"and lr, lr, {_MASK}"])
"""In place of the first instruction of a step: the upper halves of a word, then the lower ones."""


def _steps(turn: int, bits: int) -> list[str]:
    """Return the instructions of several steps, an even number of them."""
    if bits == 8:
        return _STEP * turn
    return [line for number in range(turn) for line in (*_NIBBLES[number % 2], *_STEP[1:])]


def _assembly(K: int, N: int, store: Store, addition: Addition | None, bits: int, style: Style) -> list[str]:
    """The stack holds: columns, their end, y, the end of y, residual less y, and the stream while r1 is needed."""
    turn = turn_of(K, style)
    size, put = (1, "strb") if store.bits == 8 else (2, "strh")
    frame = 24 if addition else 16
    lines = [
        "push {r4-r11, lr}",
        f"sub sp, #{frame}",
        f"movw r4, #{8 * K}",
        "add r4, r0, r4",
        f"add r5, r2, #{N * size}",
        "strd r0, r4, [sp]",
        "strd r2, r5, [sp, #8]",
        *(["sub r3, r3, r2", "str r3, [sp, #16]"] if addition else []),
        "2:",
        "ldr r0, [sp]",
        "ldrd r2, r6, [r1], #8",
        *(f"mov {sums[p]}, {sums[0]}" for sums in _SUMS for p in (1, 2, 3)),
        "1:",
        *_steps(turn, bits),
        *(["ldr r10, [sp, #4]", "cmp r0, r10", "bne 1b"] if turn * 2 < K else []),
        "ldr lr, [sp, #8]",
    ]
    for sums in _SUMS:
        lines += ["ldr r10, [r1], #4", *unpack_scale("r10", "r11", "r12", store.zero)]
        for value in sums:
            lines += requantize_lines(value, "r10", "r11", "r12", store)
        lines += _added(sums, N, addition) if addition else []
        lines += [f"{put} {sums[p]}, [lr, #{p * N * size}]" for p in (1, 2, 3)]
        lines += [f"{put} {sums[0]}, [lr], #{size}"]
    lines += ["ldr r10, [sp, #12]", "str lr, [sp, #8]", "cmp lr, r10", "bne 2b", f"add sp, #{frame}"]
    return [*lines, "pop {r4-r11, pc}"]


def _added(sums: tuple[str, ...], N: int, addition: Addition) -> list[str]:
    """Return the instructions that add the residual to one channel of four pixels; r0 is free here, and r1 is kept on the stack."""
    lines = ["str r1, [sp, #20]", "ldr r0, [sp, #16]", "add r0, r0, lr"]
    for register, number in (("r10", addition.factor), ("r11", addition.residual_factor), ("r12", addition.constant)):
        bits = number & 0xFFFFFFFF
        lines += [f"movw {register}, #{bits & 0xFFFF}"] + ([f"movt {register}, #{bits >> 16}"] if bits >> 16 else [])
    for p, value in enumerate(sums):
        lines += [f"ldrsb r1, [r0, #{p * N}]", "mla r1, r1, r11, r12", f"mla {value}, {value}, r10, r1"]
        lines += [f"asr {value}, {value}, #{addition.shift}"] if addition.shift else []
        lines += clamp_lines(value, addition.low, addition.high)
    return [*lines, "ldr r1, [sp, #20]"]

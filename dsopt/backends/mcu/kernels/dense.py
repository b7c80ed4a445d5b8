"""One vector times a matrix on cores with the DSP extension: four channels at a time, so that four words of weights come in one load.

The vector is widened once to int16, each four inputs in the order (0, 2, 1, 3), which is how `sxtb16` takes a word of weights apart.
The stream of each four channels is their biases, K words of weights (one of each channel in turn), and their scales. Weights of 4 bits:
half as many words, each for eight inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dsopt.backends.mcu.kernels.assembly import micro_kernel, requantize_lines, unpack_scale
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, nibbles, word_of_bytes, words
from dsopt.backends.mcu.kernels.style import BALANCED, Style
from dsopt.backends.tir.program import MicroKernel

CHANNELS = 4

_WIDEN_PORTABLE = """    for (int32_t i = 0; i < quads; ++i) {
        wide[4 * i] = x[4 * i];
        wide[4 * i + 1] = x[4 * i + 2];
        wide[4 * i + 2] = x[4 * i + 1];
        wide[4 * i + 3] = x[4 * i + 3];
    }"""


def widen_kernel(quads: int) -> MicroKernel:
    """Return the function that widens 4 * quads values; `quads` is also its last argument."""
    turn = 4 if quads % 4 == 0 else 2 if quads % 2 == 0 else 1
    quad = ["ldr r3, [r1], #4", "sxtb16 r12, r3", "sxtb16 r3, r3, ror #8", "strd r12, r3, [r0], #8"]
    lines = ["1:", f"subs r2, #{turn}", *quad * turn, "bne 1b", "bx lr"]
    return micro_kernel(f"dsopt_widen_{turn}", "int16_t *wide, const int8_t *x, int32_t quads", _WIDEN_PORTABLE, lines)


def dense_kernel(K: int, N: int, store: Store, bits: int = 8, style: Style = BALANCED) -> MicroKernel:
    """Return the function for K inputs and N channels, both multiples of 4; with weights of 4 bits, K is one of 8."""
    store = store if bits == 8 else replace(store, lift=0)  # its sums are 16 times as large anyway
    name = f"dsopt_dense{'' if bits == 8 else bits}_{K}x{N}_by{turn_of(K, bits, style)}_{store.tag}"
    parameters = f"const int16_t *wide, const int32_t *stream, {store.dtype}_t *y"
    return micro_kernel(name, parameters, _portable(K, N, store, bits), _assembly(K, N, store, bits, style))


def turn_of(K: int, bits: int = 8, style: Style = BALANCED) -> int:
    """Return how many words of weights of a channel one turn of the inner loop takes: a divisor of all of K inputs."""
    words = K // (32 // bits)
    return next(turn for turn in (bits // 2, 3, 2, 1) if words % turn == 0 and turn <= style.longest_turn)


def dense_stream(weights: Array, layer: Weights) -> Array:
    """Return the stream of a layer. weights: (N, K), both multiples of 4, or K of 8 for those of 4 bits."""
    N, K = weights.shape
    quads = word_of_bytes(weights.reshape(N // 4, 4, K // 4, 4))
    if layer.bits == 4:
        quads, layer = nibbles(quads.reshape(N // 4, 4, K // 8, 2)), layer.sixteenfold()
    packed = quads.transpose(0, 2, 1).reshape(N // 4, -1)
    bias, scale = (words(values).reshape(N // 4, 4) for values in (layer.bias, layer.scale))
    return np.concatenate([bias, packed, scale], 1)


def _portable(K: int, N: int, store: Store, bits: int) -> str:
    length = K * bits // 8
    word = "stream[4 + k + i]" if bits == 8 else "stream[4 + k / 8 * 4 + i]"
    weight = "dsopt_byte(word, {})" if bits == 8 else "dsopt_nibble(word, {}, k / 4 & 1)"
    return f"""    for (int32_t n = 0; n < {N}; n += 4) {{
        for (int32_t i = 0; i < 4; ++i) {{
            int32_t sum = stream[i];
            for (int32_t k = 0; k < {K}; k += 4) {{
                const int32_t word = {word};
                sum += wide[k] * {weight.format(0)} + wide[k + 1] * {weight.format(2)};
                sum += wide[k + 2] * {weight.format(1)} + wide[k + 3] * {weight.format(3)};
            }}
            y[n + i] = ({store.dtype}_t){store.portable("sum", f"stream[{4 + length} + i]")};
        }}
        stream += {8 + length};
    }}"""


_SUMS, _LOADED = ("r2", "r3", "r4", "r5"), ("r6", "r7", "r8", "r9")


_MASK = "#0xF0F0F0F0"
_LOADS = (["ldmia r1, {r6-r9}"], ["ldmia r1!, {r6-r9}", *(f"lsl {word}, {word}, #4" for word in _LOADED)])
"""Of four words with values of 4 bits: those in the upper halves of bytes, then the others."""


def _step(bits: int, half: int) -> list[str]:
    """Return the instructions for four inputs."""
    lines = ["ldrd r10, r11, [r0], #8", *(["ldmia r1!, {r6-r9}"] if bits == 8 else _LOADS[half])]
    for total, word in zip(_SUMS, _LOADED, strict=True):
        lines += [] if bits == 8 else [f"and {word}, {word}, {_MASK}"]
        lines += [
            f"sxtb16 r12, {word}",
            f"smlad {total}, r12, r10, {total}",
            f"sxtb16 {word}, {word}, ror #8",
            f"smlad {total}, {word}, r11, {total}",
        ]
    return lines


def _assembly(K: int, N: int, store: Store, bits: int, style: Style) -> list[str]:
    """r0: inputs, r1: stream; the stack holds the inputs, their end, y, and its end."""
    halves = 8 // bits
    step = [line for half in range(halves) for line in _step(bits, half)]
    lines = [
        "push {r4-r11, lr}",
        "sub sp, #16",
        f"movw r3, #{2 * K}",
        "add r3, r0, r3",
        "strd r0, r3, [sp]",
        f"movw r3, #{N * store.bits // 8}",
        "add r3, r2, r3",
        "strd r2, r3, [sp, #8]",
        "2:",
        "ldrd r0, lr, [sp]",
        "ldmia r1!, {r2-r5}",
        "1:",
        *step * turn_of(K, bits, style),
        "cmp r0, lr",
        "bne 1b",
        "ldmia r1!, {r6-r9}",
        "ldr r0, [sp, #8]",
    ]
    for total, scale in zip(_SUMS, _LOADED, strict=True):
        lines += unpack_scale(scale, "r10", "r11", store.zero)
        lines += requantize_lines(total, scale, "r10", "r11", store)
        lines += [f"strb {total}, [r0], #1" if store.bits == 8 else f"strh {total}, [r0], #2"]
    lines += ["ldr r10, [sp, #12]", "str r0, [sp, #8]", "cmp r0, r10", "bne 2b", "add sp, #16"]
    return [*lines, "pop {r4-r11, pc}"]

"""Vectors times a matrix: four channels at a time, 16 inputs of each in an instruction.

The stream has for each four channels their weights, 16 bytes of each in turn, and a record of `lanes.quads`.
"""

from __future__ import annotations

import numpy as np

from dsopt.backends.mcu.kernels.assembly import MVE, micro_kernel
from dsopt.backends.mcu.kernels.helium.lanes import BYTES, LANES, finished, load_quad, load_weights, quads, vector_words
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Array, Weights
from dsopt.backends.mcu.kernels.style import BALANCED, Style
from dsopt.backends.tir.program import MicroKernel

_SUMS = ("r0", "r2", "r4", "r6")
_WIDEST_TURN = 4


def dense_kernel(K: int, N: int, store: Store, bits: int = 8, style: Style = BALANCED) -> MicroKernel:
    """Return the function for one vector of K inputs, and N channels, a multiple of 4."""
    assert N % LANES == 0
    name = f"dsopt_vector{'' if bits == 8 else '_nibbles'}_{K}x{N}_by{turn_of(K, bits, style)}_{store.tag}"
    parameters = "const int8_t *x, const int32_t *stream, int8_t *y"
    return micro_kernel(name, parameters, _portable(K, N, store, bits), _assembly(K, N, store, bits, style), MVE)


def turn_of(K: int, bits: int = 8, style: Style = BALANCED) -> int:
    """Return how many vectors of K inputs one turn of the inner loop takes."""
    looped, turns = _looped(K, bits), range(min(_WIDEST_TURN, style.longest_turn), 0, -1)
    return next(turn for turn in turns if looped % turn == 0 and turn * bits % 8 == 0) if looped else 1


def _looped(K: int, bits: int) -> int:
    """Return how many vectors of K inputs are read in a loop."""
    whole = K // BYTES
    return whole if bits == 8 else whole // 2 * 2


def dense_stream(weights: Array, layer: Weights) -> Array:
    """Return the stream of a layer. weights: (N, K), N a multiple of 4."""
    filled = np.pad(weights, ((0, 0), (0, -weights.shape[1] % BYTES)))
    by_vector = filled.reshape(len(weights) // LANES, LANES, -1, BYTES).transpose(0, 2, 1, 3)
    return np.concatenate([vector_words(by_vector, layer.bits), quads(layer)], 1)


def _portable(K: int, N: int, store: Store, bits: int) -> str:
    vectors = -(-K // BYTES)
    words = (vectors if bits == 8 else -(-vectors // 2)) * BYTES
    word, value = "stream[k / 16 * 16 + c * 4 + k % 16 / 4]", "dsopt_byte({}, (uint32_t)(k % 4))"
    if bits == 4:
        word, value = "stream[k / 32 * 16 + c * 4 + k % 16 / 4]", "dsopt_nibble({}, (uint32_t)(k % 4), k / 16 % 2) / 16"
    return f"""    for (int32_t n = 0; n < {N}; n += 4) {{
        const int32_t *const quad = stream + {words};
        for (int32_t c = 0; c < 4; ++c) {{
            int32_t sum = quad[c];
            for (int32_t k = 0; k < {K}; ++k) {{
                sum += x[k] * {value.format(word)};
            }}
            const int32_t scale = quad[4 + c] - dsopt_byte(quad[8], (uint32_t)c);
            y[n + c] = (int8_t){store.portable("sum", "scale")};
        }}
        stream += {words + 9};
    }}"""


def _assembly(K: int, N: int, store: Store, bits: int, style: Style) -> list[str]:
    """r1: inputs, r3: stream, r5: results, r7: the first input, r9: the end of the results."""
    whole, tail = divmod(K, BYTES)
    looped, turn = _looped(K, bits), turn_of(K, bits, style)
    body = [line for number in range(turn) for line in _step("", bits, number)]
    lines = [
        "push {r4-r9, lr}",
        "vpush {d8-d11}",
        "mov r7, r0",
        "mov r3, r1",
        "mov r5, r2",
        f"movw r9, #{N}",
        "add r9, r9, r2",
        *([f"movs r0, #{tail}", "vctp.8 r0"] if tail else []),
        "2:",
        "mov r1, r7",
        *(f"mov {total}, #0" for total in _SUMS),
        *([f"movw lr, #{looped // turn}", "1:", *body, "le lr, 1b"] if looped > turn else body if looped else []),
        *(_step("", bits, looped, is_last=not tail) if whole > looped else []),
        *(["vpst", *_step("t", bits, whole, is_last=True)] if tail else []),
        "vmov q5[2], q5[0], r0, r4",
        "vmov q5[3], q5[1], r2, r6",
        *load_quad("r3"),
        *finished(("q5",), ("r5",), store, None, ("r0",)),
        "cmp r5, r9",
        "bne.w 2b",
        "vpop {d8-d11}",
        "pop {r4-r9, pc}",
    ]
    return lines


def _step(suffix: str, bits: int, number: int, is_last: bool = False) -> list[str]:
    """Return the instructions for 16 inputs, `number` of all, the last or not."""
    lines = [f"vldrb{suffix}.u8 q0, [r1], #16"]
    for place, (total, q) in enumerate(zip(_SUMS, ("q1", "q2", "q1", "q2"), strict=True)):
        lines += load_weights(q, "r3", place, bits, bool(number % 2), is_last)
        lines += [f"vmladava.s8 {total}, q0, {q}"]
    return lines

"""The inside of convolutions and matrix products: three pixels times two channels, twice, then their twelve results at once.
(With two pixels, for what is left of short rows: 8 instructions for 64 products.)

The inputs of a pixel are read where they are: one or more runs of bytes, a fixed distance apart. Each 16 bytes of three pixels and of two
channels make six `vmladava`: 11 instructions for 96 products, and no copy into columns. The stream has for each four channels the
weights of the first and third, of the second and fourth, and a record of `lanes.quads`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsopt.backends.mcu.kernels.assembly import MOST_DISTANCE, MOST_OFFSET, MVE, micro_kernel
from dsopt.backends.mcu.kernels.helium.lanes import BYTES, LANES, finished, load_quad, load_weights, quads, vector_words
from dsopt.backends.mcu.kernels.store import Addition, Store
from dsopt.backends.mcu.kernels.stream import Array, Weights
from dsopt.backends.mcu.kernels.style import BALANCED, Style
from dsopt.backends.tir.program import MicroKernel
from dsopt.backends.tir.registry import UnsuitedError

PIXELS = 3
"""The most pixels at a time."""
INSTRUCTIONS = {2: 8, 3: 11}
"""For a vector of inputs of so many pixels, and two channels."""

_WIDEST_TURN = 6
"""Steps in a turn of the loop over one run."""
_INPUTS = ("r9", "r11", "r12")
_SUMS = (("r0", "r2", "r4"), ("r6", "r8", "r10"))
_PLACES = ("r1", "r3", "r5")
"""Stores that narrow take addresses in r0 to r7 only."""


@dataclass(frozen=True)
class Runs:
    """Where the inputs of a pixel are, in bytes: `rows` runs of `length`, `pitch` apart; the next pixel is `step` away.

    is_open: whether up to 15 bytes behind a run may be read, too.
    """

    rows: int
    length: int
    pitch: int
    step: int
    is_open: bool

    @property
    def steps(self) -> int:
        """Return the vectors of a run."""
        return -(-self.length // BYTES)

    @property
    def vectors(self) -> int:
        """Return the vectors of a pixel."""
        return self.rows * self.steps

    @property
    def tail(self) -> int:
        """Return the bytes of the last vector of each run, if those behind them must not be read; else 0."""
        return 0 if self.is_open else self.length % BYTES


def conv_kernel(
    runs: Runs,
    most: int,
    N: int,
    store: Store,
    addition: Addition | None = None,
    bits: int = 8,
    style: Style = BALANCED,
) -> MicroKernel:
    """Return the function for up to `most` pixels, 2 or 3. N: channels, a multiple of 4, and the distance of results."""
    if max(N, runs.step, abs(runs.pitch - runs.steps * BYTES)) > MOST_DISTANCE:
        raise UnsuitedError(f"its rows or pixels are more than {MOST_DISTANCE} bytes apart")
    if bits == 4 and not is_straight(runs, style) and (runs.rows > 1 or runs.tail or runs.steps % 2):
        raise UnsuitedError("its weights of 4 bits are not read in pairs of vectors")
    assert N % LANES == 0
    kind = f"dsopt_conv{most}{'' if bits == 8 else '_nibbles'}"
    place = f"{runs.rows}x{runs.length}_{runs.pitch}_{runs.step}{'' if runs.is_open else '_exact'}"
    name = f"{kind}_{place}_{N}_{'straight' if is_straight(runs, style) else f'by{turn_of(runs, bits, style)}'}_{store.tag}"
    parameters = "const int8_t *x, const int32_t *stream, int8_t *y, int32_t pixels"
    if addition is not None:
        name += f"_add_{addition.tag}"
        parameters += ", const int8_t *residual"
    body = _portable(runs, N, store, addition, bits)
    return micro_kernel(name, parameters, body, _assembly(runs, most, N, store, addition, bits, style), MVE)


def conv_stream(weights: Array, layer: Weights, runs: Runs) -> Array:
    """Return the stream of a layer. weights: (N, rows, length), N a multiple of 4."""
    filled = np.pad(weights, ((0, 0), (0, 0), (0, runs.steps * BYTES - runs.length)))
    by_vector = filled.reshape(-1, LANES, runs.vectors, BYTES)[:, [0, 2, 1, 3]]
    passes = by_vector.reshape(-1, 2, 2, runs.vectors, BYTES).transpose(0, 1, 3, 2, 4)
    packed = vector_words(passes, layer.bits)
    return np.concatenate([packed.reshape(len(passes), -1), quads(layer)], 1)


# ---- portable ----


def _portable(runs: Runs, N: int, store: Store, addition: Addition | None, bits: int) -> str:
    words_of_pass = (runs.vectors if bits == 8 else -(-runs.vectors // 2)) * BYTES * 2 // 4
    place, value = f"row * {runs.steps} + i / 16", "dsopt_byte(word, (uint32_t)(i % 4))"
    if bits == 4:
        place, value = f"({place}) / 2", f"dsopt_nibble(word, (uint32_t)(i % 4), ({place}) % 2) / 16"
    return f"""    for (int32_t n = 0; n < {N}; n += 4) {{
        const int32_t *const quad = stream + {2 * words_of_pass};
        for (int32_t c = 0; c < 4; ++c) {{
            const int32_t *const weights = stream + (c & 1) * {words_of_pass} + (c >> 1) * 4;
            for (int32_t p = 0; p < pixels; ++p) {{
                int32_t sum = quad[c];
                for (int32_t row = 0; row < {runs.rows}; ++row) {{
                    for (int32_t i = 0; i < {runs.length}; ++i) {{
                        const int32_t word = weights[({place}) * 8 + i % 16 / 4];
                        sum += x[p * {runs.step} + row * {runs.pitch} + i] * {value};
                    }}
                }}
                const int32_t scale = quad[4 + c] - dsopt_byte(quad[8], (uint32_t)c);
                const int32_t at = p * {N} + n + c;
                {_portable_store(store, addition)}
            }}
        }}
        stream += {2 * words_of_pass + 9};
    }}"""


def _portable_store(store: Store, addition: Addition | None) -> str:
    value = store.portable("sum", "scale")
    if addition is None:
        return f"y[at] = (int8_t){value};"
    return f"y[at] = (int8_t){addition.portable(value, 'residual[at]')};"


# ---- assembly ----


def _assembly(
    runs: Runs, most: int, N: int, store: Store, addition: Addition | None, bits: int, style: Style
) -> list[str]:
    """r9, r11, r12: inputs, r7: stream, r1, r3, r5: results, r0 to r10 (even): sums.

    The stack holds the three inputs, quads left, and the distance to the residual.
    """
    tail = runs.tail
    lines = [
        "push {r4-r11, lr}",
        "vpush {d8-d15}",
        "sub sp, #24",
        *(["ldr r4, [sp, #124]", "sub r4, r4, r2", "str r4, [sp, #16]"] if addition else []),
        "mov r7, r1",
        "mov r1, r2",
        *([f"adds r0, #{_middle(runs)}"] if _offsets(runs, style) and _middle(runs) else []),
        "mov r9, r0",
        f"movw r6, #{runs.step}",
        f"movw r8, #{N}",
        "cmp r3, #2",
        "itt ge",
        "addge r0, r0, r6",
        "addge r2, r2, r8",
        "mov r11, r0",
        "mov r4, r2",
        *(
            ["cmp r3, #3", "itt ge", "addge r0, r0, r6", "addge r2, r2, r8", "mov r12, r0", "mov r5, r2"]
            if most > 2
            else []
        ),
        "mov r3, r4",
        *([] if _offsets(runs, style) else ["strd r9, r11, [sp]", *(["str r12, [sp, #8]"] if most > 2 else [])]),
        *([f"movs r0, #{tail}", "vctp.8 r0"] if tail else []),
        f"movw lr, #{N // LANES}",
        "2:",
    ]
    is_unrolled = is_straight(runs, style)
    if not is_unrolled:
        lines += ["str lr, [sp, #12]"]
    results = ("q5", "q6", "q7")[:most]
    for number in (0, 1):
        lines += _pass(runs, most, bits, style)
        for q, first, second in zip(results, _SUMS[0], _SUMS[1], strict=False):
            lines += [f"vmov {q}[{2 + number}], {q}[{number}], {first}, {second}"]
    free = ("r8", "r2", "r4", "r6", "r0")
    lines += load_quad("r7") + (["ldr r8, [sp, #16]"] if addition else [])
    lines += finished(results, _PLACES[:most], store, addition, free)
    lines += ["le lr, 2b"] if is_unrolled else ["ldr lr, [sp, #12]", "subs lr, lr, #1", "bne.w 2b"]
    return [*lines, "add sp, #24", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def is_straight(runs: Runs, style: Style) -> bool:
    """Return whether all steps of a pixel are written one behind the other, without a loop."""
    return runs.vectors <= style.straight_steps


def _offsets(runs: Runs, style: Style) -> bool:
    """Return whether all inputs of a pixel are within reach of one address, which is then `_middle` behind the first."""
    last = (runs.rows - 1) * runs.pitch + (runs.steps - 1) * BYTES
    return is_straight(runs, style) and last <= 2 * MOST_OFFSET


def _middle(runs: Runs) -> int:
    last = (runs.rows - 1) * runs.pitch + (runs.steps - 1) * BYTES
    return max(0, last - MOST_OFFSET)


def _pass(runs: Runs, most: int, bits: int, style: Style) -> list[str]:
    """Return the instructions for two channels."""
    lines: list[str] = []
    if _offsets(runs, style):
        for number in range(runs.vectors):
            row, step = divmod(number, runs.steps)
            lines += _step(runs, most, bits, number, row * runs.pitch + step * BYTES - _middle(runs))
        return lines
    forward, is_unrolled = runs.pitch - runs.steps * BYTES, is_straight(runs, style)
    if not is_unrolled:
        lines += [f"mov {register}, #0" for sums in _SUMS for register in sums[:most]]
    for row in range(runs.rows):
        if is_unrolled:
            for step in range(runs.steps):
                lines += _step(runs, most, bits, row * runs.steps + step, None)
        else:
            lines += _loop(runs, most, bits, style)
        if row + 1 < runs.rows and forward:
            operation = "add" if forward > 0 else "sub"
            lines += [f"{operation}w {register}, {register}, #{abs(forward)}" for register in _INPUTS[:most]]
    return [*lines, "ldrd r9, r11, [sp]", *(["ldr r12, [sp, #8]"] if most > 2 else [])]


def _whole(runs: Runs) -> int:
    """Return the vectors of a run that are read whole."""
    return runs.steps - 1 if runs.tail else runs.steps


def turn_of(runs: Runs, bits: int, style: Style) -> int:
    """Return how many vectors one turn of the loop over a run takes."""
    whole, widest = _whole(runs), min(_WIDEST_TURN if runs.rows == 1 else 2, style.longest_turn)
    return next(turn for turn in range(widest, 0, -1) if whole % turn == 0 and turn * bits % 8 == 0) if whole else 1


def _loop(runs: Runs, most: int, bits: int, style: Style) -> list[str]:
    """Return the instructions for one run."""
    whole, turn = _whole(runs), turn_of(runs, bits, style)
    body = [line for number in range(turn) for line in _step(runs, most, bits, number, None, False)]
    lines = [f"movw lr, #{whole // turn}", "1:", *body, "le lr, 1b"] if whole > turn else body if whole else []
    return lines + (_step(runs, most, bits, runs.steps - 1, None, False) if runs.tail else [])


def _step(runs: Runs, most: int, bits: int, number: int, offset: int | None, starts: bool = True) -> list[str]:
    """Return the instructions for 16 bytes, `number` of all. offset: of the inputs, which then stay where they are.

    starts: whether number 0 sets the sums, which are else added to.
    """
    is_tail = bool(runs.tail) and number % runs.steps == runs.steps - 1
    is_first = starts and number == 0
    suffix = "t" if is_tail else ""
    vectors = ("q0", "q1", "q2")[:most]
    lines = ["vps" + "t" * most] if is_tail else []
    for q, register in zip(vectors, _INPUTS, strict=False):
        place = f"[{register}], #16" if offset is None else f"[{register}, #{offset}]"
        lines += [f"vldrb{suffix}.u8 {q}, {place}"]
    operation = "vmladav.s8" if is_first else "vmladava.s8"
    for slot, (weight, sums) in enumerate(zip(("q3", "q4"), _SUMS, strict=True)):
        lines += load_weights(weight, "r7", slot, bits, bool(number % 2), number == runs.vectors - 1)
        lines += [f"{operation} {total}, {q}, {weight}" for total, q in zip(sums, vectors, strict=False)]
    return lines

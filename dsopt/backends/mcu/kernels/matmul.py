"""q_matmul on cores with the DSP extension: the second operand takes the place of weights, in their order, once for each batch.

With zero points a0 and b0, sum (a - a0)(b - b0) = sum ab - b0 sum a - a0 sum b + K a0 b0. The last two are biases of columns. For the
one before, the inputs of a row are followed by their sum, twice, and the weights by two numbers whose sum is -b0.
"""

from __future__ import annotations

import math

import numpy as np

from dsopt.backends.mcu.kernels.assembly import SUPPORT, micro_kernel
from dsopt.backends.mcu.kernels.gather import pixels_kernel
from dsopt.backends.mcu.kernels.matrix import PIXELS, matrix_kernel, padded, turn_of
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import lift_of, packed_scale
from dsopt.backends.mcu.kernels.style import Style
from dsopt.backends.tir.program import Buffer, MicroKernel
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.backends.tir.tvm_adapter import address, tirx

_MOST_SUMMED = 255
"""Inputs of a row whose sum fits int16."""


def matmul(
    style: Style, context: Context, a: Buffer, b: Buffer, a_zero: int, b_zero: int, multiplier: int, shift: int, y_zero: int, low: int,
    high: int, bits: int, wide: bool,
) -> Buffer:  # fmt: skip
    """Lower q_matmul. Raises UnsuitedError for what no kernel here takes."""
    if a.dtype != "int8" or b.dtype != "int8":
        raise UnsuitedError("its operands have 16 bits")
    if a.channels_last or b.channels_last:
        raise UnsuitedError("its operand is an image")
    if len(a.shape) < 2 or a.shape[:-2] != b.shape[:-2]:
        raise UnsuitedError("its operands have different batches")
    batch, (M, K), N = math.prod(a.shape[:-2]), a.shape[-2:], b.shape[-1]
    if K % 4 or (b_zero and K > _MOST_SUMMED):
        raise UnsuitedError(f"its sums have {K} products, which is no multiple of 4 or more than {_MOST_SUMMED}")
    lift = lift_of(np.array([multiplier]), np.array([shift]), np.array([K << 16]))
    scale = int(packed_scale(np.array([multiplier]), np.array([shift + lift]), bits)[0])
    wide_N, width = N + N % 2, padded(K + (4 if b_zero else 0), style)
    store = Store(y_zero, low, high, lift, bits)
    kernel = matrix_kernel(width, wide_N, store, style=style)
    pack = pack_kernel(K, N, width, a_zero, b_zero, scale)
    columns = context.temp("columns", (width // 2, PIXELS, 2), "int16")
    stream = context.temp("stream", (wide_N // 2, width // 2 + 4), "int32")
    stage = context.temp("stage", (PIXELS, wide_N), store.dtype) if M % PIXELS or N % 2 else None
    result = context.result()
    with context.kernel(multiply_adds=batch * M * K * N) as k:
        turn = turn_of(width, style)
        k.choice = f"matrix: {PIXELS} rows x 2 columns in turns of {turn}, the second operand reordered"
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        left, right = k.read("a", a, (batch, M, K)), k.read("b", b, (batch, K, N))
        y = k.write("y", result, (batch, M, N))
        block, words = k.scratch("columns", columns), k.scratch("stream", stream)
        rest = k.scratch("stage", stage) if stage is not None else None
        with k.grid(n=batch) as (n,):
            k.call(pack, address(words, 0, 0), address(right, n, 0, 0))
            with k.loop("group", 0, -(-M // PIXELS)) as group:
                count = k.let("count", tirx.min(PIXELS, M - group * PIXELS)) if M % PIXELS else PIXELS
                k.call(pixels_kernel(K // 4), address(block, 0, 0, 0), address(left, n, group * PIXELS, 0), count)
                if b_zero:
                    k.call(sums_kernel(K), address(block, 0, 0, 0))
                target = address(y, n, group * PIXELS, 0) if rest is None else address(rest, 0, 0)
                k.call(kernel, address(block, 0, 0, 0), address(words, 0, 0), target)
                if rest is not None:
                    with k.loop("row", 0, count) as row, k.loop("column", 0, N) as column:
                        k.store(y, rest[row, column], n, group * PIXELS + row, column)
    return result


def sums_kernel(K: int) -> MicroKernel:
    """Return the function that puts, behind K inputs of four rows, the sum of each row, twice."""
    body = f"""    for (int32_t p = 0; p < 4; ++p) {{
        int32_t sum = 0;
        for (int32_t k = 0; k < {K // 2}; ++k) {{
            sum += columns[k * 8 + p * 2] + columns[k * 8 + p * 2 + 1];
        }}
        columns[{K * 4} + p * 2] = (int16_t)sum;
        columns[{K * 4} + p * 2 + 1] = (int16_t)sum;
    }}"""
    sums = ("r2", "r3", "r12", "lr")
    add = [f"smlad {total}, {pair}, r1, {total}" for total, pair in zip(sums, ("r4", "r5", "r6", "r7"), strict=True)]
    step = ["ldrd r4, r5, [r0], #8", "ldrd r6, r7, [r0], #8", *add]
    lines = [
        "push {r4-r8, lr}",
        f"movw r8, #{8 * K}",
        "add r8, r0, r8",
        "mov r1, #0x00010001",
        *(f"mov {total}, #0" for total in sums),
        "1:",
        *step * 2,
        "cmp r0, r8",
        "bne 1b",
        *(f"pkhbt {total}, {total}, {total}, lsl #16" for total in sums),
        "strd r2, r3, [r0]",
        "strd r12, lr, [r0, #8]",
        "pop {r4-r8, pc}",
    ]
    return micro_kernel(f"dsopt_row_sums_{K}", "int16_t *columns", body, lines)


def pack_kernel(K: int, N: int, width: int, a_zero: int, b_zero: int, scale: int) -> MicroKernel:
    """Return the function that makes of a matrix (K, N) the stream that `matrix_kernel` reads, for K' = `width` inputs."""
    name = f"dsopt_pack_{K}x{N}_{width}_{a_zero}_{b_zero}_{scale:x}".replace("-", "m")
    first = -b_zero // 2
    extra = (
        ""
        if not b_zero
        else f"""
        words[{K // 2}] = dsopt_word({first}, {first}, {-b_zero - first}, {-b_zero - first});"""
    )
    start = K // 2 + (1 if b_zero else 0)
    second = "{}" if N % 2 == 0 else f"(n + 1 < {N} ? {{}} : 0)"
    places = [f"b[(k + {j}) * {N} + n" for j in range(4)]
    reads = "\n".join(
        f"            const int32_t x{j} = {place}], y{j} = {second.format(place + ' + 1]')};"
        for j, place in enumerate(places)
    )
    text = f"""static void {name}(int32_t *stream, const int8_t *b)
{{
    for (int32_t n = 0; n < {N}; n += 2) {{
        int32_t *const words = stream + 2;
        int32_t sum = 0, other = 0;
        for (int32_t k = 0; k < {K}; k += 4) {{
{reads}
            sum += x0 + x1 + x2 + x3;
            other += y0 + y1 + y2 + y3;
            words[k / 2] = dsopt_word(x0, y0, x2, y2);
            words[k / 2 + 1] = dsopt_word(x1, y1, x3, y3);
        }}{extra}
        for (int32_t k = {start}; k < {width // 2}; ++k) {{
            words[k] = 0;
        }}
        stream[0] = {K * a_zero * b_zero} - ({a_zero}) * sum;
        stream[1] = {K * a_zero * b_zero} - ({a_zero}) * other;
        stream[{2 + width // 2}] = {scale};
        stream[{3 + width // 2}] = {scale};
        stream += {4 + width // 2};
    }}
}}
"""
    return MicroKernel(name, text)

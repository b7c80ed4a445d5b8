"""q_conv, q_linear and q_matmul: exact sums of products, kept in int32 or int64, and requantised in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.convolution import Geometry
from dsopt.backends.tir.ops.integer_values import cast, centred, clamped, need_integers, reach
from dsopt.backends.tir.ops.integer_weights import StoredWeight, WeightReader
from dsopt.backends.tir.ops.requantize import Requantizer
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, element, tirx


@dataclass(frozen=True)
class _Output:
    """The grid of a result, and whether the sums behind it need int64."""

    zero: int
    low: int
    high: int
    wide: bool

    def start(self, k: KernelBuilder, bias: Expr | None) -> TirBuffer:
        """Make the sum, which starts with the bias."""
        dtype = "int64" if self.wide else "int32"
        return k.local("total", 0 if bias is None else cast(bias, dtype), dtype)

    def stored(self, scaled: Expr, dtype: str) -> Expr:
        """Return what is stored of a sum that has been scaled."""
        return clamped(scaled, self.zero, self.low, self.high, dtype)


def _add(k: KernelBuilder, total: TirBuffer, product: Expr) -> None:
    k.store(total, total[0] + cast(product, str(total.dtype)))


@dataclass(frozen=True)
class _Layer:
    """The tensors of a convolution or linear layer beside its weight."""

    x: Buffer
    bias: Buffer | None
    multiplier: Buffer
    shift: Buffer
    x_zero: int

    def read_bias(self, k: KernelBuilder) -> TirBuffer | None:
        """Take the bias as a parameter of a kernel. Raises RefusedError where a product might not fit int32."""
        need_integers(self.x, self.bias, self.multiplier, self.shift)
        if reach(self.x, self.x_zero) > 1 << 16:
            raise RefusedError(f"a layer on {self.x.dtype} with zero point {self.x_zero}", "use inputs of 8 or 16 bits")
        return k.read("bias", self.bias) if self.bias else None


# ---- convolution ----


@lowering("dsopt.q_conv.default")
def _conv(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, multiplier: Buffer, shift: Buffer, factors: Buffer | None,
    group: int, weight_shape: list[int], weight_bits: int, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Buffer:  # fmt: skip
    (B, C, *sizes), (_, N, *out_sizes) = x.shape, context.shape
    steps = (tuple(stride), tuple(padding[: len(stride)]), tuple(dilation))
    geometry = Geometry(B, C, N, groups, tuple(sizes), tuple(out_sizes), tuple(weight_shape[2:]), *steps)
    layer = _Layer(x, bias, multiplier, shift, x_zero)
    stored = StoredWeight.of(weight, weight_shape, weight_bits, factors, group)
    write = _transposed if transposed else _direct
    return write(context, geometry, layer, stored, _Output(y_zero, low, high, wide))


def _direct(context: Context, g: Geometry, layer: _Layer, weight: StoredWeight, output: _Output) -> Buffer:
    C_g, N_g = g.C // g.groups, g.N // g.groups
    largest = math.prod(g.kernel) * weight.reach * reach(layer.x, layer.x_zero)
    result = context.result()
    with context.kernel(multiply_adds=g.multiply_adds(False)) as k:
        x, w, b = k.read("x", layer.x), WeightReader(k, weight), layer.read_bias(k)
        scale = Requantizer(context, k, layer.multiplier, layer.shift, output.wide)
        y = k.write("y", result)
        with k.grid(**g.grid) as (n, oc, *out):
            first = 0 if g.groups == 1 else k.let("first", tirx.truncdiv(oc, N_g) * C_g if N_g > 1 else oc * C_g)
            total = output.start(k, None if b is None else b[oc])
            windows = g.windows(k, out)
            with w.groups(oc, total, largest) as (part, start, end), ExitStack() as loops:
                channel = loops.enter_context(k.loop("ic", start, end)) if C_g > 1 else 0
                taps, places = g.open_taps(k, loops, windows)
                value = centred(element(x, n, first + channel, *places), layer.x_zero)
                _add(k, part, value * w.value(oc, channel, *taps))
            k.store(y, output.stored(scale.scaled(total[0], oc), context.dtype), n, oc, *out)
    return result


def _transposed(context: Context, g: Geometry, layer: _Layer, weight: StoredWeight, output: _Output) -> Buffer:
    """Gather form: each element of the result sums what reaches it. A factor belongs to an input channel and some outputs."""
    C_g, N_g = g.C // g.groups, g.N // g.groups
    result = context.result()
    with context.kernel(multiply_adds=g.multiply_adds(True)) as k:
        x, w, b = k.read("x", layer.x), WeightReader(k, weight), layer.read_bias(k)
        scale = Requantizer(context, k, layer.multiplier, layer.shift, output.wide)
        y = k.write("y", result)
        with k.grid(**g.grid) as (n, oc, *out):
            first, own = (0, oc) if g.groups == 1 else (tirx.truncdiv(oc, N_g) * C_g, tirx.truncmod(oc, N_g))
            total = output.start(k, None if b is None else b[oc])
            with ExitStack() as loops:
                taps, places = g.open_transposed_taps(k, loops, out)
                channel = loops.enter_context(k.loop("ic", 0, C_g))
                value = centred(element(x, n, first + channel, *places), layer.x_zero)
                _add(k, total, value * w.scaled(first + channel, own, *taps))
            k.store(y, output.stored(scale.scaled(total[0], oc), context.dtype), n, oc, *out)
    return result


# ---- products of matrices ----


@lowering("dsopt.q_linear.default")
def _linear(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, multiplier: Buffer, shift: Buffer, factors: Buffer | None,
    group: int, weight_shape: list[int], weight_bits: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Buffer:  # fmt: skip
    N, K = weight_shape
    M = x.elements // K
    stored = StoredWeight.of(weight, weight_shape, weight_bits, factors, group)
    layer, output = _Layer(x, bias, multiplier, shift, x_zero), _Output(y_zero, low, high, wide)
    result = context.result()
    with context.kernel(multiply_adds=M * N * K) as k:
        a, w, b = k.read("x", x, (M, K)), WeightReader(k, stored), layer.read_bias(k)
        scale = Requantizer(context, k, multiplier, shift, wide)
        y = k.write("y", result, (M, N))
        with k.grid(m=M, n=N) as (m, n):
            total = output.start(k, None if b is None else b[n])
            with (
                w.groups(n, total, stored.reach * reach(x, x_zero)) as (part, first, end),
                k.loop("k", first, end) as i,
            ):
                _add(k, part, centred(a[m, i], x_zero) * w.value(n, i))
            k.store(y, output.stored(scale.scaled(total[0], n), context.dtype), m, n)
    return result


@lowering("dsopt.q_matmul.default")
def _matmul(
    context: Context, a: Buffer, b: Buffer, a_zero: int, b_zero: int, multiplier: int, shift: int, y_zero: int, low: int, high: int,
    bits: int, wide: bool,
) -> Buffer:  # fmt: skip
    need_integers(a, b)
    a_shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    b_shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    rank = max(len(a_shape), len(b_shape)) - 2
    a_batch, b_batch = ((1,) * (rank + 2 - len(shape)) + shape[:-2] for shape in (a_shape, b_shape))
    batch = tuple(max(pair) for pair in zip(a_batch, b_batch, strict=True))
    (M, K), N = a_shape[-2:], b_shape[-1]
    dtype = "int32" if reach(a, a_zero) * reach(b, b_zero) < 1 << 31 else "int64"
    output = _Output(y_zero, low, high, wide)
    result = context.result()
    with context.kernel(multiply_adds=math.prod(batch) * M * N * K) as k:
        left, right = k.read("a", a, (*a_batch, M, K)), k.read("b", b, (*b_batch, K, N))
        scale = Requantizer(context, k, multiplier, shift, wide)
        y = k.write("y", result, (*batch, M, N))
        with k.grid(**{f"b{n}": size for n, size in enumerate(batch)}, m=M, n=N) as (*outer, m, n):
            total = output.start(k, None)
            with k.loop("k", 0, K) as i:
                p = centred(element(left, *_present(outer, a_batch), m, i), a_zero, dtype)
                q = centred(element(right, *_present(outer, b_batch), i, n), b_zero, dtype)
                k.store(total, total[0] + cast(p * q, str(total.dtype)))
            k.store(y, output.stored(scale.scaled(total[0]), context.dtype), *outer, m, n)
    return result


def _present(index: Sequence[Expr], sizes: Sequence[int]) -> list[Expr]:
    """Return the index into an operand whose dims of size 1 are repeated."""
    return [at if size > 1 else 0 for at, size in zip(index, sizes, strict=True)]

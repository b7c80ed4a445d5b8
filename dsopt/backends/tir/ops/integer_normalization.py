"""q_softmax by tables of the exponential, and q_layer_norm by an integer square root: row by row, without memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.broadcast import collapse
from dsopt.backends.tir.ops.integer_values import cast, centred, clamped, need_integers, reach, sum_dtype
from dsopt.backends.tir.ops.requantize import high_product, shift_right
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering, normalize_dim
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, tirx
from dsopt.ops.integer.normalization import FINE_BITS, NORM_BITS, NORM_ELEMENTS

# ---- softmax ----


@dataclass(frozen=True)
class _Rows:
    """Dims before and after the axis, neighbours merged that a mask has or repeats alike."""

    before: tuple[int, ...]
    size: int
    after: tuple[int, ...]
    mask: tuple[int, ...]

    @staticmethod
    def of(shape: Sequence[int], axis: int, mask_shape: Sequence[int] | None) -> _Rows:
        """Split a shape at an axis; mask_shape broadcasts to it."""
        axis = normalize_dim(axis, len(shape))
        sizes = [1] * len(shape)
        sizes = sizes if mask_shape is None else [*sizes[len(mask_shape) :], *mask_shape]
        before, (in_before,) = collapse(shape[:axis], [sizes[:axis]])
        after, (in_after,) = collapse(shape[axis + 1 :], [sizes[axis + 1 :]])
        mask = [*_kept(before, in_before), sizes[axis], *_kept(after, in_after)]
        return _Rows(before, shape[axis], after, tuple(mask))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the merged shape."""
        return (*self.before, self.size, *self.after)

    @property
    def grid(self) -> dict[str, int]:
        """Return the grid: one step for each row along the axis."""
        outer = {f"o{n}" if n else "o": size for n, size in enumerate(self.before)}
        return outer | {f"i{n}" if n else "i": size for n, size in enumerate(self.after)}

    def at(self, row: Sequence[Expr], j: Expr) -> tuple[Expr, ...]:
        """Return the index of element j of a row."""
        return (*row[: len(self.before)], j, *row[len(self.before) :])

    def in_mask(self, row: Sequence[Expr], j: Expr) -> tuple[Expr, ...]:
        """Return the index of element j of a row in the mask."""
        return tuple(at if size > 1 else 0 for at, size in zip(self.at(row, j), self.mask, strict=True))


def _kept(extents: Sequence[int], present: Sequence[bool]) -> list[int]:
    return [extent if has else 1 for extent, has in zip(extents, present, strict=True)]


@lowering("dsopt.q_softmax.default")
def _softmax(
    context: Context, x: Buffer, coarse: Buffer, fine: Buffer | None, mask: Buffer | None, axis: int, bits: int
) -> Buffer:
    need_integers(x, coarse, fine)
    rows = _Rows.of(x.shape or (1,), axis, None if mask is None else mask.shape)
    # 8 bits: powers are at most 2^22 and add up to less than 2^30, so that power * 2^8 + total / 2 fits int32
    dtype, steps = ("int32", 1 << 8) if bits == 8 else ("int64", 1 << 15)
    zero, highest = (-128, 127) if bits == 8 else (0, 32767)
    result = context.result()
    with context.kernel() as k:
        source = k.read("x", x, rows.shape)
        tables = [k.read(name, table) for name, table in (("coarse", coarse), ("fine", fine)) if table is not None]
        seen = None if mask is None else k.read("mask", mask, rows.mask)
        y = k.write("y", result, rows.shape)

        def each(row: Sequence[Expr], body: Callable[[Expr, Expr], None]) -> None:
            """Run body(j, x[j]) for the elements of a row that the mask lets through."""
            with k.loop("j", 0, rows.size) as j:
                value = cast(source[rows.at(row, j)], "int32")
                if seen is None:
                    body(j, value)
                else:
                    with k.when(seen[rows.in_mask(row, j)]):
                        body(j, value)

        with k.grid(**rows.grid) as row:
            largest = k.local("largest", -reach(x), "int32")
            each(row, lambda j, value: k.store(largest, tirx.max(largest[0], value)))
            total = k.local("total", 0, dtype)
            each(row, lambda j, value: k.store(total, total[0] + cast(_power(k, tables, largest[0] - value), dtype)))
            if seen is not None:
                with k.loop("j", 0, rows.size) as j:
                    k.store(y, zero, *rows.at(row, j))

            def share(j: Expr, value: Expr) -> None:
                power = cast(_power(k, tables, largest[0] - value), dtype)
                # a total of 0 comes only with a power of 0
                quotient = tirx.truncdiv(power * steps + tirx.truncdiv(total[0], 2), tirx.max(total[0], 1))
                k.store(y, tirx.Cast(context.dtype, tirx.min(quotient + zero, highest)), *rows.at(row, j))

            each(row, share)
    return result


def _power(k: KernelBuilder, tables: Sequence[TirBuffer], difference: Expr) -> Expr:
    """Return exp(-difference scale) as int32, from one table, or from two by the halves of a 16-bit difference."""
    if len(tables) == 1:
        return tables[0][difference]
    difference = k.let("difference", difference, "int32")
    factors = (tables[0][tirx.shift_right(difference, 8)], tables[1][tirx.bitwise_and(difference, 255)])
    product = cast(factors[0], "int64") * cast(factors[1], "int64")
    return tirx.Cast("int32", tirx.shift_right(product + constant(1 << (FINE_BITS - 1), "int64"), FINE_BITS))


# ---- layer norm ----


@lowering("dsopt.q_layer_norm.default")
def _layer_norm(
    context: Context, x: Buffer, multiplier: Buffer, offset: Buffer, count: int, epsilon: int, extra_bits: int, y_zero: int, low: int,
    high: int, bits: int,
) -> Buffer:  # fmt: skip
    need_integers(x, multiplier, offset)
    rows = x.elements // count
    largest = reach(x)
    if epsilon < 1 or count >= NORM_ELEMENTS or (count * largest) ** 2 + epsilon >= 1 << 62:
        raise RefusedError(
            f"a normalisation of {count} integers with epsilon {epsilon}",
            "use fewer elements, and an epsilon of at least 1",
        )
    squares_dtype, centred_dtype = sum_dtype(count * largest * largest), sum_dtype(2 * count * largest)
    result = context.result()
    with context.kernel(multiply_adds=2 * x.elements) as k:
        source = k.read("x", x, (rows, count))
        scale, shift = k.read("multiplier", multiplier, (count,)), k.read("offset", offset, (count,))
        y = k.write("y", result, (rows, count))
        with k.grid(row=rows) as (row,):
            total = k.local("total", 0, sum_dtype(count * largest))
            squares = k.local("squares", 0, squares_dtype)
            with k.loop("i", 0, count) as i:
                value = k.let("value", centred(source[row, i], 0, squares_dtype), squares_dtype)
                k.store(total, total[0] + cast(value, str(total.dtype)))
                k.store(squares, squares[0] + value * value)
            mean = k.let("sum", cast(total[0], "int64"), "int64")
            spread = constant(count, "int64") * cast(squares[0], "int64") - mean * mean + constant(epsilon, "int64")
            inverse, places = _inverse_root(k, k.local("variance", spread, "int64"))
            with k.loop("i", 0, count) as i:
                distance = centred(source[row, i], 0, centred_dtype) * count - cast(total[0], centred_dtype)
                half = tirx.shift_left(constant(1, "int64"), places[0] - 1)
                normal = k.let("normal", tirx.shift_right(cast(distance, "int64") * inverse + half, places[0]), "int64")
                moved = high_product(k, normal, scale[i], "int64") + cast(shift[i], "int64")
                k.store(y, clamped(shift_right(moved, extra_bits), y_zero, low, high, context.dtype), row, i)
    return result


def _inverse_root(k: KernelBuilder, variance: TirBuffer) -> tuple[Expr, TirBuffer]:
    """Return (inverse, places) with inverse / 2^places = 2^24 / sqrt(variance) for 0 < variance < 2^62.

    The variance is moved to 2^60..2^62 by an even number of bits; its root is found bit by bit from the highest, each kept if the
    square does not exceed the variance (Crenshaw 1998, "Integer square roots").
    """
    places = k.local("places", 61 - NORM_BITS, "int32")
    with k.loop("bit", 0, 30), k.when(variance[0] < constant(1 << 60, "int64")):
        k.store(variance, variance[0] * 4)
        k.store(places, places[0] - 1)
    root = k.local("root", 0, "int64")
    with k.loop("bit", 0, 31) as bit:
        trial = k.let("trial", root[0] + tirx.shift_left(constant(1, "int64"), 30 - bit), "int64")
        with k.when(trial * trial <= variance[0]):
            k.store(root, trial)
    return k.let("inverse", tirx.truncdiv(constant(1 << 61, "int64"), root[0]), "int64"), places

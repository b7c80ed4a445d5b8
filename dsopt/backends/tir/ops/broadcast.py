"""Kernels that compute each element of the result from the same element of broadcast operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, tirx

Operand = Buffer | float | int | bool

_RANK = {"bool": 0, "uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float32": 6}


def promote(operands: Sequence[Operand]) -> str:
    """Return the dtype in which operands are compared: the widest of the buffers; a float number makes it float32."""
    dtypes = [operand.dtype for operand in operands if isinstance(operand, Buffer)]
    widest = max(dtypes, key=_RANK.__getitem__) if dtypes else "bool"
    if any(isinstance(operand, float) for operand in operands):
        return "float32"
    if widest == "bool" and any(isinstance(operand, int) and not isinstance(operand, bool) for operand in operands):
        return "int64"
    return widest


def cast(value: Expr, source: str, target: str) -> Expr:
    """Convert a value as torch does: to bool by comparing with zero, to an integer by dropping the fraction."""
    if source == target:
        return value
    if target == "bool":
        return tirx.NE(value, constant(0, source))
    return tirx.Cast(target, value)


def larger(a: Expr, b: Expr) -> Expr:
    """Return the larger value; of booleans, whether one is true."""
    return tirx.any(a, b) if str(a.ty.dtype) == "bool" else tirx.max(a, b)


def smaller(a: Expr, b: Expr) -> Expr:
    """Return the smaller value; of booleans, whether both are true."""
    return tirx.all(a, b) if str(a.ty.dtype) == "bool" else tirx.min(a, b)


def elementwise(
    context: Context, operands: Sequence[Operand], function: Callable[..., Expr], compute_dtype: str | None = None
) -> Buffer:
    """Compute result[i] = function(*operands[i]) with operands converted to `compute_dtype` (default: the result's).

    Writes over an operand of the result's shape and dtype that nobody reads afterwards, so that no memory is needed.
    """
    return elementwise_kernel(context, operands, lambda k, *values: function(*values), compute_dtype)


def elementwise_kernel(
    context: Context,
    operands: Sequence[Operand],
    function: Callable[..., Expr],
    compute_dtype: str | None = None,
    tables: Sequence[tuple[str, Buffer]] = (),
) -> Buffer:
    """Like `elementwise`, for a function(k, *tables, *values) that names values in the kernel or reads tables at any place."""
    compute = compute_dtype or context.dtype
    target = _reusable(context, operands, [table for _, table in tables])
    in_place = target is not None
    if target is None:
        target = context.result()
    shapes = [operand.shape for operand in operands if isinstance(operand, Buffer)]
    extents, strides = collapse(context.shape, shapes)
    with context.kernel() as k:
        reads: list[tuple[TirBuffer, str, tuple[bool, ...]] | Expr] = []
        places = iter(strides)
        y = k.write("y", target, extents)
        for operand in operands:
            if not isinstance(operand, Buffer):
                reads.append(constant(operand, compute))
                continue
            present = next(places)
            if in_place and operand.shape == target.shape and _same_bytes(context, operand, target):
                reads.append((y, operand.dtype, present))
            else:
                view = tuple(extent if used else 1 for extent, used in zip(extents, present, strict=True))
                reads.append((k.read("x", operand, view), operand.dtype, present))
        whole = [k.read(name, table) for name, table in tables]
        with k.grid(**{f"i{n}" if len(extents) > 1 else "i": extent for n, extent in enumerate(extents)}) as index:
            values = [_load(read, index, compute) for read in reads]
            value = function(k, *whole, *values)
            k.store(y, cast(value, _dtype_of(value, compute), context.dtype), *index)
    return context.view(target)


def _load(read: tuple[TirBuffer, str, tuple[bool, ...]] | Expr, index: tuple[Expr, ...], compute: str) -> Expr:
    if not isinstance(read, tuple):
        return read
    source, dtype, present = read
    return cast(source[tuple(i if used else 0 for i, used in zip(index, present, strict=True))], dtype, compute)


def _dtype_of(value: Expr, default: str) -> str:
    return str(getattr(value, "ty", None) and value.ty.dtype) if not isinstance(value, (int, float)) else default


def _reusable(context: Context, operands: Sequence[Operand], tables: Sequence[Buffer]) -> Buffer | None:
    """Return an operand to write over: another view of its bytes must be read at the same element, or not at all."""
    buffers = [operand for operand in operands if isinstance(operand, Buffer)]
    for operand in buffers:
        twins = [other for other in buffers if _same_bytes(context, operand, other)]
        fits = all((twin.shape, twin.dtype) == (context.shape, context.dtype) for twin in twins)
        fits = fits and not any(_same_bytes(context, operand, table) for table in tables)
        if fits and context.may_overwrite(operand):
            return operand
    return None


def _same_bytes(context: Context, a: Buffer, b: Buffer) -> bool:
    return context.root(a) == context.root(b)


def collapse(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[bool, ...]]]:
    """Merge neighbouring dims that every operand either has or repeats; drop dims of size 1.

    Returns the merged extents of `shape`, at least one, and for each operand whether it has each of them.
    """
    padded = [(1,) * (len(shape) - len(operand)) + tuple(operand) for operand in operands]
    extents: list[int] = []
    patterns: list[tuple[bool, ...]] = []
    for dim, extent in enumerate(shape):
        if extent == 1:
            continue
        pattern = tuple(operand[dim] == extent for operand in padded)
        if patterns and patterns[-1] == pattern:
            extents[-1] *= extent
        else:
            extents.append(extent)
            patterns.append(pattern)
    if not extents:
        return (1,), [(True,)] * len(operands)
    return tuple(extents), [tuple(pattern[n] for pattern in patterns) for n in range(len(operands))]

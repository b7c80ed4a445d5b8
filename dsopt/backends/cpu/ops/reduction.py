"""Sums, means, extremes, norms and running sums over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter


def axes_of(cx: Emitter, x: fx.Node, dim: Any) -> list[int]:
    """Return the axes that a reduction names, counted from the front; all for none."""
    rank = cx.rank(x)
    if dim is None or dim in ([], ()):
        return list(range(rank))
    return sorted(cx.axis(each, rank) for each in ([dim] if isinstance(dim, int) else dim)) if rank else []


def reduce(cx: Emitter, op_type: str, value: Value, axes: Sequence[int], keepdim: bool = False) -> Value:
    """Append a reduction over axes; over none it passes the value on."""
    return cx.op(op_type, value, cx.vector(axes), keepdims=int(keepdim)) if axes else _single(cx, op_type, value)


def _single(cx: Emitter, op_type: str, value: Value) -> Value:
    """Reduce a tensor of rank 0: a sequence of one element."""
    return cx.op(op_type, cx.unsqueeze(value, 0), cx.vector([0]), keepdims=0)


@converter("aten.mean.default", "aten.mean.dim")
def convert_mean(cx: Emitter, x: fx.Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Write a mean; over the image axes as global pooling, which ONNX Runtime computes in its blocked layout."""
    axes, rank = axes_of(cx, x, dim), cx.rank(x)
    value = cx.cast(cx.value(x), cx.dtype)
    if rank == 4 and axes == [2, 3] and value.dtype == torch.float32:
        pooled = cx.op("GlobalAveragePool", value)
        return pooled if keepdim else cx.squeeze(pooled, 2, 3)
    return reduce(cx, "ReduceMean", value, axes, keepdim)


@converter("aten.sum.default", "aten.sum.dim_IntList")
def convert_sum(cx: Emitter, x: fx.Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Write a sum; of ints and bools in int64."""
    return reduce(cx, "ReduceSum", cx.cast(cx.value(x), cx.dtype), axes_of(cx, x, dim), keepdim)


@converter("aten.nansum.default")
def convert_nansum(cx: Emitter, x: fx.Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Write a sum that skips NaN."""
    value = cx.cast(cx.value(x), cx.dtype)
    if value.dtype.is_floating_point:
        missing = cx.op("IsNaN", value, dtype=torch.bool)
        value = cx.op("Where", missing, cx.constant(0, value.dtype), value, dtype=value.dtype)
    return reduce(cx, "ReduceSum", value, axes_of(cx, x, dim), keepdim)


@converter("aten.prod.default")
def convert_prod_all(cx: Emitter, x: fx.Node, *, dtype: Any = None) -> Value:
    """Write the product of all elements."""
    return reduce(cx, "ReduceProd", cx.cast(cx.value(x), cx.dtype), axes_of(cx, x, None))


@converter("aten.prod.dim_int")
def convert_prod(cx: Emitter, x: fx.Node, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Write a product along an axis."""
    return reduce(cx, "ReduceProd", cx.cast(cx.value(x), cx.dtype), axes_of(cx, x, dim), keepdim)


@converter("aten.amax.default")
def convert_amax(cx: Emitter, x: fx.Node, dim: Any = (), keepdim: bool = False) -> Value:
    """Write the largest element over axes."""
    return extreme(cx, "ReduceMax", cx.value(x), axes_of(cx, x, dim), keepdim)


@converter("aten.amin.default")
def convert_amin(cx: Emitter, x: fx.Node, dim: Any = (), keepdim: bool = False) -> Value:
    """Write the smallest element over axes."""
    return extreme(cx, "ReduceMin", cx.value(x), axes_of(cx, x, dim), keepdim)


@converter("aten.max.default")
def convert_max_all(cx: Emitter, x: fx.Node) -> Value:
    """Write the largest of all elements."""
    return extreme(cx, "ReduceMax", cx.value(x), axes_of(cx, x, None), False)


@converter("aten.min.default")
def convert_min_all(cx: Emitter, x: fx.Node) -> Value:
    """Write the smallest of all elements."""
    return extreme(cx, "ReduceMin", cx.value(x), axes_of(cx, x, None), False)


def extreme(cx: Emitter, op_type: str, value: Value, axes: Sequence[int], keepdim: bool) -> Value:
    """Append ReduceMax or ReduceMin; bools are compared as 0 and 1."""
    if value.dtype == torch.bool:
        return cx.cast(reduce(cx, op_type, cx.cast(value, torch.int32), axes, keepdim), torch.bool)
    return reduce(cx, op_type, value, axes, keepdim)


@converter("aten.max.dim")
def convert_max_dim(cx: Emitter, x: fx.Node, dim: int, keepdim: bool = False) -> tuple[Value | None, Value | None]:
    """Write the largest element along an axis and its place."""
    return _extreme_and_place(cx, "ReduceMax", "ArgMax", x, dim, keepdim)


@converter("aten.min.dim")
def convert_min_dim(cx: Emitter, x: fx.Node, dim: int, keepdim: bool = False) -> tuple[Value | None, Value | None]:
    """Write the smallest element along an axis and its place."""
    return _extreme_and_place(cx, "ReduceMin", "ArgMin", x, dim, keepdim)


def _extreme_and_place(
    cx: Emitter, op_type: str, place: str, x: fx.Node, dim: int, keepdim: bool
) -> tuple[Value | None, Value | None]:
    axes = axes_of(cx, x, dim)
    best = extreme(cx, op_type, cx.value(x), axes, keepdim) if cx.used(0) else None
    where = _place(cx, place, cx.value(x), axes, keepdim) if cx.used(1) else None
    return best, where


@converter("aten.argmax.default")
def convert_argmax(cx: Emitter, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> Value:
    """Write the place of the largest element, the first of equal ones."""
    return _argument(cx, "ArgMax", x, dim, keepdim)


@converter("aten.argmin.default")
def convert_argmin(cx: Emitter, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> Value:
    """Write the place of the smallest element, the first of equal ones."""
    return _argument(cx, "ArgMin", x, dim, keepdim)


def _argument(cx: Emitter, op_type: str, x: fx.Node, dim: int | None, keepdim: bool) -> Value:
    value, rank = cx.value(x), cx.rank(x)
    if dim is not None:
        return _place(cx, op_type, value, axes_of(cx, x, dim), keepdim)
    place = _place(cx, op_type, cx.op("Reshape", value, cx.vector([-1])), [0], False)
    return cx.op("Reshape", place, cx.vector([1] * rank)) if keepdim else place


def _place(cx: Emitter, op_type: str, value: Value, axes: Sequence[int], keepdim: bool) -> Value:
    if not axes:
        return cx.constant(0, torch.int64)
    return cx.op(op_type, value, dtype=torch.int64, axis=axes[0], keepdims=int(keepdim))


@converter("aten.any.default", "aten.any.dim", "aten.any.dims")
def convert_any(cx: Emitter, x: fx.Node, dim: Any = None, keepdim: bool = False) -> Value:
    """Write whether any element is not 0."""
    return extreme(cx, "ReduceMax", cx.cast(cx.value(x), torch.bool), axes_of(cx, x, dim), keepdim)


@converter("aten.all.default", "aten.all.dim", "aten.all.dims")
def convert_all(cx: Emitter, x: fx.Node, dim: Any = None, keepdim: bool = False) -> Value:
    """Write whether no element is 0."""
    return extreme(cx, "ReduceMin", cx.cast(cx.value(x), torch.bool), axes_of(cx, x, dim), keepdim)


@converter("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def convert_count_nonzero(cx: Emitter, x: fx.Node, dim: Any = None) -> Value:
    """Write the number of elements that are not 0."""
    present = cx.cast(cx.cast(cx.value(x), torch.bool), torch.int64)
    return reduce(cx, "ReduceSum", present, axes_of(cx, x, dim))


# ---- spread ----


@converter("aten.var.correction")
def convert_var(
    cx: Emitter, x: fx.Node, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Value:
    """Write the variance; `correction` is taken off the count."""
    return variance(cx, x, dim, 1 if correction is None else correction, keepdim)


@converter("aten.std.correction")
def convert_std(
    cx: Emitter, x: fx.Node, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Value:
    """Write the standard deviation."""
    return cx.op("Sqrt", variance(cx, x, dim, 1 if correction is None else correction, keepdim))


@converter("aten.var.default", "aten.var.dim")
def convert_var_dim(cx: Emitter, x: fx.Node, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Value:
    """Write the variance in its older forms."""
    dim, unbiased = (None, dim) if isinstance(dim, bool) else (dim, unbiased)
    return variance(cx, x, dim, int(unbiased), keepdim)


@converter("aten.std.default", "aten.std.dim")
def convert_std_dim(cx: Emitter, x: fx.Node, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Value:
    """Write the standard deviation in its older forms."""
    return cx.op("Sqrt", convert_var_dim(cx, x, dim, unbiased, keepdim))


@converter("aten.var_mean.correction")
def convert_var_mean(
    cx: Emitter, x: fx.Node, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    """Write variance and mean."""
    spread = variance(cx, x, dim, 1 if correction is None else correction, keepdim)
    return spread, reduce(cx, "ReduceMean", cx.value(x), axes_of(cx, x, dim), keepdim)


@converter("aten.std_mean.correction")
def convert_std_mean(
    cx: Emitter, x: fx.Node, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    """Write standard deviation and mean."""
    spread, mean = convert_var_mean(cx, x, dim, correction=correction, keepdim=keepdim)
    return cx.op("Sqrt", spread), mean


@converter("aten.var_mean.default", "aten.var_mean.dim")
def convert_var_mean_dim(
    cx: Emitter, x: fx.Node, dim: Any = None, unbiased: bool = True, keepdim: bool = False
) -> tuple[Value, Value]:
    """Write variance and mean in their older forms."""
    dim, unbiased = (None, dim) if isinstance(dim, bool) else (dim, unbiased)
    return convert_var_mean(cx, x, dim, correction=int(unbiased), keepdim=keepdim)


@converter("aten.std_mean.default", "aten.std_mean.dim")
def convert_std_mean_dim(
    cx: Emitter, x: fx.Node, dim: Any = None, unbiased: bool = True, keepdim: bool = False
) -> tuple[Value, Value]:
    """Write standard deviation and mean in their older forms."""
    spread, mean = convert_var_mean_dim(cx, x, dim, unbiased, keepdim)
    return cx.op("Sqrt", spread), mean


def variance(cx: Emitter, x: fx.Node, dim: Any, correction: float, keepdim: bool) -> Value:
    """Return the sum of squared distances from the mean over count - correction, in two steps so that no digits are lost."""
    value, axes = cx.value(x), axes_of(cx, x, dim)
    centred = cx.op("Sub", value, reduce(cx, "ReduceMean", value, axes, True) if axes else value)
    squares = cx.op("Mul", centred, centred)
    if correction == 0:
        return reduce(cx, "ReduceMean", squares, axes, keepdim)
    total = reduce(cx, "ReduceSum", squares, axes, keepdim)
    extents = [cx.extent(x, axis) for axis in axes]
    if all(isinstance(each, int) for each in extents):
        return cx.op("Div", total, cx.constant(max(math.prod(extents) - correction, 0), value.dtype))  # type: ignore[arg-type]
    product = cx.op("ReduceProd", cx.sizes(extents), keepdims=0)
    count = cx.op("Sub", cx.cast(product, value.dtype), cx.constant(correction, value.dtype))
    return cx.op("Div", total, cx.op("Max", count, cx.constant(0, value.dtype)))


# ---- norms ----


@converter("aten.linalg_vector_norm.default")
def convert_vector_norm(
    cx: Emitter, x: fx.Node, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Write a norm of any order."""
    return norm(cx, cx.cast(cx.value(x), cx.dtype), ord, axes_of(cx, x, dim), keepdim)


@converter("aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dim_dtype")
def convert_norm_dim(
    cx: Emitter, x: fx.Node, p: float | None, dim: Any, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """Write a norm over axes."""
    return norm(cx, cx.cast(cx.value(x), cx.dtype), 2 if p is None else p, axes_of(cx, x, dim), keepdim)


@converter("aten.norm.Scalar")
def convert_norm(cx: Emitter, x: fx.Node, p: float = 2) -> Value:
    """Write a norm over all axes."""
    return norm(cx, cx.value(x), p, axes_of(cx, x, None), False)


@converter("aten.linalg_matrix_norm.str_ord", "aten.frobenius_norm.dim")
def convert_frobenius(cx: Emitter, x: fx.Node, *args: Any, **kwargs: Any) -> Value:
    """Write the Frobenius norm over two axes."""
    names = ["ord", "dim", "keepdim"] if isinstance((args or ("fro",))[0], str) else ["dim", "keepdim"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("ord", "fro") != "fro":
        raise RefusalError(f"a matrix norm of order {given['ord']!r}", 'use the order "fro"')
    return norm(cx, cx.value(x), 2, axes_of(cx, x, given.get("dim", [-2, -1])), bool(given.get("keepdim", False)))


def norm(cx: Emitter, value: Value, order: float, axes: Sequence[int], keepdim: bool) -> Value:
    """Return (sum |x|^order)^(1 / order), or its limits for orders 0 and infinity."""
    if order == 2:
        return reduce(cx, "ReduceL2", value, axes, keepdim)
    if order == 1:
        return reduce(cx, "ReduceL1", value, axes, keepdim)
    size = cx.op("Abs", value)
    if math.isinf(order):
        return reduce(cx, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdim)
    if order == 0:
        present = cx.cast(cx.cast(value, torch.bool), value.dtype)
        return reduce(cx, "ReduceSum", present, axes, keepdim)
    total = reduce(cx, "ReduceSum", cx.op("Pow", size, cx.constant(order, value.dtype)), axes, keepdim)
    return cx.op("Pow", total, cx.constant(1 / order, value.dtype))


@converter("aten.logsumexp.default")
def convert_logsumexp(cx: Emitter, x: fx.Node, dim: Any, keepdim: bool = False) -> Value:
    """Write log(sum(exp(x))), stable for large x."""
    return reduce(cx, "ReduceLogSumExp", cx.cast(cx.value(x), cx.dtype), axes_of(cx, x, dim), keepdim)


# ---- running ----


@converter("aten.cumsum.default")
def convert_cumsum(cx: Emitter, x: fx.Node, dim: int, *, dtype: Any = None) -> Value:
    """Write a running sum."""
    value = cx.cast(cx.value(x), cx.dtype)
    if cx.rank(x) == 0:
        return cx.op("Identity", value)
    return cx.op("CumSum", value, cx.constant(cx.axis(dim, cx.rank(x)), torch.int64))


@converter("aten.cumprod.default")
def convert_cumprod(cx: Emitter, x: fx.Node, dim: int, *, dtype: Any = None) -> Value:
    """Write a running product, factor by factor: ONNX has no operator for it."""
    axis = cx.axis(dim, cx.rank(x))
    length = cx.fixed(cx.shape(x)[axis], "the length of a running product")
    if length > 64:
        raise RefusalError(f"a running product of {length} factors", "use exp(cumsum(log(x))) where x is positive")
    value = cx.cast(cx.value(x), cx.dtype)
    parts = [cx.slice(value, axis, i, i + 1) for i in range(length)]
    for i in range(1, length):
        parts[i] = cx.op("Mul", parts[i - 1], parts[i])
    return cx.concat(parts, axis)


@converter("aten.dist.default")
def convert_dist(cx: Emitter, a: fx.Node, b: fx.Node, p: float = 2) -> Value:
    """Write the norm of a difference."""
    difference = cx.op("Sub", cx.value(a), cx.value(b))
    return norm(cx, cx.op("Reshape", difference, cx.vector([-1])), p, [0], False)


@converter("aten.cosine_similarity.default")
def convert_cosine_similarity(cx: Emitter, a: fx.Node, b: fx.Node, dim: int = 1, eps: float = 1e-8) -> Value:
    """Write a b / max(|a| |b|, eps), each norm limited on its own as torch does."""
    axes = [cx.axis(dim, len(cx.out.shape) + 1) - (len(cx.out.shape) + 1)]
    x, y = cx.operand(a, cx.dtype), cx.operand(b, cx.dtype)
    product = reduce(cx, "ReduceSum", cx.op("Mul", x, y), axes)
    limit = cx.constant(eps, cx.dtype)
    norms = [cx.op("Max", reduce(cx, "ReduceL2", each, axes), limit) for each in (x, y)]
    return cx.op("Div", product, cx.op("Mul", *norms))

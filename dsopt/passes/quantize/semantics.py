"""What quantisation needs to know of an operator: which arguments are activations, which a weight, and what its result is.

Nothing here looks at modules or at neighbours: an operator means the same wherever it stands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from dsopt.ir import Program
from dsopt.ir.convolution import convolution, is_convolution

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

Kind = Literal[
    "convolution", "linear", "embedding", "recurrent", "matmul", "sum", "product", "concat", "choice", "unary", "softmax", "norm",
    "average", "scale_by_channel",
]  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """An operator that integers can compute. inputs: its activations.  weights: (node, axis of the channels)."""

    kind: Kind
    inputs: tuple[fx.Node, ...]
    weights: tuple[tuple[fx.Node, int], ...] = ()
    may_clamp: bool = False
    """Whether its result can be clamped for nothing, so that a ReLU after it belongs to it."""
    fixed: tuple[float, int] | None = None
    """The scale and zero point that its 8-bit result always has."""


@dataclass(frozen=True)
class Unsupported:
    """An operator on floats that stays float, and why."""

    why: str


Finding = Operation | Unsupported | None

SOFTMAX_GRID = (1 / 256, -128)


def _operators(names: str) -> frozenset[Any]:
    """Return the overloads of aten called "view.default reshape.default ..." that the installed torch has."""
    found = set()
    for name in names.split():
        packet, _, overload = name.partition(".")
        known = getattr(_ATEN, packet, None)
        if known is not None and overload in known.overloads():
            found.add(getattr(known, overload))
    return frozenset(found)


UNARY = _operators(
    "abs.default acos.default acosh.default asin.default asinh.default atan.default atanh.default celu.default cos.default cosh.default "
    "elu.default erf.default erfc.default exp.default exp2.default expm1.default gelu.default hardsigmoid.default hardswish.default "
    "leaky_relu.default log.default log10.default log1p.default log2.default log_sigmoid.default mish.default neg.default "
    "reciprocal.default relu6.default rsqrt.default selu.default sigmoid.default sign.default silu.default sin.default sinh.default "
    "softplus.default sqrt.default square.default tan.default tanh.default hardtanh.default hardshrink.default softshrink.default "
    "threshold.default clamp.default clamp_min.default clamp_max.default ceil.default floor.default round.default trunc.default "
    "pow.Tensor_Scalar add.Scalar sub.Scalar mul.Scalar div.Scalar rsub.Scalar remainder.Scalar"
)
"""Functions of one value: a table computes any of them."""

_ARITHMETIC: dict[Any, Kind] = {_ATEN.add.Tensor: "sum", _ATEN.sub.Tensor: "sum", _ATEN.mul.Tensor: "product"}
_SCALED = {_ATEN.div.Tensor, _ATEN.pow.Tensor_Scalar}
_SOFTMAX = {_ATEN.softmax.int, _ATEN._softmax.default, _ATEN._safe_softmax.default}
_MATMUL = {_ATEN.matmul.default, _ATEN.mm.default, _ATEN.bmm.default}
_POOLS = {_ATEN.avg_pool1d.default, _ATEN.avg_pool2d.default}
_ADAPTIVE = {_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default}
RECURRENT = {_DSOPT.fake_quantized_lstm.default, _DSOPT.fake_quantized_gru.default}

MOVES = _operators(
    "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int permute.default transpose.int t.default mT.default "
    "movedim.int movedim.intlist squeeze.default squeeze.dim squeeze.dims unsqueeze.default expand.default expand_as.default "
    "repeat.default repeat_interleave.self_int tile.default slice.Tensor select.int narrow.default chunk.default split.Tensor split.sizes "
    "split_with_sizes.default unbind.int flip.default roll.default index_select.default pixel_shuffle.default pixel_unshuffle.default "
    "channel_shuffle.default clone.default contiguous.default alias.default detach.default dropout.default feature_dropout.default "
    "alpha_dropout.default max_pool1d.default max_pool2d.default adaptive_max_pool1d.default adaptive_max_pool2d.default "
    "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest1d.default upsample_nearest2d.default relu.default"
)
"""Operators whose result holds values of their first argument (or the integer of 0), so that it is on the same grid."""

CLAMPS: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], tuple[float, float] | None]] = {
    _ATEN.relu.default: lambda args, kwargs: (0.0, float("inf")),
    _ATEN.relu6.default: lambda args, kwargs: (0.0, 6.0),
    _ATEN.hardtanh.default: lambda args, kwargs: (float(_at(args, 1, -1.0)), float(_at(args, 2, 1.0))),
    _ATEN.clamp.default: lambda args, kwargs: _bounds(_at(args, 1, kwargs.get("min")), _at(args, 2, kwargs.get("max"))),
    _ATEN.clamp_min.default: lambda args, kwargs: _bounds(_at(args, 1, None), None),
    _ATEN.clamp_max.default: lambda args, kwargs: _bounds(None, _at(args, 1, None)),
}
"""Operator -> the bounds that it keeps its argument in; None where they are no numbers."""

_REASONS = {
    "upsample_bilinear2d": "interpolation between pixels has no integer form here; nearest has",
    "upsample_bicubic2d": "interpolation between pixels has no integer form here; nearest has",
    "log_softmax": "a logarithm of probabilities has no integer form here; end with softmax or with logits",
    "group_norm": "only layer_norm and batch_norm have an integer form here",
    "instance_norm": "only layer_norm and batch_norm have an integer form here",
    "rms_norm": "only layer_norm and batch_norm have an integer form here",
    "conv3d": "convolutions in three dims have no integer form here",
    "einsum": "einsum has no integer form here; matmul has",
    "lstm": "packed sequences and projections have no integer form here",
    "scaled_dot_product_attention": "its mask or its dropout has no integer form here",
    "sparse_attention": "which keys it looks at is decided in floats, and has no integer form here",
}


def _at(values: tuple[Any, ...], index: int, default: Any) -> Any:
    return values[index] if len(values) > index else default


def _bounds(low: Any, high: Any) -> tuple[float, float] | None:
    numbers = (-float("inf") if low is None else low, float("inf") if high is None else high)
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    return float(numbers[0]), float(numbers[1])


def is_float(value: object) -> bool:
    """Tell whether an argument is a node with one float32 tensor."""
    recorded = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(recorded, Tensor) and recorded.dtype == torch.float32


def clamp_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Return the bounds of a ReLU or another clamp between numbers; None for every other node."""
    read = CLAMPS.get(node.target) if node.op == "call_function" else None
    return None if read is None else read(node.args, dict(node.kwargs))


def is_move(node: fx.Node) -> bool:
    """Tell whether a node's float values are those of its first argument, or 0."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_move(node.args[0])
    if node.target in (_ATEN.constant_pad_nd.default, _ATEN.pad.default):
        return _pads_zero(node)
    return node.target in MOVES


def _pads_zero(node: fx.Node) -> bool:
    if node.target is _ATEN.pad.default and _at(node.args, 2, node.kwargs.get("mode", "constant")) != "constant":
        return False
    place = 2 if node.target is _ATEN.constant_pad_nd.default else 3
    return (_at(node.args, place, node.kwargs.get("value")) or 0) == 0


def describe(program: Program, node: fx.Node) -> Finding:
    """Say what an operator is to quantisation; None for one that has nothing to do with floats, or moves them only."""
    if node.op != "call_function" or is_move(node) or not _touches_floats(node):
        return None
    if is_convolution(node):
        return _convolution(program, node)
    for targets, read in _READERS:
        if node.target in targets:
            return read(program, node)
    if node.target in UNARY:
        return _unary(node)
    name = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
    return Unsupported(_REASONS.get(name, f"{node.target} has no integer form here"))


def kind_of(node: fx.Node) -> Kind | None:
    """Return what kind of operator a node is, whatever its arguments are; None if integers cannot compute it."""
    if is_convolution(node):
        return "convolution"
    if node.target in _ARITHMETIC and all(isinstance(each, fx.Node) for each in node.args[:2]):
        return _ARITHMETIC[node.target]
    if (
        node.target in UNARY
        or node.target in _ARITHMETIC
        or (node.target in _SCALED and not isinstance(node.args[1], fx.Node))
    ):
        return "unary"
    return next((kind for targets, kind in _KINDS if node.target in targets), None)


def _touches_floats(node: fx.Node) -> bool:
    """Tell whether a node computes floats from tensors; what is made of sizes alone is a constant."""
    if node.target is operator.getitem or not any(
        isinstance(each.meta.get("val"), (Tensor, tuple, list)) for each in node.all_input_nodes
    ):
        return False
    value = node.meta.get("val")
    results = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(each, Tensor) and each.dtype == torch.float32 for each in results)


def _stored_float(program: Program, node: object) -> bool:
    return is_float(node) and program.weight(node) is not None


def _convolution(program: Program, node: fx.Node) -> Finding:
    conv = convolution(node)
    if len(conv.stride) > 2:
        return Unsupported(_REASONS["conv3d"])
    if not _stored_float(program, conv.weight) or (conv.bias is not None and program.weight(conv.bias) is None):
        return Unsupported("its weight is computed, not stored")
    if not is_float(conv.x) or conv.x.meta["val"].dim() != conv.weight.meta["val"].dim():
        return Unsupported("its input has no batch dim")
    return Operation("convolution", (conv.x,), ((conv.weight, conv.channel_axis),), may_clamp=True)


def _linear(program: Program, node: fx.Node) -> Finding:
    x, weight, *rest = node.args
    bias = rest[0] if rest else node.kwargs.get("bias")
    if not _stored_float(program, weight) or (bias is not None and program.weight(bias) is None):
        return Unsupported("its weight is computed, not stored")
    if not is_float(x) or weight.meta["val"].dim() != 2:  # type: ignore[union-attr]
        return Unsupported("its weight is no matrix")
    return Operation("linear", (x,), ((weight, 0),), may_clamp=True)  # type: ignore[arg-type]


def _embedding(program: Program, node: fx.Node) -> Finding:
    weight = node.args[0]
    if not _stored_float(program, weight):
        return Unsupported("its table is computed, not stored")
    return Operation("embedding", (), ((weight, 0),))  # type: ignore[arg-type]


def _recurrent(program: Program, node: fx.Node) -> Finding:
    place = 3 if node.target is _DSOPT.fake_quantized_lstm.default else 2
    weights = node.args[place : place + 2]
    if not all(_stored_float(program, each) for each in weights):
        return Unsupported("its weights are computed, not stored")
    return Operation("recurrent", (node.args[0],), tuple((each, 0) for each in weights))  # type: ignore[misc,arg-type]


def _pair(kind: Kind, node: fx.Node) -> Finding:
    a, b = node.args[:2]
    if not is_float(a) or not is_float(b):
        return Unsupported("its operands are not both float32")
    return Operation(kind, (a, b), may_clamp=True)  # type: ignore[arg-type]


def _matmul(program: Program, node: fx.Node) -> Finding:
    if any(item.meta["val"].dim() < 2 for item in node.all_input_nodes):
        return Unsupported("a product with a vector has no integer form here")
    return _pair("matmul", node)


def _arithmetic(program: Program, node: fx.Node) -> Finding:
    a, b = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1:
        return Unsupported("alpha is not 1")
    if isinstance(b, (int, float)) or isinstance(a, (int, float)):
        return _unary(node)
    return _pair(_ARITHMETIC[node.target], node)


def _scaled(program: Program, node: fx.Node) -> Finding:
    if isinstance(node.args[1], (int, float)) and not node.kwargs:
        return _unary(node)
    return Unsupported("a quotient of two tensors has no integer form here")


def _unary(node: fx.Node) -> Finding:
    tensors = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), Tensor)]
    if len(tensors) != 1 or len(node.all_input_nodes) != 1 or not is_float(tensors[0]):
        return Unsupported("it computes with more than one tensor")
    return Operation("unary", (tensors[0],))


def _concat(program: Program, node: fx.Node) -> Finding:
    parts = node.args[0]
    if not isinstance(parts, (list, tuple)) or not all(is_float(part) for part in parts):
        return Unsupported("its parts are not all float32")
    return Operation("concat", tuple(parts))  # type: ignore[arg-type]


def _where(program: Program, node: fx.Node) -> Finding:
    if not is_float(node.args[1]) or not is_float(node.args[2]):
        return Unsupported("its parts are not both float32")
    return Operation("choice", (node.args[1], node.args[2]))  # type: ignore[arg-type]


def _softmax(program: Program, node: fx.Node) -> Finding:
    return Operation("softmax", (softmax_scores(node).source,), fixed=SOFTMAX_GRID)


def _norm(program: Program, node: fx.Node) -> Finding:
    if not is_float(node.args[0]) or any(item is not None and program.weight(item) is None for item in node.args[2:4]):
        return Unsupported("its scale or shift is computed, not stored")
    sizes = node.args[0].meta["val"].shape[-len(node.args[1]) :]  # type: ignore[union-attr,arg-type]
    if not all(isinstance(size, int) for size in sizes):
        return Unsupported("the sizes that it normalises vary")
    return Operation("norm", (node.args[0],))  # type: ignore[arg-type]


def _average(program: Program, node: fx.Node) -> Finding:
    x = node.args[0]
    if not is_float(x):
        return Unsupported("it averages no float32")
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    if node.target in _POOLS:
        return Operation("average", (x,), may_clamp=True)  # type: ignore[arg-type]
    if node.target in _ADAPTIVE:
        out: Any = node.args[1]
        sizes = shape[-len(out) :]
        if any(not isinstance(size, int) or size % o for size, o in zip(sizes, out, strict=True)):
            return Unsupported("its windows are not all of one size")
        return Operation("average", (x,), may_clamp=True)  # type: ignore[arg-type]
    dims: Any = _at(node.args, 1, None)
    if node.kwargs.get("dtype") is not None or not all(
        isinstance(shape[dim], int) for dim in dims or range(len(shape))
    ):
        return Unsupported("the sizes that it averages over vary")
    return Operation("average", (x,), may_clamp=True)  # type: ignore[arg-type]


def _batch_norm(program: Program, node: fx.Node) -> Finding:
    x = node.args[0]
    stored = all(item is None or program.weight(item) is not None for item in node.args[1:5])
    if not is_float(x) or not stored or node.args[3] is None or x.meta["val"].dim() not in (2, 3, 4):  # type: ignore[union-attr]
        return Unsupported("it normalises by the statistics of its input")
    return Operation("scale_by_channel", (x,), may_clamp=True)  # type: ignore[arg-type]


_READERS: tuple[tuple[Any, Callable[[Program, fx.Node], Finding]], ...] = (
    ({_ATEN.linear.default}, _linear),
    ({_ATEN.embedding.default}, _embedding),
    (RECURRENT, _recurrent),
    (_MATMUL, _matmul),
    (set(_ARITHMETIC), _arithmetic),
    (_SCALED, _scaled),
    ({_ATEN.cat.default}, _concat),
    ({_ATEN.where.self}, _where),
    (_SOFTMAX, _softmax),
    ({_ATEN.layer_norm.default}, _norm),
    (_POOLS | _ADAPTIVE | {_ATEN.mean.dim, _ATEN.mean.default}, _average),
    ({_ATEN.batch_norm.default}, _batch_norm),
)


_KINDS: tuple[tuple[Any, Kind], ...] = (
    ({_ATEN.linear.default}, "linear"),
    ({_ATEN.embedding.default}, "embedding"),
    (_MATMUL, "matmul"),
    ({_ATEN.cat.default}, "concat"),
    ({_ATEN.where.self}, "choice"),
    (_SOFTMAX, "softmax"),
    ({_ATEN.layer_norm.default}, "norm"),
    (_POOLS | _ADAPTIVE | {_ATEN.mean.dim, _ATEN.mean.default}, "average"),
)


# ---- what stands before a softmax ----


@dataclass(frozen=True)
class Scores:
    """softmax(where(mask, source * factor, -inf)): the factor and the mask belong to the softmax, the source is its activation."""

    source: fx.Node
    factor: float = 1.0
    mask: fx.Node | None = None
    between: tuple[fx.Node, ...] = field(default=())


def softmax_scores(node: fx.Node) -> Scores:
    """Look through the multiplication by a positive number and the mask that stand before a softmax and serve it alone."""
    source: Any = node.args[0]
    mask, factor, between = None, 1.0, []
    if source.target is _ATEN.where.ScalarOther and source.args[2] == -float("inf") and len(source.users) == 1:
        between.append(source)
        mask, source = source.args[0], source.args[1]
    scaling = source.target in (_ATEN.mul.Tensor, _ATEN.mul.Scalar) and len(source.users) == 1
    if scaling and isinstance(source.args[1], (int, float)) and source.args[1] > 0:
        between.append(source)
        factor, source = float(source.args[1]), source.args[0]
    return Scores(source, factor, mask, tuple(between))

"""lower-integer: operators between dequantize and quantize become operators on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.ops.rounding import quantize
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.integer.elementwise import (
    lower_choice,
    lower_concat,
    lower_product,
    lower_sum,
    lower_unary,
    rescale,
)
from dsopt.passes.quantize.integer.moves import carry
from dsopt.passes.quantize.integer.products import (
    embedding_on_its_grid,
    lower_convolution,
    lower_embedding,
    lower_linear,
    lower_matmul,
)
from dsopt.passes.quantize.integer.recurrent import lower_recurrent
from dsopt.passes.quantize.integer.reductions import lower_average, lower_norm, lower_softmax
from dsopt.passes.quantize.integer.signed import make_signed
from dsopt.passes.quantize.integer.states import store_states
from dsopt.passes.quantize.integer.values import Lowering, Output, StaysFloatError
from dsopt.passes.quantize.normalize import split_activations
from dsopt.passes.quantize.semantics import RECURRENT, clamp_bounds, kind_of

_DSOPT = torch.ops.dsopt
_ATEN = torch.ops.aten

_QUANTISED = (_DSOPT.quantize.default, _DSOPT.dequantize_channel.default)

_LOWERINGS: dict[str, Callable[[Lowering, fx.Node, Output], fx.Node]] = {
    "convolution": lower_convolution,
    "linear": lower_linear,
    "embedding": lower_embedding,
    "matmul": lower_matmul,
    "sum": lower_sum,
    "product": lower_product,
    "concat": lower_concat,
    "choice": lower_choice,
    "unary": lower_unary,
    "softmax": lower_softmax,
    "norm": lower_norm,
    "average": lower_average,
}


@dataclass(frozen=True)
class LowerInteger(Pass):
    """quantize(relu(conv(dequantize(x), dequantize_channel(w), b))) -> q_conv(x, w, b, ...).

    The operators and their rounding are those of `dsopt.ops.integer`. Sums are bounded with the actual weights and kept in int64
    where int32 might not hold them. What has no integer form stays float between a dequantize and a quantize, and is listed.
    """

    name: ClassVar[str] = "lower-integer"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Walk the graph once; each rounding that is met takes in what is before it."""
        if not any(node.target in _QUANTISED for node in program.graph.nodes):
            return
        split_activations(rewriter)
        make_signed(program, rewriter)
        lowering = Lowering(program, rewriter)
        for node in list(program.graph.nodes):
            if node.op != "call_function" or not node.users:  # a node that was replaced has no users either
                continue
            if node.target is _DSOPT.quantize.default:
                _lower(lowering, node)
            elif node.target in RECURRENT:
                _attempt(lowering, node, lambda each: lower_recurrent(lowering, each))
            elif node.target is _ATEN.embedding.default:
                _take_embedding(lowering, node)
            else:
                carry(lowering, node)
        store_states(program, rewriter)
        rewriter.erase_dead()


def _attempt(lowering: Lowering, node: fx.Node, lower: Callable[[fx.Node], None]) -> None:
    try:
        lower(node)
    except StaysFloatError as reason:
        lowering.rewriter.skip(node, f"it stays float: {reason}")


def _take_embedding(lowering: Lowering, node: fx.Node) -> None:
    found = embedding_on_its_grid(lowering, node)
    if found is not None:
        real = lowering.call(_DSOPT.dequantize.default, found.q, found.scale, found.zero, like=node)
        lowering.rewriter.replace(node, real)


def _lower(lowering: Lowering, node: fx.Node) -> None:
    """Replace one quantize by the integer operator that gives its integers."""
    arguments: tuple[Any, ...] = node.args
    value, scale, zero, low, high = arguments
    if lowering.program.dtype(node) not in (torch.int8, torch.int16):
        return
    bits = 8 if lowering.program.dtype(node) == torch.int8 else 16
    while isinstance(value, fx.Node) and (bounds := clamp_bounds(value)) is not None and value.args[0] is not None:
        limits = [int(quantize(torch.tensor(bound).numpy(), scale, zero, low, high)) for bound in bounds]
        low, high = max(low, limits[0]), min(high, limits[1])
        value = value.args[0]
    out = Output(float(scale), int(zero), int(low), int(high), bits, node)
    real = lowering.real(value)
    if real is not None:
        _attempt(lowering, node, lambda each: lowering.rewriter.replace(each, rescale(lowering, real, out)))
        return
    kind = kind_of(value) if isinstance(value, fx.Node) else None
    if kind not in _LOWERINGS:
        return

    def lower(each: fx.Node) -> None:
        made = _LOWERINGS[kind](lowering, value, out)
        for key in ("layer", "source"):
            made.meta[key] = value.meta.get(key, "")
        lowering.rewriter.replace(each, made)

    _attempt(lowering, value, lambda _: lower(node))

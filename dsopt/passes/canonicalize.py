"""canonicalize: drop what says nothing about the result, and give each operation one spelling."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.torch_private import named_arguments
from dsopt.passes.base import Pass, PassContext

_ATEN = torch.ops.aten

_GUARDS = {
    _ATEN._assert_scalar.default,
    _ATEN._assert_async.msg,
    _ATEN._assert_tensor_metadata.default,
    _ATEN.sym_constrain_range.default,
    _ATEN.sym_constrain_range_for_size.default,
}
_COPIES = {
    _ATEN.alias.default,
    _ATEN.clone.default,
    _ATEN.contiguous.default,
    _ATEN.detach.default,
    _ATEN.detach_.default,
    _ATEN.lift_fresh_copy.default,
}
_RESHAPES = {
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN.expand.default,
    _ATEN._unsafe_view.default,
    _ATEN.slice.Tensor,
}
_ATTENTION = {_ATEN.scaled_dot_product_attention.default, torch.ops.dsopt.sparse_attention.default}
_SAME_PADDED: dict[Any, Any] = {
    _ATEN.conv1d.padding: _ATEN.conv1d.default,
    _ATEN.conv2d.padding: _ATEN.conv2d.default,
    _ATEN.conv3d.padding: _ATEN.conv3d.default,
}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Remove guards, copies and reshapes to the same shape; freeze attention's default scale; undo torch's split of batch_norm.

    clone(x) -> x
    scaled_dot_product_attention(q, k, v) -> scaled_dot_product_attention(q, k, v, scale=1/sqrt(D))
    getitem(_native_batch_norm_legit_no_training(x, ...), 0) -> batch_norm(x, ..., training=False)
    conv2d(x, w, b, s, "same") -> conv2d(x, w, b, s, [p, p]) where both sides get the same padding
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite every node that has a simpler spelling."""
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target in _GUARDS:
                program.graph.erase_node(node)
                rewriter.changes.append(f"%{node.name} guard dropped")
            elif node.target in _COPIES or (node.target in _RESHAPES and _keeps_shape(node)):
                _bypass(rewriter, node)
            elif node.target in _ATTENTION:
                _freeze_scale(rewriter, node)
            elif node.target is operator.getitem:
                _join_batch_norm(rewriter, node)
            elif node.target in _SAME_PADDED:
                _number_padding(rewriter, node)
        rewriter.erase_dead()


def _bypass(rewriter: Rewriter, node: fx.Node) -> None:
    source = node.args[0]
    if isinstance(source, fx.Node) and source.meta["val"].dtype == node.meta["val"].dtype:
        rewriter.replace(node, source)


def _keeps_shape(node: fx.Node) -> bool:
    """Tell whether the shape stays as it is, written the same way; a slice must also keep every element (step 1 from 0)."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    before, after = source.meta["val"], node.meta["val"]
    if node.target is _ATEN.slice.Tensor:
        start = node.args[2] if len(node.args) > 2 else node.kwargs.get("start")
        step = node.args[4] if len(node.args) > 4 else node.kwargs.get("step", 1)
        if start not in (0, None) or step != 1:
            return False
    return [str(size) for size in before.shape] == [str(size) for size in after.shape]


def _freeze_scale(rewriter: Rewriter, node: fx.Node) -> None:
    """The default scale is 1/sqrt(D) of the query that comes in; a pass that cuts heads would silently change it."""
    if named_arguments(node)["scale"] is not None:
        return
    query = node.args[0]
    assert isinstance(query, fx.Node)
    head_size = query.meta["val"].shape[-1]
    if not isinstance(head_size, int):
        rewriter.skip(node, "the head size varies, so its scale cannot be frozen")
    elif node.target is _ATEN.scaled_dot_product_attention.default:
        rewriter.set_keyword(node, "scale", 1.0 / math.sqrt(head_size))
    else:
        rewriter.set_argument(node, 5, 1.0 / math.sqrt(head_size))


def _join_batch_norm(rewriter: Rewriter, node: fx.Node) -> None:
    split, index = node.args
    if (
        not isinstance(split, fx.Node)
        or index != 0
        or split.target is not _ATEN._native_batch_norm_legit_no_training.default
    ):
        return
    x, weight, bias, mean, variance, momentum, eps = split.args
    joined = rewriter.call(
        _ATEN.batch_norm.default, x, weight, bias, mean, variance, False, momentum, eps, False, like=node
    )  # fmt: skip
    rewriter.replace(node, joined)


def _number_padding(rewriter: Rewriter, node: fx.Node) -> None:
    arguments: list[Any] = [*node.args, *[None, 1, "valid", 1, 1][len(node.args) - 2 :]]
    x, weight, bias, stride, padding, dilation, groups = arguments
    kernel = weight.meta["val"].shape[2:]
    stride = [stride] * len(kernel) if isinstance(stride, int) else stride
    steps = (
        [dilation] * len(kernel)
        if isinstance(dilation, int)
        else list(dilation) * (len(kernel) if len(dilation) == 1 else 1)
    )
    totals = [0 if padding == "valid" else step * (size - 1) for step, size in zip(steps, kernel, strict=True)]
    if any(total % 2 for total in totals):
        before_after = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        x = rewriter.call(_ATEN.constant_pad_nd.default, x, before_after, like=node)
        totals = [0] * len(totals)
    plain = rewriter.call(
        _SAME_PADDED[node.target], x, weight, bias, stride, [total // 2 for total in totals], steps, groups, like=node
    )  # fmt: skip
    rewriter.replace(node, plain)

"""quantize-dynamic: integer weights for linear layers, whose activations are rounded when they run; without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.errors import PassError, UsageError
from dsopt.ir import Program, Rewriter
from dsopt.ops.quantized import storage_dtype
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.precision import Precision
from dsopt.passes.quantize.qparams import quantized_weight, weight_grid

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt
_PRODUCTS = {_ATEN.matmul.default, _ATEN.mm.default}
ROW, TENSOR = "row", "tensor"


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """linear(x, w, b) -> dynamic_linear(x, int8 of w, s, b); so do matmul(x, w), mm(x, w) and addmm(b, x, w) with a stored w.

    For transformers on the cpu, where the time goes into linear layers and activations differ much from token to token.
    keep: layers that stay float, as "head|encoder.*.up".  weights: 8 or 4 bits, per channel.  activations: "row" gives each row a
    step of its own, so that no token changes the rounding of another; "tensor" gives all of them one.
    """

    name: ClassVar[str] = "quantize-dynamic"
    keep: str = ""
    weights: int = 8
    activations: str = ROW

    def __post_init__(self) -> None:
        """Refuse values that mean nothing. Raises ValueError."""
        self._precision()
        if self.activations not in (ROW, TENSOR):
            raise ValueError(f"activations is {self.activations!r} and must be one of {ROW}, {TENSOR}")

    def _precision(self) -> Precision:
        return Precision(weights=self.weights, keep=self.keep)

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite every linear layer with a stored weight. Raises UsageError for another target than the cpu."""
        if context.target is not None and context.target.kind != "cpu":
            raise UsageError(
                "DS0350", f"activations cannot be rounded at run time on {context.target.name}",
                why="the code generated for it knows the steps of integers when it is compiled",
                fix="calibrate instead: --passes \"...,quantize\" --data calib.npz",
            )  # fmt: skip
        precision = self._precision()
        precision.check_patterns(program)
        stored: dict[tuple[fx.Node, bool], tuple[fx.Node, fx.Node]] = {}
        for node in list(program.graph.nodes):
            layer = _layer(program, node)
            if isinstance(layer, str):
                rewriter.skip(node, layer)
            elif layer is not None and precision.is_kept(program, node):
                rewriter.skip(node, "it is kept in float, as the option says")
            elif layer is not None:
                key = (layer.weight, layer.is_turned)
                if key not in stored:
                    stored[key] = self._stored(program, rewriter, node, layer)
                arguments = (layer.x, *stored[key], layer.bias, self.weights, self.activations == ROW)
                rewriter.replace(node, rewriter.call(_DSOPT.dynamic_linear.default, *arguments, like=node))
        rewriter.erase_dead()

    def _stored(self, program: Program, rewriter: Rewriter, node: fx.Node, layer: _Layer) -> tuple[fx.Node, fx.Node]:
        """Store the integers of a weight and their scale."""
        weight = program.weight(layer.weight)
        assert weight is not None
        if not bool(weight.isfinite().all()):
            raise PassError(
                "DS0316", "a weight holds NaN or infinity", where=program.where(node), fix="mend the model's weights"
            )
        rows: Tensor = weight.detach().mT if layer.is_turned else weight.detach()
        grid = weight_grid(rows, 0, self.weights, per="channel", group=0, search=self.weights < 8, power_of_two=False)
        integers = quantized_weight(rows, grid.scale, 0, 0, grid.low, grid.high)
        assert integers.dtype == storage_dtype(grid.low, grid.high)
        others = [user for user in layer.weight.users if _layer(program, user) is None]
        if others:
            rewriter.note(node, f"its weight stays in the file as floats, too, for %{others[0].name}")
        name = program.weight_name(layer.weight)
        kept = rewriter.add_weight(f"{name}.int{self.weights}", integers.contiguous(), "constant")
        return kept, rewriter.add_weight(f"{name}.scale", grid.scale, "constant")


@dataclass(frozen=True)
class _Layer:
    """A product of rows with a stored matrix. is_turned: the matrix is (K, N), not (N, K)."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    is_turned: bool


def _layer(program: Program, node: fx.Node) -> _Layer | str | None:
    """Return a linear layer, why one stays as it is, or None for another operator."""
    args: Any = node.args
    if node.op != "call_function":
        return None
    if node.target is _ATEN.linear.default:
        bias: Any = args[2] if len(args) > 2 else node.kwargs.get("bias")
        layer = _Layer(args[0], args[1], bias, False)
    elif node.target in _PRODUCTS and program.weight(args[1]) is not None:
        layer = _Layer(args[0], args[1], None, True)
    elif node.target is _ATEN.addmm.default and program.weight(args[2]) is not None and not node.kwargs:
        layer = _Layer(args[1], args[2], args[0], True)
    elif node.target is _DSOPT.linear_act.default:
        return "its activation was fused; leave fuse-activation out, or run it afterwards"
    else:
        return None
    return _obstacle(program, layer) or layer


def _obstacle(program: Program, layer: _Layer) -> str | None:
    weight = program.weight(layer.weight)
    if weight is None:
        return "its weight is computed or rounded already"
    x = layer.x.meta["val"]
    if weight.dim() != 2 or weight.dtype != torch.float32 or x.dtype != torch.float32:
        return "its weight is no matrix of float32"
    if x.dim() < 2 or (layer.bias is not None and layer.bias.meta["val"].dim() != 1):
        return "it multiplies no rows"
    return None

"""quantize-convert: store integers in the place of rounded weights, and write the rounding of activations as two operators."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.errors import PassError
from dsopt.ir import Program, Rewriter
from dsopt.ir.convolution import convolution, is_convolution
from dsopt.ops.quantized import GROUP_LEVELS, effective_scale, round_to_grid, spread_scale, storage_dtype
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.semantics import RECURRENT, is_move

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt
_FAKE = _DSOPT.fake_quantize.default
_FOLDED = "run fold-batch-norm before quantize-convert"

BIAS_LIMIT = 1 << 29
"""Biases are kept below this, half of what an accumulator may hold."""


@dataclass(frozen=True)
class QuantizeConvert(Pass):
    """fake_quantize(x, s, z) -> dequantize(quantize(x, s, z), s, z); fake_quantize(w, s, 0) -> dequantize_channel(int8 of w, s).

    A bias becomes int32 in steps of the scales of input and weight. The program gives the same numbers as before, but for biases,
    which move by half such a step. A batch norm that no convolution takes in becomes a depthwise one.
    """

    name: ClassVar[str] = "quantize-convert"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Convert activations, then weights, whose steps depend on them, then biases."""
        fakes = [node for node in program.graph.nodes if node.target is _FAKE]
        if not fakes:
            return
        for node in [each for each in fakes if program.weight(each.args[0]) is None]:
            _convert_activation(program, rewriter, node)
        for node in list(program.graph.nodes):
            if node.target is _ATEN.batch_norm.default:
                _convert_norm(program, rewriter, node)
        for node in list(program.graph.nodes):
            if node.target is _FAKE:
                _convert_stored(program, rewriter, node)
        for node in list(program.graph.nodes):
            if is_convolution(node) or node.target is _ATEN.linear.default:
                _convert_bias(program, rewriter, node)
            elif node.target in RECURRENT:
                _convert_bias(program, rewriter, node)
                _mark_recurrent(rewriter, node)
        rewriter.erase_dead()


def _grid(program: Program, node: fx.Node) -> tuple[Tensor, Tensor, int, int, int, int]:
    """Return scale, zero point, axis, group, low and high of a fake_quantize."""
    _, scale_node, zero_node, axis, group, low, high, power_of_two = node.args
    scale, zero = program.weight(scale_node), program.weight(zero_node)
    assert scale is not None
    assert zero is not None
    options: Any = (axis, group, low, high)
    if not bool(scale.isfinite().all()):
        raise PassError(
            "DS0317",
            "a scale is NaN or infinite",
            where=program.where(node),
            fix="lower the learning rate of the training",
        )
    return effective_scale(scale.detach(), options[1], bool(power_of_two)), zero.detach().round(), *options


# ---- activations ----


def _convert_activation(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    scale, zero, _, _, low, high = _grid(program, node)
    step, zero_point = float(scale), int(zero)
    integers = rewriter.call(_DSOPT.quantize.default, node.args[0], step, zero_point, low, high, like=node)
    rewriter.replace(node, rewriter.call(_DSOPT.dequantize.default, integers, step, zero_point, like=node))


def _mark_recurrent(rewriter: Rewriter, node: fx.Node) -> None:
    """Write the grid that a recurrent layer's sequence is on as a rounding that changes nothing."""
    step, zero_point = node.args[6], node.args[7]
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0 and user.users:
            readers = list(user.users)
            integers = rewriter.wrap(user, _DSOPT.quantize.default, step, zero_point, -128, 127, users=readers)
            rewriter.wrap(integers, _DSOPT.dequantize.default, step, zero_point)


# ---- weights ----


def _convert_stored(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    scale, zero, axis, group, low, high = _grid(program, node)
    source: Any = node.args[0]
    weight, name = program.weight(source), program.weight_name(source)
    assert weight is not None
    if low != -high:  # an operand: on the grid of an activation
        values = _integers(weight, scale, zero, axis, group, low, high)
        stored = rewriter.add_weight(f"{name}.int8" if high < 1 << 7 else f"{name}.int16", values, "constant")
        made = rewriter.call(_DSOPT.dequantize.default, stored, float(scale), int(zero), like=node)
        rewriter.replace(node, made)
        return
    scale = _raised(program, rewriter, node, scale, axis, group)
    bits = (high + 1).bit_length()
    stored = rewriter.add_weight(
        f"{name}.int{bits}", _integers(weight, scale, zero, axis, group, low, high), "constant"
    )
    kept = rewriter.add_weight(f"{name}.scale", scale, "constant")
    options = (kept, None, axis, group, bits)
    rewriter.replace(node, rewriter.call(_DSOPT.dequantize_channel.default, stored, *options, like=node))


def _integers(weight: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, low: int, high: int) -> Tensor:
    steps = spread_scale(scale, weight.shape, axis, group)
    shift = zero if zero.dim() == 0 else torch.zeros(())  # weights are symmetric
    return round_to_grid(weight.detach().float(), steps, shift, low, high).to(storage_dtype(low, high))


def _raised(program: Program, rewriter: Rewriter, node: fx.Node, scale: Tensor, axis: int, group: int) -> Tensor:
    """Return the scale of a weight, raised for channels whose bias would not fit: their weights are next to nothing beside it."""
    for user in node.users:
        bias, step = _bias(program, user), _input_step(user)
        if bias is None or step is None or scale.dim() == 0:
            continue
        least = (bias.detach().abs().double() / (step * BIAS_LIMIT)).float()
        least = least[:, None] * GROUP_LEVELS if group else least
        if least.shape[0] == scale.shape[0] and bool((scale < least).any()):
            count = int((scale < least).reshape(scale.shape[0], -1).any(1).sum())
            rewriter.note(
                user,
                f"the weights of {count} channels are next to nothing beside their bias, and were rounded to its steps",
            )
            scale = torch.maximum(scale, least.expand_as(scale))
    return scale


# ---- biases ----


def _bias_node(node: fx.Node) -> fx.Node | None:
    if is_convolution(node):
        return convolution(node).bias
    found: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return found if isinstance(found, fx.Node) else None


def _bias(program: Program, node: fx.Node) -> Tensor | None:
    if not is_convolution(node) and node.target is not _ATEN.linear.default:
        return None
    bias = _bias_node(node)
    return None if bias is None else program.weight(bias)


def _input_step(node: fx.Node) -> float | None:
    """Return the scale of a node's activation, looked up through moves; None if it is float."""
    source: Any = node.args[0]
    while isinstance(source, fx.Node) and source.target is not _DSOPT.dequantize.default and is_move(source):
        source = source.args[0]
    if not isinstance(source, fx.Node) or source.target is not _DSOPT.dequantize.default:
        return None
    step: Any = source.args[1]
    return float(step)


def _convert_bias(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    for source, weight, step in _biased(node):
        bias = program.weight(source)
        if source is None or bias is None or step is None or weight.target is not _DSOPT.dequantize_channel.default:
            continue
        unit = _bias_unit(program, weight, step, bias)
        integers = torch.round(bias.detach().double() / unit.double())
        name = program.weight_name(source)
        stored = integers.clamp(1 - (1 << 31), (1 << 31) - 1).to(torch.int32)
        values = rewriter.add_weight(f"{name}.int32", stored, "constant")
        kept = rewriter.add_weight(f"{name}.scale", unit, "constant")
        made = rewriter.call(_DSOPT.dequantize_channel.default, values, kept, None, 0, 0, 32, like=node)
        node.replace_input_with(source, made)
        rewriter.changes.append(f"%{node.name} bias -> int32")


def _biased(node: fx.Node) -> list[tuple[fx.Node | None, fx.Node, float | None]]:
    """Return (bias, the weight whose products it is added to, the scale of what that is multiplied with)."""
    args: Any = node.args
    if node.target is _DSOPT.fake_quantized_lstm.default:
        return [(args[5], args[3], _input_step(node))]
    if node.target is _DSOPT.fake_quantized_gru.default:
        return [(args[4], args[2], _input_step(node)), (args[5], args[3], float(args[6]))]
    return [(_bias_node(node), args[1], _input_step(node))]


def _bias_unit(program: Program, weight: fx.Node, step: float, bias: Tensor) -> Tensor:
    """Return the step of each element of a bias: that of the products."""
    _, scale_node, _, _, group, _ = weight.args
    scale = program.weight(scale_node)
    assert scale is not None
    per_channel = scale.amax(-1) / GROUP_LEVELS if group else scale.expand(bias.shape[0]) if scale.dim() == 0 else scale
    if per_channel.shape != bias.shape:  # the groups of a transposed convolution share the scales of a channel
        per_channel = per_channel.repeat(bias.shape[0] // per_channel.shape[0])
    return (per_channel.double() * step).float()


# ---- batch norm on its own ----


def _convert_norm(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    producer: Any = node.args[0]
    if is_convolution(producer) or producer.target is _ATEN.linear.default:
        if any(each.target is _FAKE for each in producer.all_input_nodes):
            raise PassError(
                "DS0318", "a batch norm still follows quantised weights", where=program.where(node), fix=_FOLDED
            )
        return
    if _input_step(node) is None:
        return
    gamma, beta, mean, variance = (
        None if item is None else program.weight(item).detach().double()  # type: ignore[union-attr]
        for item in node.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    epsilon: Any = node.args[7]
    factor = torch.rsqrt(variance + float(epsilon))
    factor = factor if gamma is None else factor * gamma
    shift = (0 if beta is None else beta) - mean * factor
    dims = max(int(producer.meta["val"].dim()) - 2, 1)
    base = program.layer(node) or node.name
    scale = torch.where(factor == 0, 1.0, factor.abs() / 127).float()
    integers = (torch.sign(factor) * 127).to(torch.int8).reshape(-1, 1, *[1] * dims)
    weight = rewriter.add_weight(f"{base}.weight.int8", integers, "constant")
    kept = rewriter.add_weight(f"{base}.weight.scale", scale, "constant")
    bias = rewriter.add_weight(f"{base}.bias.folded", shift.float(), "constant")
    real = rewriter.call(_DSOPT.dequantize_channel.default, weight, kept, None, 0, 0, 8, like=node)
    is_flat = producer.meta["val"].dim() == 2
    x = rewriter.call(_ATEN.unsqueeze.default, producer, -1, like=node) if is_flat else producer
    ones, zeros = [1] * dims, [0] * dims
    y = rewriter.call(_ATEN.convolution.default, x, real, bias, ones, zeros, ones, False, zeros, len(factor), like=node)
    rewriter.replace(node, rewriter.call(_ATEN.squeeze.dim, y, -1, like=node) if is_flat else y)

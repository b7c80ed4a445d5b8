"""LSTM and GRU layers on integers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from dsopt.ops.integer.common import pack_nibbles
from dsopt.ops.integer.recurrent import SIGMOID, TANH
from dsopt.ops.recurrent import GATE_BITS, STATE_BITS
from dsopt.passes.quantize.integer.values import Array, Lowering, StaysFloatError, Stored

_DSOPT = torch.ops.dsopt


def lower_recurrent(lowering: Lowering, node: fx.Node) -> None:
    """fake_quantized_lstm(dequantize(x), h, c, weights) -> dequantize(q_lstm(x, quantize(h), quantize(c), weights)[i])"""
    if node.target is _DSOPT.fake_quantized_lstm.default:
        _lstm(lowering, node)
    else:
        _gru(lowering, node)


def _lstm(lowering: Lowering, node: fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    x, h0, c0, w_ih, w_hh, bias, h_scale, h_zero, cell_bits, batch_first, reverse = arguments
    gates = _Gates(lowering, node, x, w_ih, w_hh, h_scale)
    start = (
        _start(lowering, node, h0, h_scale, h_zero, 8),
        _start(lowering, node, c0, 2.0**-cell_bits, 0, 16),
    )
    ending = lowering.multiplier(np.array([2.0**-30 / h_scale]))
    q = lowering.call(
        _DSOPT.q_lstm.default, gates.x.q, *start, *gates.weights, gates.bias(bias, gates.input_units), *gates.multipliers,
        *gates.tables, gates.x.zero, h_zero, gates.bits, cell_bits, int(ending[0][0]), int(ending[1][0]), batch_first, reverse, like=node,
    )  # fmt: skip
    _replace(lowering, node, q, [(h_scale, h_zero), (h_scale, h_zero), (2.0**-cell_bits, 0)])


def _gru(lowering: Lowering, node: fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    x, h0, w_ih, w_hh, b_ih, b_hh, h_scale, h_zero, batch_first, reverse = arguments
    gates = _Gates(lowering, node, x, w_ih, w_hh, h_scale)
    ending = lowering.multiplier(np.array([2.0**-STATE_BITS / h_scale]))
    q = lowering.call(
        _DSOPT.q_gru.default, gates.x.q, _start(lowering, node, h0, 2.0**-STATE_BITS, 0, 16), *gates.weights,
        gates.bias(b_ih, gates.input_units), gates.bias(b_hh, gates.hidden_units), *gates.multipliers, *gates.tables, gates.x.zero, h_zero,
        gates.bits, int(ending[0][0]), int(ending[1][0]), batch_first, reverse, like=node,
    )  # fmt: skip
    _replace(lowering, node, q, [(h_scale, h_zero), (2.0**-STATE_BITS, 0)])


class _Gates:
    """What the sums of the gates need: weights, scales, tables."""

    def __init__(self, lowering: Lowering, node: fx.Node, x: Any, w_ih: Any, w_hh: Any, h_scale: float) -> None:
        self.lowering, self.node = lowering, node
        self.x = lowering.need(x)
        if self.x.bits != 8:
            raise StaysFloatError("its input has 16 bits, and 8 are taken")
        stored = [lowering.stored(each) for each in (w_ih, w_hh)]
        rows = stored[0].values.shape[0]
        self.bits = stored[0].bits
        if any(each.group or each.bits != self.bits for each in stored):
            raise StaysFloatError("its two weights are not written alike")
        self.input_units = self.x.scale * lowering.channel_scale(stored[0], rows)
        self.hidden_units = h_scale * lowering.channel_scale(stored[1], rows)
        for each, largest in zip(stored, (self.x.largest, 255), strict=True):
            if int(np.abs(each.values).sum(1).max()) * largest >= 1 << 29:
                raise StaysFloatError("the sums of its gates could overflow")
        self.weights = [self._weight(each) for each in stored]
        self.multipliers: list[fx.Node] = []
        for each, units in zip(stored, (self.input_units, self.hidden_units), strict=True):
            self.multipliers += lowering.multipliers(each.name, units * (1 << GATE_BITS), node)
        self.tables = (lowering.constant("sigmoid_table", SIGMOID), lowering.constant("tanh_table", TANH))

    def _weight(self, weight: Stored) -> fx.Node:
        values = weight.values.astype(np.int8)
        if self.bits == 4:
            return self.lowering.constant(f"{weight.name}.packed", pack_nibbles(values))
        return self.lowering.constant(weight.name, values)

    def bias(self, node: Any, units: Array) -> fx.Node | None:
        values = self.lowering.bias(node, units)
        if values is None:
            return None
        if np.abs(values).max(initial=0) >= 1 << 29:
            raise StaysFloatError("its bias does not fit the sums of its gates")
        name = self.lowering.program.weight_name(node) or f"{node.name}.bias"
        return self.lowering.constant(f"{name}.int32", values.astype(np.int32))


def _start(lowering: Lowering, node: fx.Node, first: Any, scale: float, zero: int, bits: int) -> fx.Node:
    """Return a first state as integers."""
    real = lowering.real(first)
    if real is not None and (real.scale, real.zero, real.bits) == (scale, zero, bits):
        return real.q
    half = 1 << (bits - 1)
    return lowering.call(_DSOPT.quantize.default, first, scale, zero, -half, half - 1, like=node)


def _replace(lowering: Lowering, node: fx.Node, q: fx.Node, grids: list[tuple[float, int]]) -> None:
    for user in list(node.users):
        number: Any = user.args[1]
        integers = lowering.call(operator.getitem, q, number, like=node)
        lowering.rewriter.replace(user, lowering.call(_DSOPT.dequantize.default, integers, *grids[number], like=node))

"""What a lowering sees: integers behind a dequantize, stored weights, the grid of a result; and the constants that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ops.integer.common import pack_nibbles
from dsopt.ops.quantized import GROUP_LEVELS
from dsopt.ops.rounding import (
    ACCUMULATOR_LIMIT,
    MULTIPLIER_BITS,
    WIDE_LIMIT,
    WIDE_MULTIPLIER_BITS,
    multiplier_and_shift,
)

_DSOPT = torch.ops.dsopt

Array = npt.NDArray[Any]


class StaysFloatError(Exception):
    """An operator cannot be lowered: why."""


@dataclass(frozen=True)
class Real:
    """A real value as integers: scale * (q - zero). bits: 8 or 16."""

    q: fx.Node
    scale: float
    zero: int
    bits: int

    @property
    def largest(self) -> int:
        """Return the largest magnitude of q - zero."""
        half = 1 << (self.bits - 1)
        return max(self.zero + half, half - 1 - self.zero)


@dataclass(frozen=True)
class Stored:
    """A symmetric stored weight. values: int64, logical shape.  scale: () or per channel of `axis` or (N, groups) of `group` inputs."""

    values: Array
    scale: Array
    axis: int
    group: int
    bits: int
    name: str


@dataclass(frozen=True)
class Output:
    """The grid of a result, and the range that a clamp leaves of it. like: the node whose layer and line the result has."""

    scale: float
    zero: int
    low: int
    high: int
    bits: int
    like: fx.Node

    @property
    def tail(self) -> tuple[int, int, int, int]:
        """Return what every integer operator ends with: y_zero, low, high, bits."""
        return self.zero, self.low, self.high, self.bits


class Lowering:
    """One program being lowered: reads values, makes constants and nodes."""

    def __init__(self, program: Program, rewriter: Rewriter) -> None:
        self.program, self.rewriter = program, rewriter
        self._constants: dict[tuple[str, bytes, str], fx.Node] = {}

    # ---- reading ----

    def real(self, node: object) -> Real | None:
        """Return what a per-tensor dequantize of int8 or int16 stands for; None for any other node."""
        if not isinstance(node, fx.Node) or node.target is not _DSOPT.dequantize.default:
            return None
        q, scale, zero = node.args
        dtype = self.program.dtype(q)  # type: ignore[arg-type]
        if dtype not in (torch.int8, torch.int16):
            return None
        return Real(q, float(scale), int(zero), 8 if dtype == torch.int8 else 16)  # type: ignore[arg-type]

    def need(self, node: object) -> Real:
        """Return the integers of an activation. Raises StaysFloatError if it is float."""
        found = self.real(node)
        if found is None:
            raise StaysFloatError("one of its inputs is float")
        return found

    def stored(self, node: Any) -> Stored:
        """Return a stored weight. Raises StaysFloatError if it is float, asymmetric or wider than 8 bits."""
        if not isinstance(node, fx.Node) or node.target not in (
            _DSOPT.dequantize_channel.default,
            _DSOPT.dequantize.default,
        ):
            raise StaysFloatError("its weight is float")
        integers: Any = node.args[0]
        values, name = self.program.weight(integers), self.program.weight_name(integers)
        if values is None or name is None or values.dtype != torch.int8:
            raise StaysFloatError("its weight is not stored as int8")
        if node.target is _DSOPT.dequantize.default:
            if node.args[2] != 0:
                raise StaysFloatError("its weight has a zero point that is not 0")
            return Stored(values.numpy().astype(np.int64), np.float64(node.args[1]), 0, 0, 8, name)  # type: ignore[arg-type]
        _, scale_node, zero_node, axis, group, bits = node.args
        zero = self.program.weight(zero_node)
        scale = self.program.weight(scale_node)
        if scale is None or (zero_node is not None and (zero is None or bool(zero.any()))):
            raise StaysFloatError("its weight has zero points that are not 0")
        return Stored(values.numpy().astype(np.int64), scale.double().numpy(), int(axis), int(group), int(bits), name)  # type: ignore[arg-type]

    def bias(self, node: Any, units: Array) -> Array | None:
        """Return a bias as int64 in steps of `units`; None if there is none. Raises StaysFloatError if it is computed."""
        if node is None:
            return None
        if node.target is _DSOPT.dequantize_channel.default and self.program.weight(node.args[0]) is not None:
            stored, scale = self.program.weight(node.args[0]), self.program.weight(node.args[1])
            assert stored is not None
            assert scale is not None
            if stored.dtype == torch.int32 and np.allclose(scale.double().numpy(), units, rtol=1e-5, atol=0):
                return stored.numpy().astype(np.int64)
            real = stored.double().numpy() * scale.double().numpy()
        else:
            kept = self.program.weight(node)
            if kept is None:
                raise StaysFloatError("its bias is computed, not stored")
            real = kept.detach().double().numpy()
        steps: Array = np.rint(real / units)
        if np.abs(steps).max(initial=0) >= ACCUMULATOR_LIMIT // 2:
            raise StaysFloatError("its bias does not fit the sums of its products")
        return steps.astype(np.int64)

    # ---- making ----

    def constant(self, name: str, values: Array) -> fx.Node:
        """Store an array; an equal one of the same name is stored once."""
        key = (name, values.tobytes(), f"{values.dtype}{values.shape}")
        if key not in self._constants or not self._constants[key].users:  # what nothing reads may have been dropped
            self._constants[key] = self.rewriter.add_weight(name, torch.from_numpy(np.array(values)), "constant")
        return self._constants[key]

    def call(self, op: Any, *args: Any, like: fx.Node) -> fx.Node:
        """Insert a node before `like`."""
        return self.rewriter.call(op, *args, like=like)

    def weight_arguments(self, weight: Stored) -> tuple[fx.Node, fx.Node | None, int, list[int], int]:
        """Return weight, factors, group, weight_shape and weight_bits as the integer operators take them."""
        values = weight.values.astype(np.int8)
        packed = pack_nibbles(values) if weight.bits == 4 else values
        node = self.constant(f"{weight.name}.packed" if weight.bits == 4 else weight.name, packed)
        factors = (
            self.constant(f"{weight.name}.factors", self.factors(weight).astype(np.uint8)) if weight.group else None
        )
        return node, factors, weight.group, list(values.shape), weight.bits

    def factors(self, weight: Stored) -> Array:
        """Return the whole-numbered factor of each group. Raises StaysFloatError where the scales are no such multiples."""
        step = weight.scale.max(-1, keepdims=True) / GROUP_LEVELS
        factors: Array = np.rint(weight.scale / step)
        if not np.allclose(factors * step, weight.scale, rtol=1e-4, atol=0) or factors.min() < 1:
            raise StaysFloatError(
                f"the scales of its groups are no whole multiples of a {GROUP_LEVELS}th of the largest of a channel"
            )
        return factors

    def channel_scale(self, weight: Stored, channels: int) -> Array:
        """Return (channels,) scales of sums of products: of a channel, or of the smallest step of its groups."""
        if weight.group:
            result: Array = weight.scale.max(-1) / GROUP_LEVELS
            return result
        scale: Array = np.broadcast_to(weight.scale, (channels,)) if weight.scale.ndim == 0 else weight.scale
        return scale if len(scale) == channels else np.tile(scale, channels // len(scale))

    def multipliers(self, name: str, factors: Array, node: fx.Node, wide: bool = False) -> tuple[fx.Node, fx.Node]:
        """Store real factors as multipliers and shifts; says where a channel's factor is too small to matter."""
        multiplier, shift = self.multiplier(factors, wide)
        dead = int(((multiplier == 0) & (np.asarray(factors) > 0)).sum())
        if dead:
            self.rewriter.note(
                node, f"the products of {dead} channels are below half a step of the result, whatever the input"
            )
        return self.constant(f"{name}.multiplier", multiplier), self.constant(f"{name}.shift", shift)

    def multiplier(self, factors: Array, wide: bool = False) -> tuple[Array, Array]:
        """Return real factors as multipliers and shifts. Raises StaysFloatError for one that is too large."""
        try:
            return multiplier_and_shift(factors, WIDE_MULTIPLIER_BITS if wide else MULTIPLIER_BITS)
        except ValueError as problem:
            raise StaysFloatError(f"its result has far smaller steps than its sums: {problem}") from problem

    def is_wide(self, bound: int, node: fx.Node) -> bool:
        """Tell whether sums of up to `bound` need int64, and say so. Raises StaysFloatError beyond that."""
        if bound < ACCUMULATOR_LIMIT:
            return False
        if bound >= WIDE_LIMIT:
            raise StaysFloatError(f"its sums could reach {bound:,}, beyond {WIDE_LIMIT:,}")
        self.rewriter.note(
            node,
            f"its sums could reach {bound:,} with its weights, beyond {ACCUMULATOR_LIMIT:,}: they are kept in int64",
        )
        return True


def as_tensor(values: Array) -> Tensor:
    """Return a tensor of its own."""
    return torch.from_numpy(np.array(values))

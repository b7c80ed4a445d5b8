"""What quantisation did to each value and weight, measured on data: ranges, what lies beyond the grid, signal over noise, histograms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dsopt.feeds import Feed
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from dsopt.ops.quantized import spread_scale

_DSOPT = torch.ops.dsopt

_BINS = 48


@dataclass(frozen=True)
class ValueStatistics:
    """One rounded value ("activation") or stored weight ("weight").

    scale: of a weight, the least and the largest.  grid: the real numbers at the ends of the integers.  observed: of the value before
    rounding.  saturated: share of elements beyond the grid.  snr: of the rounded value, all that was rounded before it included,
    against the float model's, in decibels.  histogram: counts over `observed`, of integers for weights.
    saturated and snr are None where there is no float value to compare with, as for weights that came rounded.
    """

    node: str
    layer: str
    op: str
    kind: str
    bits: int
    scale: tuple[float, float]
    zero_point: int
    grid: tuple[float, float]
    observed: tuple[float, float]
    saturated: float | None
    snr: float | None
    histogram: tuple[int, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass
class _Watch:
    """Sums over samples of one value."""

    low: float = np.inf
    high: float = -np.inf
    beyond: int = 0
    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    parts: list[Tensor] = field(default_factory=list)


def quantization_statistics(
    rounded: Program, twin: Program | None, feeds: Sequence[Feed]
) -> tuple[ValueStatistics, ...]:
    """Measure a program in the form of quantize and dequantize on `feeds`. twin: the float program that it was made of."""
    rounding = [
        node
        for node in rounded.graph.nodes
        if node.target is _DSOPT.quantize.default and isinstance(node.args[0], fx.Node)
    ]
    watches = {node: _Watch() for node in rounding}
    known = set() if twin is None else {node.name for node in twin.graph.nodes}
    for feed in feeds:
        wanted = (
            {} if twin is None else _values(twin, feed, {_origin(rounded, node.args[0]) for node in rounding} & known)
        )
        _see(rounded, feed, watches, wanted)
    activations = [_activation(rounded, node, watch) for node, watch in watches.items() if watch.elements]
    weights = [
        _weight(rounded, node, twin) for node in rounded.graph.nodes if node.target is _DSOPT.dequantize_channel.default
    ]
    return (*activations, *(each for each in weights if each is not None))


def _bound(program: Program, feed: Feed) -> dict[fx.Node, Tensor]:
    inputs = tuple(torch.from_numpy(np.asarray(feed[spec.name], order="C")) for spec in program.signature.inputs)
    return program.bind(inputs)


def _values(program: Program, feed: Feed, names: set[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.name in names and isinstance(value, Tensor):
            found[node.name] = value

    with torch.no_grad():
        evaluate(program.graph, _bound(program, feed), keep)
    return found


def _see(program: Program, feed: Feed, watches: dict[fx.Node, _Watch], wanted: dict[str, Tensor]) -> None:
    sources: dict[fx.Node, list[fx.Node]] = {}
    for node in watches:
        sources.setdefault(node.args[0], []).append(node)  # type: ignore[arg-type]

    def see(node: fx.Node, value: Any) -> None:
        for rounding in sources.get(node, ()):
            _count(rounding, watches[rounding], value, wanted.get(_origin(program, node)))

    with torch.no_grad():
        evaluate(program.graph, _bound(program, feed), see)


def _origin(program: Program, node: Any) -> str:
    """Return the name that a value had in the float program."""
    return str(program.facts(node).get("origin", node.name))


def _grid(node: fx.Node) -> tuple[float, int, int, int]:
    arguments: tuple[Any, ...] = node.args
    _, scale, zero, low, high = arguments
    return float(scale), int(zero), int(low), int(high)


def _count(node: fx.Node, watch: _Watch, value: Tensor, wanted: Tensor | None) -> None:
    scale, zero, low, high = _grid(node)
    is_finite = torch.isfinite(value.reshape(-1))
    flat = value.reshape(-1)[is_finite]
    if not flat.numel():
        return
    watch.low, watch.high = min(watch.low, float(flat.min())), max(watch.high, float(flat.max()))
    steps = torch.round(flat / scale) + zero
    watch.beyond += int(((steps < low) | (steps > high)).sum())
    watch.elements += flat.numel()
    watch.parts.append(flat[:: max(flat.numel() // 4096, 1)].clone())
    if wanted is not None and wanted.shape == value.shape:
        real = (steps.clamp(low, high) - zero) * scale
        known = wanted.reshape(-1)[is_finite]
        watch.signal += float((known.double() ** 2).sum())
        watch.noise += float(((real - known).double() ** 2).sum())


def _decibels(signal: float, noise: float) -> float | None:
    if signal <= 0:
        return None
    return 200.0 if noise <= 0 else round(float(10 * np.log10(signal / noise)), 1)


def _number(value: float) -> float:
    """Round to six digits, which any machine agrees on."""
    return float(f"{value:.6g}")


def _activation(program: Program, node: fx.Node, watch: _Watch) -> ValueStatistics:
    scale, zero, low, high = _grid(node)
    source: Any = node.args[0]
    everything = torch.cat(watch.parts)
    counts = (
        torch.histc(everything, _BINS, watch.low, watch.high)
        if watch.high > watch.low
        else torch.tensor([float(len(everything))])
    )
    name = (
        program.signature.inputs[program.inputs.index(source)].name
        if source in program.inputs
        else program.layer(source)
    )
    return ValueStatistics(
        source.name, name, _what(program, source), "activation",
        (high - low).bit_length(), (scale, scale), zero, (_number((low - zero) * scale), _number((high - zero) * scale)),
        (_number(watch.low), _number(watch.high)), _number(watch.beyond / watch.elements), _decibels(watch.signal, watch.noise),
        tuple(int(count) for count in counts),
    )  # fmt: skip


def _weight(program: Program, node: fx.Node, twin: Program | None) -> ValueStatistics | None:
    """Describe a stored weight; biases, which have 32 bits, lose nothing."""
    arguments: tuple[Any, ...] = node.args
    integers, scale = program.weight(arguments[0]), program.weight(arguments[1])
    bits = int(arguments[5])
    if integers is None or scale is None or bits == 32:
        return None
    rounded: Tensor = node.target(integers, scale, *arguments[2:])  # type: ignore[operator]
    limit = (1 << (bits - 1)) - 1
    real = _float_weight(program.weight_name(arguments[0]), rounded.shape, twin)
    saturated = None if real is None else _beyond(real, scale, arguments[3], arguments[4], limit)
    seen = rounded if real is None else real
    counts = torch.histc(integers.float(), min(2 * limit + 1, _BINS - 1), -limit - 0.5, limit + 0.5)
    user = next(iter(node.users), node)
    edge = _number(limit * float(scale.max()))
    return ValueStatistics(
        node.name, program.layer(user), str(user.target), "weight", bits, (float(scale.min()), float(scale.max())), 0, (-edge, edge),
        (_number(float(seen.min())), _number(float(seen.max()))), saturated,
        None if real is None else _decibels(float((real.double() ** 2).sum()), float(((rounded - real).double() ** 2).sum())),
        tuple(int(count) for count in counts),
    )  # fmt: skip


def _what(program: Program, node: fx.Node) -> str:
    if node.op == "call_function":
        return str(node.target)
    return "input" if node in program.inputs else "state"


def _float_weight(name: str | None, shape: torch.Size, twin: Program | None) -> Tensor | None:
    """Return what a stored weight was made of: "conv.weight" of "conv.weight.int8"; None where that is not known."""
    match = re.fullmatch(r"(.+)\.int(?:4|8|16)(?:_\d+)?", name or "")
    found = None if twin is None or match is None else twin.weights.get(match[1])
    return None if found is None or found.shape != shape or not found.is_floating_point() else found.detach()


def _beyond(real: Tensor, scale: Tensor, axis: int, group: int, limit: int) -> float:
    """Return the share of elements of a weight that the ends of its integers cut."""
    steps = torch.round(real / spread_scale(scale, real.shape, axis, group))
    return _number(float((steps.abs() > limit).double().mean()))

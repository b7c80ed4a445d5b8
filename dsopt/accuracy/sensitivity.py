"""Which layers quantisation hurts most: each is rounded alone, and the outputs are compared with those of the float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dsopt.accuracy.metrics import signal_to_noise
from dsopt.feeds import Feed
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate

_FAKE = torch.ops.dsopt.fake_quantize.default

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LayerSensitivity:
    """One operator. node: its name, which options such as keep=... take.  snr: of the outputs if it alone is rounded, in decibels.

    weight_bits, result_bits: of its weights and its results; 0 where it has none that are rounded.
    """

    node: str
    layer: str
    op: str
    source: str
    snr: float
    weight_bits: int = 0
    result_bits: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def sensitivities(
    prepared: Program, feeds: Sequence[Feed], progress: Progress | None = None
) -> tuple[LayerSensitivity, ...]:
    """Return the operators of a prepared program that round something, the most sensitive first.

    feeds: inputs on which outputs are compared, each from the first values of the states.
    """
    groups: dict[str, list[fx.Node]] = {}
    fakes = [node for node in prepared.graph.nodes if node.target is _FAKE]
    for node in fakes:
        groups.setdefault(str(prepared.facts(node).get("operator", "")), []).append(node)
    groups.pop("", None)  # inputs, and values that float operators give
    inputs = [
        tuple(torch.from_numpy(np.asarray(feed[spec.name], order="C")) for spec in prepared.signature.inputs)
        for feed in feeds
    ]
    nodes = {node.name: node for node in prepared.graph.nodes}
    wanted = _outputs(prepared, inputs, fakes)
    found = []
    for number, (name, rounded) in enumerate(groups.items()):
        if progress is not None:
            progress(number, len(groups), "measuring sensitivity")
        left = set(rounded)
        got = _outputs(prepared, inputs, [node for node in fakes if node not in left])
        snr = min((signal_to_noise(a, b) for a, b in zip(got, wanted, strict=True)), default=200.0)
        node = nodes.get(name, rounded[0])
        bits = (_bits(prepared, rounded, True), _bits(prepared, rounded, False))
        where = (prepared.layer(node), str(node.target), prepared.source(node))
        found.append(LayerSensitivity(name, *where, round(snr, 2), *bits))
    return tuple(sorted(found, key=lambda each: (each.snr, each.node)))


def _bits(prepared: Program, fakes: Sequence[fx.Node], of_weights: bool) -> int:
    """Return the fewest bits of an operator's weights, or of its results; 0 if it has none."""
    found = []
    for node in fakes:
        value: Any = node.args[0]
        if (prepared.weight(value) is not None) == of_weights:
            low, high = node.args[5:7]
            found.append((int(high) - int(low)).bit_length())  # type: ignore[arg-type]
    return min(found, default=0)


def _outputs(
    program: Program, inputs: Sequence[tuple[Tensor, ...]], skipped: Sequence[fx.Node]
) -> list[np.ndarray[Any, Any]]:
    """Return each float output over all inputs, with some fake_quantize nodes switched off."""
    substitutes: dict[Any, Callable[..., Any]] = dict.fromkeys(skipped, lambda x, *rest: x)
    first = len(program.signature.states)
    results: list[list[np.ndarray[Any, Any]]] = []
    with torch.no_grad():
        for each in inputs:
            values = evaluate(program.graph, program.bind(each), None, substitutes)[first:]
            results.append([value.numpy().reshape(-1) for value in values if value.is_floating_point()])
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]

"""What is said of groups: for the record of the pass, for errors and for `dsopt inspect --groups`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsopt.ir import Program
from dsopt.passes.prune.channels import Channels, Group, Keep
from dsopt.passes.prune.cost import Cost
from dsopt.passes.prune.inference import AxisInference


@dataclass(frozen=True)
class GroupReport:
    """One group under the user's names.

    name: the layer that makes its channels.  size: how many they are.  first: the indices that the first one is in the layer's weight,
    as "0-15, 64-79" for a head.  parameters, multiply_adds: what goes with it.  layers: all that it touches.  pinned: why the group
    cannot be cut, "" if it can.
    """

    name: str
    size: int
    first: str
    parameters: int
    multiply_adds: int
    layers: tuple[str, ...]
    pinned: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def report_groups(program: Program) -> tuple[GroupReport, ...]:
    """Return every group of a program, those that are pinned too, in the order of the program."""
    channels = Channels(AxisInference(program), with_pinned=True)
    costs = Cost(channels, "params"), Cost(channels, "macs")
    order = _first_readers(program)
    return tuple(_report(channels, group, order, *costs) for group in channels.groups)


def _first_readers(program: Program) -> dict[str, int]:
    """Return for each weight the place of the first operator that reads it: what makes channels stands before what reads them."""
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    pairs = zip(program.placeholders, program.signature.weights, strict=False)
    return {spec.name: min((places[user] for user in node.users), default=0) for node, spec in pairs}


def _report(
    channels: Channels, group: Group, order: dict[str, int], parameters: Cost, multiply_adds: Cost
) -> GroupReport:
    keep = np.ones(channels.count, np.bool_)
    keep[group.channels[0]] = False
    maker = min(group.uses, key=lambda use: order[use.weight])
    weights = sorted(group.weights, key=lambda weight: order[weight])
    node = channels.inference.program.weight_node(maker.weight)
    return GroupReport(
        layer_of(maker.weight),
        len(group.channels),
        _ranges(np.flatnonzero(~channels.mask(channels.inference.dim(node, maker.dim), keep)).tolist()),
        parameters.total - parameters(keep),
        multiply_adds.total - multiply_adds(keep),
        tuple(dict.fromkeys(layer_of(weight) for weight in weights)),
        "; ".join(channels.pin_texts(group.channels)),
    )


def _ranges(indices: list[int]) -> str:
    """Return "0-15, 64-79" of sorted indices, the first three ranges."""
    starts = [index for place, index in enumerate(indices) if place == 0 or indices[place - 1] != index - 1]
    stops = [index for place, index in enumerate(indices) if [index + 1] != indices[place + 1 : place + 2]]
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True)]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def layer_of(weight: str) -> str:
    """Return the layer that a weight belongs to; the weight itself where it belongs to the model."""
    return weight.rpartition(".")[0] or weight


def pinned_lines(program: Program) -> list[str]:
    """Return a line for each reason that keeps channels: how many of which layers, the operator and the source line."""
    layers: dict[str, dict[str, int]] = {}
    for group in report_groups(program):
        if group.pinned:
            layers.setdefault(group.pinned, {})[group.name] = group.size
    return [
        shortened([f"{name} ({size})" for name, size in named.items()]) + f": {why}" for why, named in layers.items()
    ]


def shortened(names: Sequence[str], most: int = 6) -> str:
    """Return names as text, no more than a reader wants."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Totals:
    """What a program takes before anything goes."""

    parameters: int
    multiply_adds: int
    objective: float

    @staticmethod
    def of(channels: Channels, objective: float) -> Totals:
        """Count the program of some channels."""
        return Totals(Cost(channels, "params").total, Cost(channels, "macs").total, objective)


def summary(channels: Channels, keep: Keep, start: Totals) -> list[str]:
    """Return what a user should know of a pruned program: what is left, and what now means something else."""
    program, lines = channels.inference.program, []
    for of, what, before in (
        ("params", "parameters", start.parameters), ("macs", "multiply-adds", start.multiply_adds)
    ):  # fmt: skip
        left = Cost(channels, of)(keep)  # type: ignore[arg-type]
        share = 100 * (1 - left / before) if before else 0.0
        lines.append(f"{what}: {before:,} -> {left:,} (-{share:.2f} %)")
    for node, pin in channels.inference.unknown.items():
        lines.append(f"kept all that this touches: {program.where(node)}: {pin.why}")
    cut = [node for node, exprs in channels.inference.statistics.items() if channels.is_cut(exprs, keep)]
    if cut:
        lines.append(
            f"{len(cut)} norms and sums are now over the channels that are left, first {program.where(cut[0])}"
        )
    return lines

"""What is said of groups: for the record of the pass, for errors and for `dsopt inspect --groups`."""

from __future__ import annotations

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

    name: the layer that makes its channels.  size: how many they are.  parameters, multiply_adds: what one of them carries.  layers: all
    that it touches.  pinned: why it cannot be cut, "" if it can.
    """

    name: str
    size: int
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
    return tuple(_report(program, channels, group, *costs) for group in channels.groups)


def _report(program: Program, channels: Channels, group: Group, parameters: Cost, multiply_adds: Cost) -> GroupReport:
    keep = np.ones(channels.count, np.bool_)
    keep[group.channels[0]] = False
    return GroupReport(
        group_name(group),
        len(group.channels),
        parameters.total - parameters(keep),
        multiply_adds.total - multiply_adds(keep),
        tuple(dict.fromkeys(layer_of(weight) for weight in group.weights)),
        "; ".join(channels.pin_texts(group.channels)),
    )


def group_name(group: Group) -> str:
    """Return the layer whose weight makes the channels: the first that has them in its first dimension."""
    makers = [use.weight for use in group.uses if use.dim == 0] or [group.uses[0].weight]
    return layer_of(makers[0])


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
        ", ".join(f"{name} ({size})" for name, size in list(named.items())[:6])
        + (f" and {len(named) - 6} more" if len(named) > 6 else "")
        + f": {why}"
        for why, named in layers.items()
    ]


def summary(channels: Channels, keep: Keep) -> list[str]:
    """Return what a user should know of a pruned program: what is left, and what now means something else."""
    program, lines = channels.inference.program, []
    for of, what in (("params", "parameters"), ("macs", "multiply-adds")):
        cost = Cost(channels, of)  # type: ignore[arg-type]
        left = cost(keep)
        share = 100 * (1 - left / cost.total) if cost.total else 0.0
        lines.append(f"{what}: {cost.total:,} -> {left:,} (-{share:.2f} %)")
    for node, pin in channels.inference.unknown.items():
        lines.append(f"kept all that this touches: {program.where(node)}: {pin.why}")
    cut = [node for node, exprs in channels.inference.statistics.items() if channels.is_cut(exprs, keep)]
    if cut:
        lines.append(
            f"{len(cut)} norms and sums are now over the channels that are left, first {program.where(cut[0])}"
        )
    return lines

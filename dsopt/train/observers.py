"""Let the grids of activations follow what training does to them, until they are frozen and learned instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.ir import Program
from dsopt.ir.trainable import ProgramModule
from dsopt.train.processes import Processes

_FAKE = torch.ops.dsopt.fake_quantize.default
_MOMENTUM = 0.1


@dataclass
class _Site:
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    power_of_two: bool
    lowest: Tensor | None = None
    highest: Tensor | None = None


class Observers:
    """Moving averages of the least and largest value of each rounded activation of a module (Jacob et al. 2018, section 3.1).

    Grids with a zero point of their own keep 0 on them; those of 16 bits stay symmetric. A grid that an operator fixes is left alone.
    """

    def __init__(self, program: Program, module: ProgramModule, processes: Processes) -> None:
        self._processes = processes
        self._sites: dict[str, list[_Site]] = {}
        tensors = module.weights_by_name()
        for node in program.graph.nodes:
            if node.target is not _FAKE or program.weight(node.args[0]) is not None or program.facts(node).get("fixed"):
                continue
            source, scale, zero, _, _, low, high, power_of_two = node.args
            site = _Site(
                tensors[str(program.weight_name(scale))], tensors[str(program.weight_name(zero))], low, high, bool(power_of_two)
            )  # fmt: skip
            self._sites.setdefault(source.name, []).append(site)

    def watch(self, node: fx.Node, value: Any) -> None:
        """See a value of one step."""
        sites = self._sites.get(node.name)
        if sites is None or not isinstance(value, Tensor):
            return
        low, high = torch.aminmax(value.detach())
        for site in sites:
            site.lowest = low if site.lowest is None else _mix(site.lowest, low)
            site.highest = high if site.highest is None else _mix(site.highest, high)

    def apply(self) -> None:
        """Set the grids, alike in all processes."""
        sites = [
            site
            for group in self._sites.values()
            for site in group
            if site.lowest is not None and site.highest is not None
        ]
        if not sites:
            return
        ends = torch.stack([torch.stack([site.lowest, -site.highest]) for site in sites])  # type: ignore[list-item,operator]
        ends = self._processes.lowest(ends)
        with torch.no_grad():
            for site, (low, negative_high) in zip(sites, ends, strict=True):
                _set_grid(site, min(float(low), 0.0), max(-float(negative_high), 0.0))


def _mix(before: Tensor, now: Tensor) -> Tensor:
    return before + _MOMENTUM * (now - before)


def _set_grid(site: _Site, low: float, high: float) -> None:
    if site.high >= 1 << 8:
        step = max(high, -low) / site.high
    else:
        step = (high - low) / (site.high - site.low)
    if not step > 0 or not step < float("inf"):
        return
    site.scale.fill_(step)
    if site.high < 1 << 8:
        site.zero_point.fill_(float(min(max(round(site.low - low / step), site.low), site.high)))

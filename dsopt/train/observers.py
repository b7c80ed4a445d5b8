"""Let the grids of activations follow what training does to them, until they are frozen and learned instead."""

from __future__ import annotations

import math
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
    """A grid. ends: the moving averages of the least value and of the largest one, negated; seen: the same of this step."""

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    power_of_two: bool
    ends: Tensor
    seen: Tensor | None = None


class Observers:
    """Moving averages of the least and largest value of each rounded activation of a module (Jacob et al. 2018, section 3.1).

    They start from the calibrated grids. Those with a zero point of their own keep 0 on them; those of 16 bits stay symmetric. A
    grid that an operator fixes is left alone; one that several values share spans all of them.
    """

    def __init__(self, program: Program, module: ProgramModule, processes: Processes) -> None:
        self._module, self._processes = module, processes
        self._sites: dict[str, _Site] = {}
        self._of: dict[str, list[_Site]] = {}
        tensors = module.weights_by_name()
        for node in program.graph.nodes:
            if node.target is not _FAKE or program.weight(node.args[0]) is not None or program.facts(node).get("fixed"):
                continue
            source, scale, zero, _, _, low, high, power_of_two = node.args
            name = str(program.weight_name(scale))
            if name not in self._sites:
                step, shift = tensors[name].detach(), tensors[str(program.weight_name(zero))]
                ends = torch.stack([(low - shift) * step, (shift - high) * step])
                self._sites[name] = _Site(step, shift, low, high, bool(power_of_two), ends)
            self._of.setdefault(source.name, []).append(self._sites[name])

    def watch(self, node: fx.Node, value: Any) -> None:
        """See a value of one step; what is only judged in the middle of training does not count."""
        if node.name not in self._of or not self._module.training:
            return
        low, high = torch.aminmax(value.detach())
        ends = torch.stack([low, -high])
        for site in self._of[node.name]:
            site.seen = ends if site.seen is None else torch.minimum(site.seen, ends)

    def apply(self) -> None:
        """Set the grids, alike in all processes."""
        sites = [site for site in self._sites.values() if site.seen is not None]
        if not sites:
            return
        found = self._processes.lowest(torch.stack([site.seen for site in sites]))  # type: ignore[misc]
        for site, seen in zip(sites, found, strict=True):
            site.seen = None
            site.ends = torch.where(seen.isfinite(), site.ends + _MOMENTUM * (seen - site.ends), site.ends)
            _set_grid(site)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages."""
        return {name: site.ends for name, site in self._sites.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the moving averages of a checkpoint."""
        for name, site in self._sites.items():
            site.ends = state[name].to(site.ends.device)


def _set_grid(site: _Site) -> None:
    low, high = min(float(site.ends[0]), 0.0), max(-float(site.ends[1]), 0.0)
    is_symmetric = site.high >= 1 << 8
    step = max(high, -low) / site.high if is_symmetric else (high - low) / (site.high - site.low)
    if not 0 < step < math.inf:
        return
    if site.power_of_two:
        step = 2.0 ** math.ceil(math.log2(step))
    site.scale.fill_(step)
    if not is_symmetric:
        site.zero_point.fill_(float(min(max(round(site.low - low / step), site.low), site.high)))

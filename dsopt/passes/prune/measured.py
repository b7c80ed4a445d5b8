"""Seconds or bytes of RAM of a program as a function of which channels are kept, by the cost model that the caller gives."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from dsopt.ir import Rewriter
from dsopt.passes.base import PassContext
from dsopt.passes.prune.channels import Channels, Keep
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.shrink import shrink

MeasuredOf = Literal["latency", "ram"]


class MeasuredCost:
    """Make the smaller program and ask `PassContext.cost` what it takes."""

    refines: ClassVar[bool] = False

    def __init__(self, channels: Channels, of: MeasuredOf, context: PassContext) -> None:
        """Measure the program as it is. Raises PassError DS0304 where the caller gave no cost model."""
        self.channels, self._context = channels, context
        self._key = {"latency": "seconds", "ram": "ram_bytes"}[of]
        self._known: dict[bytes, float] = {}
        self.total = self(np.ones(channels.count, np.bool_))

    def __call__(self, keep: Keep) -> float:
        """Return the cost where these channels are kept."""
        known = self._known.get(keep.tobytes())
        if known is None:
            known = self._known[keep.tobytes()] = self._measure(keep)
        return known

    def _measure(self, keep: Keep) -> float:
        program = self.channels.inference.program.clone()
        if not keep.all():
            # Numbering follows the order of the graph, so that of a copy is the same.
            shrink(Channels(AxisInference(program)), keep, Rewriter(program))
        return float(self._context.cost(program)[self._key])

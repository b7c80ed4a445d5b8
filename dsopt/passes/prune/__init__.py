"""prune: channels that matter least leave the program, whatever its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import ClassVar

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.choose import (
    TOLERANCE,
    Choice,
    Objective,
    bundles_in_order,
    choose,
)
from dsopt.passes.prune.cost import Cost
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.measured import MeasuredCost
from dsopt.passes.prune.patterns import channels_of_layers
from dsopt.passes.prune.report import Totals, pinned_lines, summary
from dsopt.passes.prune.score import SCORES, score_channels
from dsopt.passes.prune.shrink import shrink


@dataclass(frozen=True)
class Prune(Pass):
    """Remove the channels that matter least, with all that hangs together with them.

    conv2d(x, w[64, 32, 3, 3]) -> conv2d(x', w'[40, 20, 3, 3])

    ratio: the share that goes, met within half a point, of parameters (`of`=params), multiply-adds (macs), or what the caller's cost
    model says of time (latency) or memory (ram).  score: what a channel matters (l1, l2, bn, fpgm, or taylor, which needs calibration
    data).  scope: "global" compares channels of all layers, "local" takes about the same share of each group.  align: the widths that
    are left are multiples of it.  steps: scores are taken anew after each.  keep: layers whose weights keep their shapes, as
    "head|features.*.conv".
    """

    name: ClassVar[str] = "prune"
    changes_outputs: ClassVar[bool] = True
    ratio: float = 0.5
    of: str = "params"
    score: str = "l1"
    scope: str = "global"
    align: int = 1
    steps: int = 1
    keep: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, (int, float)) or not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio!r} and must be between 0 and 1")
        for name, value, known in (
            ("of", self.of, tuple(_UNITS)),
            ("score", self.score, SCORES),
            ("scope", self.scope, ("global", "local")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r} and must be one of {', '.join(known)}")
        for name, number in (("align", self.align), ("steps", self.steps)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number!r} and must be a whole number from 1 on")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Find the channels, choose those that go, and take them out, in as many steps as were asked for."""
        shapes = {name: list(value.shape) for name, value in program.weights.items()}
        start: Totals | None = None
        for step in range(1, self.steps + 1):
            channels = Channels(AxisInference(program))
            cost = self._objective(channels, context)
            start = start or Totals.of(channels, cost.total)
            left = (1 - self.ratio) ** (step / self.steps) * start.objective / cost.total
            choice = self._choose(channels, cost, 1 - left, context)
            if step == self.steps:
                rewriter.notes += summary(channels, choice.keep, start)
                left_over = cost(choice.keep)
                reached = 1 - left_over / start.objective
                if self.of in ("latency", "ram"):
                    rewriter.notes.append(
                        f"{_UNITS[self.of]}, estimated: {start.objective:,.6g} -> {left_over:,.6g} (-{100 * reached:.2f} %)"
                    )
                if abs(reached - self.ratio) > TOLERANCE:
                    rewriter.notes.append(f"ratio={self.ratio:g} falls between two steps: {reached:.4f} is the nearest")
            shrink(channels, choice.keep, rewriter)
        for name, value in program.weights.items():
            if list(value.shape) != shapes[name]:
                rewriter.changes.append(f"{name} {shapes[name]} -> {list(value.shape)}")

    def _objective(self, channels: Channels, context: PassContext) -> Objective:
        if self.of in ("latency", "ram"):
            return MeasuredCost(channels, self.of, context)  # type: ignore[arg-type]
        return Cost(channels, self.of)  # type: ignore[arg-type]

    def _choose(self, channels: Channels, cost: Objective, ratio: float, context: PassContext) -> Choice:
        """Return the channels to keep so that `ratio` of the cost goes. Raises UsageError where that much cannot go."""
        program = channels.inference.program
        frozen = channels_of_layers(channels, self.keep)
        if not channels.groups:
            raise _nothing_to_cut(program)
        scores = score_channels(channels, self.score, context)  # type: ignore[arg-type]
        bundles = bundles_in_order(channels, scores, self.scope, self.align, frozen)  # type: ignore[arg-type]
        choice = choose(cost, bundles, ratio)
        if choice.most + TOLERANCE < ratio:
            raise self._out_of_reach(program, choice.most)
        return choice

    def _out_of_reach(self, program: Program, most: float) -> UsageError:
        """Say how far the ratio goes, and what stands in the way."""
        others = " with a smaller align or fewer layers in keep" if self.align > 1 or self.keep else ""
        return UsageError(
            "DS0370",
            f"ratio={self.ratio:g} cannot be reached: at most {100 * most:.1f} % of the {_UNITS[self.of]} can go",
            where="\n".join(pinned_lines(program)),
            why="some of every layer stays, and what is listed cannot be cut",
            fix=f"ask for ratio={max(0, floor(1000 * most)) / 1000:g} or less"
            + (f", or try again{others}" if others else ""),
        )


_UNITS = {"params": "parameters", "macs": "multiply-adds", "latency": "seconds", "ram": "bytes of RAM"}


def _nothing_to_cut(program: Program) -> UsageError:
    return UsageError(
        "DS0371",
        "the model has no channels that can be removed",
        where="\n".join(pinned_lines(program)),
        why="every channel is an input or an output, is tied to one, or meets an operator that keeps it",
        fix="dsopt inspect MODEL --groups shows the groups and what keeps them",
    )

"""adaptive-rounding: choose for each weight whether it is rounded up or down, by what that does to the layer's results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ops.quantized import effective_scale, spread_scale
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.layer import Layer, layer_of, stored_weight
from dsopt.passes.quantize.lockstep import Lockstep, refuse_infinite, refuse_unprepared
from dsopt.passes.quantize.reference import float_value, has_rounded_weight, store_bias, store_weight, unstored
from dsopt.passes.quantize.rounding_problem import RoundingProblem
from dsopt.passes.quantize.semantics import clamp_bounds

_ATEN = torch.ops.aten
_FAKE = torch.ops.dsopt.fake_quantize.default

_MOST_ROWS, _MOST_ELEMENTS = 1 << 15, 1 << 25
"""Positions, and elements of inputs, that are kept of a layer."""


@dataclass(frozen=True)
class AdaptiveRounding(Pass):
    """fake_quantize(w, s, 0) -> fake_quantize(s * (floor(w / s) + v), s, 0), each v 0 or 1, chosen on the calibration data.

    The choice for each layer, in the order of the graph, minimises the squared error of its results, behind its ReLU, given the
    inputs that the layers before it, rounded by now, make (Nagel et al. 2020, "Up or down? Adaptive rounding for post-training
    quantization", equations 21 to 25). Biases follow. A choice is taken if it is better than what there is. Run it between
    quantize-prepare and quantize-convert, batch norms folded. iterations: of each layer; time grows with it, and with nothing else
    but the number of weights.  learning_rate: of Adam.
    """

    name: ClassVar[str] = "adaptive-rounding"
    iterations: int = 1000
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that mean nothing. Raises ValueError."""
        if not isinstance(self.iterations, int) or not 1 <= self.iterations <= 1_000_000:
            raise ValueError(f"iterations is {self.iterations!r} and must be 1 to 1000000")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate!r} and must be above 0 and at most 1")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Walk the graph once, and choose for each layer that is met."""
        refuse_unprepared(program, context, self.name)
        lockstep = Lockstep(program, context)
        generator = torch.Generator().manual_seed(context.seed)

        def visit(node: fx.Node) -> None:
            layer = layer_of(program, node)
            if layer is None or not layer.is_rounded:
                if has_rounded_weight(program, node):
                    rewriter.skip(node, "only weights of convolutions and linear layers are chosen")
                return
            why = unstored(program, layer) or _refusal(program, layer)
            if why:
                rewriter.skip(node, why)
                return
            self._choose(program, rewriter, lockstep, layer, generator)

        lockstep.walk(visit, "choosing roundings")

    def _choose(
        self, program: Program, rewriter: Rewriter, lockstep: Lockstep, layer: Layer, generator: torch.Generator
    ) -> None:
        weight = float_value(program, stored_weight(program, layer))
        assert weight is not None
        ending = _ending(lockstep, layer.node)
        rows, added, wanted = _sample(layer, lockstep, ending, generator)
        if not len(rows):
            rewriter.skip(layer.node, "the calibration data gives it no results")
            return
        refuse_infinite(program, layer.node, rows, added, wanted)
        bias = None if layer.bias is None else program.weight(layer.bias)
        (present,), (step, low, high) = lockstep.rounded(layer.weight)[:1], _grid(program, layer, weight)
        problem = RoundingProblem(
            rows, added, wanted, layer.product_matrices(weight), layer.product_matrices(present),
            layer.product_matrices(step), low, high,
            torch.zeros(1, *wanted.shape[1:]) if bias is None else bias.detach().reshape(1, layer.groups, -1), ending.cut,
        )  # fmt: skip
        best = problem.solve(self.iterations, self.learning_rate)
        if not best.after < best.before:
            rewriter.skip(layer.node, f"it is rounded as well already: squared error {best.before:.4g}")
            return
        store_weight(program, rewriter, layer, layer.from_product(best.weight, weight).contiguous())
        store_bias(program, rewriter, layer, best.bias.reshape(-1))
        rewriter.changes.append(
            f"%{layer.node.name} weight rounded by choice: squared error {best.before:.4g} -> {best.after:.4g}"
        )


def _refusal(program: Program, layer: Layer) -> str:
    if len(stored_weight(program, layer).users) > 1 or len(layer.weight.users) > 1:
        return "its weight is read by another layer too, for which another rounding may be best"
    if layer.conv is not None and len(layer.conv.stride) > 2:
        return "convolutions in three dims have no rows here"
    return ""


def _grid(program: Program, layer: Layer, weight: Tensor) -> tuple[Tensor, int, int]:
    """Return the step of each element of a weight, and the integers that it may be."""
    arguments: tuple[Any, ...] = layer.weight.args
    _, scale_node, _, axis, group, low, high, power_of_two = arguments
    scale = program.weight(scale_node)
    assert scale is not None
    used = effective_scale(scale.detach(), group, bool(power_of_two))
    return spread_scale(used, weight.shape, axis, group).expand_as(weight), low, high


@dataclass(frozen=True)
class _Ending:
    """What a layer's result goes through next, if nothing else reads it: an addition to a value that is known, and a clamp.

    other: the value that is added, which rounding has changed too, so that the layer can make up for it.
    """

    other: fx.Node | None
    bounds: tuple[float, float] | None

    def cut(self, y: Tensor) -> Tensor:
        """Apply the clamp."""
        return y if self.bounds is None else y.clamp(*self.bounds)


def _ending(lockstep: Lockstep, node: fx.Node) -> _Ending:
    other, shape, user = None, tuple(node.meta["val"].shape), _only_user(node)
    if user is not None and user.target is _ATEN.add.Tensor and not user.kwargs:
        parts = [each for each in user.args[:2] if isinstance(each, fx.Node) and _source(each) is not node]
        if len(parts) == 1 and lockstep.knows(parts[0]) and tuple(parts[0].meta["val"].shape) == shape:
            other, user = parts[0], _only_user(user)
        else:
            user = None
    return _Ending(other, None if user is None else clamp_bounds(user))


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return what alone reads a value, behind its rounding."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is _FAKE:
        users = list(users[0].users)
    return users[0] if len(users) == 1 else None


def _source(node: fx.Node) -> object:
    return node.args[0] if node.target is _FAKE else node


def _sample(
    layer: Layer, lockstep: Lockstep, ending: _Ending, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (P, G, K) of rounded inputs; what is added to the results, and what they should then be, (P, G, N).

    In random order.
    """
    inputs, outputs = lockstep.rounded(layer.x), lockstep.real(layer.node)
    added = [torch.zeros_like(y) for y in outputs]
    if ending.other is not None:
        added = lockstep.rounded(ending.other)
        outputs = [y + other for y, other in zip(outputs, lockstep.real(ending.other), strict=True)]
    samples = sum(len(x) if x.dim() > 1 else 1 for x in inputs)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for batch in zip(inputs, added, outputs, strict=True):
        singles = zip(*(value.split(1) for value in batch), strict=True) if batch[0].dim() > 1 else [batch]
        for x, other, y in singles:
            views = layer.rows(x), layer.results(other), layer.results(y)
            most = min(_MOST_ROWS, _MOST_ELEMENTS // max(views[0][:1].numel(), 1)) // max(samples, 1)
            chosen = torch.randperm(len(views[0]), generator=generator)[: max(most, 1)]
            for kept, view in zip(parts, views, strict=True):
                kept.append(view[chosen])
    order = torch.randperm(sum(map(len, parts[0])), generator=generator)
    rows, added_rows, wanted = (torch.cat(kept)[order].contiguous() for kept in parts)
    return rows, added_rows, wanted

"""quantize-prepare: round activations and weights to the grids of integers, in a program that still runs and trains in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dsopt.errors import PassError
from dsopt.ir import Program, Rewriter
from dsopt.ir.signature import WeightKind
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.calibrate import count_samples, look_at, observe
from dsopt.passes.quantize.normalize import normalize
from dsopt.passes.quantize.plan import Plan, Site, WeightUse, make_plan
from dsopt.passes.quantize.precision import Precision
from dsopt.passes.quantize.qparams import Grid, activation_grid, weight_grid

_ATEN = torch.ops.aten
_FAKE = torch.ops.dsopt.fake_quantize.default


@dataclass(frozen=True)
class QuantizePrepare(Precision, Pass):
    """relu(conv(x, w)) -> fake_quantize(relu(conv(fake_quantize(x, s, z), fake_quantize(w, s', 0))), s'', z'').

    Each value is rounded where it is made, once, whoever reads it. The scales are parameters that a module of the program learns
    (Esser et al. 2020); they start from the calibration data, which is needed. Batch normalisation stays until it is folded.
    What stays float is listed among the skips. The options are those of `Precision`.
    """

    name: ClassVar[str] = "quantize-prepare"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Plan, calibrate, and insert."""
        if any(node.target is _FAKE for node in program.graph.nodes):
            raise PassError(
                "DS0314", "the program is prepared for quantisation already", fix="run quantize-prepare once"
            )
        normalize(program, rewriter, lambda nodes: look_at(program, context, nodes))
        self.check_patterns(program)
        plan = make_plan(program, self)
        if self.power_of_two and any(node.target is _ATEN.batch_norm.default for node in program.graph.nodes):
            raise PassError(
                "DS0315", "folding batch norm would scale weights by other numbers than powers of two",
                fix="run fold-batch-norm before quantize-prepare{power_of_two=true}",
            )  # fmt: skip
        _refuse_nan(program, plan)
        grids = self._calibrated(program, rewriter, context, plan)
        _insert_weights(program, rewriter, plan, self)
        _insert_sites(program, rewriter, plan, grids, self.power_of_two)
        for node, why in plan.floats:
            rewriter.skip(node, why)

    def _calibrated(self, program: Program, rewriter: Rewriter, context: PassContext, plan: Plan) -> dict[Site, Grid]:
        owners = {site.owner for site in plan.sites.values()}
        stored = {site for site in owners if program.weight(site.value) is not None}
        watched = {
            site.value: site.bits
            for site in plan.sites.values()
            if site in owners and site.fixed is None and site not in stored
        }
        results = dict.fromkeys(plan.recurrent, 8)
        observers = observe(program, context, watched | results, self)
        if count_samples(program, context.calibration) == 1:
            rewriter.note(
                program.inputs[0] if program.inputs else program.output_node,
                "calibrated on one sample: its ranges are guesses",
            )
        grids: dict[Site, Grid] = {}
        for site in plan.sites.values():
            if site not in owners:
                continue
            if site.fixed is not None:
                low, high = -(1 << (site.bits - 1)), (1 << (site.bits - 1)) - 1
                grids[site] = Grid(*site.fixed, low, high)
            else:
                low_real, high_real = (
                    _stored_range(program, site.value) if site in stored else observers[site.value].range()
                )
                grids[site] = _grid(rewriter, site.value, low_real, high_real, site.bits, self.power_of_two)
        for node in plan.recurrent:
            grid = _grid(rewriter, node, *observers[node].range(), 8, self.power_of_two)
            node.args = (*node.args[:6], grid.scale, grid.zero_point, *node.args[8:])
        return grids


def _stored_range(program: Program, node: fx.Node) -> tuple[float, float]:
    value = program.weight(node)
    assert value is not None
    return float(value.min()), float(value.max())


def _grid(rewriter: Rewriter, node: fx.Node, low: float, high: float, bits: int, power_of_two: bool) -> Grid:
    if low > high:
        rewriter.note(node, "it held no element in the calibration data")
        low = high = 0.0
    elif low == high:
        rewriter.note(node, f"it was always {low:.4g} in the calibration data")
    grid = activation_grid(low, high, bits, power_of_two)
    for note in grid.notes:
        rewriter.note(node, note)
    return grid


# ---- weights ----


def _refuse_nan(program: Program, plan: Plan) -> None:
    """Raise PassError naming each weight that is no number: before calibration, which would blame the data."""
    bad = [
        use for use in plan.weights if not bool(program.weights[program.weight_name(use.weight) or ""].isfinite().all())
    ]
    if bad:
        places = "\n".join(f"{program.weight_name(use.weight)}: {program.where(use.user)}" for use in bad[:10])
        raise PassError("DS0316", "a weight holds NaN or infinity", where=places, fix="mend the model's weights")


def _insert_weights(program: Program, rewriter: Rewriter, plan: Plan, precision: Precision) -> None:
    made: dict[tuple[fx.Node, int, int, str], fx.Node] = {}
    for use in plan.weights:
        key = (use.weight, use.axis, use.bits, use.per)
        if key not in made:
            made[key] = _weight_node(program, rewriter, use, precision)
        use.user.replace_input_with(use.weight, made[key])


def _weight_node(program: Program, rewriter: Rewriter, use: WeightUse, precision: Precision) -> fx.Node:
    weight = program.weight(use.weight)
    assert weight is not None
    search = use.bits < 8 if precision.search is None else precision.search
    grid = weight_grid(
        weight,
        use.axis,
        use.bits,
        per=use.per,
        group=precision.group,
        search=search,
        power_of_two=precision.power_of_two,
    )
    if grid.dead:
        rewriter.note(use.user, f"{grid.dead} channels of its weight are all zeros")
    name = program.weight_name(use.weight)
    scale = rewriter.add_weight(f"{name}_scale", grid.scale, "parameter")
    zero = rewriter.add_weight(f"{name}_zero_point", torch.zeros_like(grid.scale), "buffer")
    options = (grid.axis, grid.group, grid.low, grid.high, precision.power_of_two)
    # only this use is redirected: another operator may read the same weight along another axis
    node = rewriter.wrap(use.weight, _FAKE, scale, zero, *options, users=())
    node.meta["layer"] = program.layer(use.user)
    program.facts(node)["operator"] = use.user.name
    return node


# ---- activations ----


def _insert_sites(
    program: Program, rewriter: Rewriter, plan: Plan, grids: Mapping[Site, Grid], power_of_two: bool
) -> None:
    stored: dict[Site, tuple[fx.Node, fx.Node]] = {}
    for site in plan.sites.values():
        owner, grid = site.owner, grids[site.owner]
        if owner not in stored:
            base = _site_name(program, owner.value)
            # a grid that its operator fixes is not learned
            kind: WeightKind = "parameter" if owner.fixed is None else "buffer"
            stored[owner] = (
                rewriter.add_weight(f"{base}_scale", torch.tensor(grid.scale), kind),
                rewriter.add_weight(f"{base}_zero_point", torch.tensor(float(grid.zero_point)), "buffer"),
            )
        options = (*stored[owner], 0, 0, grid.low, grid.high, power_of_two)
        readers = None if site.readers is None else sorted(site.readers, key=lambda node: node.name)
        rounded = rewriter.wrap(site.value, _FAKE, *options, users=readers)
        if owner.fixed is not None:
            program.facts(rounded)["fixed"] = True
        program.facts(rounded)["operator"] = "" if site.operator is None else site.operator.name


def _site_name(program: Program, node: fx.Node) -> str:
    """Name a value after its layer; an input after itself."""
    if node.op == "placeholder":
        name = program.weight_name(node) or node.name
        return f"{name}_value" if program.weight_name(node) else name
    layer = program.layer(node)
    word = str(node.target).split(".")[1] if "." in str(node.target) else node.name
    return f"{layer}.{word}" if layer else node.name

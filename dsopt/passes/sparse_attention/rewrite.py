"""The pass sparse-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.ops.sparse_attention import OPERATOR
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.sparse_attention.budgets import LADDER, MOST, Step, divide, enough
from dsopt.passes.sparse_attention.candidates import ATTENTION, Candidate, Sizes, find_candidates
from dsopt.passes.sparse_attention.guard import DENSE, Errors, measure
from dsopt.passes.sparse_attention.layers import is_among, refuse_unknown
from dsopt.sparse_schedule import picked, schedule, work

_BUDGET = 6
"""Which argument of the operator the budget is."""

_LEAST_GAIN = 0.8
"""A layer whose heads need more than this share of dense work together stays dense."""


@dataclass(frozen=True)
class SparseAttention(Pass):
    """scaled_dot_product_attention(q, k, v) -> dsopt::sparse_attention(q, k, v), whose work grows with n log n, where it does no harm.

    ratio: the share of dense attention's multiply-adds that all heads may take together, selection included; keys, log2: instead of it,
    how many keys a tile of queries looks at one by one, or how many for each doubling of the sequence.  tile: queries that share
    a list of keys, 1 for a search by each.  window: keys around the tile that are always looked at.  per_query: modules whose queries
    search one by one, as "layers.0|layers.11"; this finds what unrelated queries of a tile look for, at several times the work.
    max_error: largest relative L2 error of a head on the calibration data; a head that misses it with all budgets stays dense.
    none: no guard, and no data.  per_head: divide the ratio among heads by what they lose.  at_least: keys from which on attention may be
    sparse, instead of the target's own.  keep: modules whose attention, and that of all inside of them, stays dense, as
    "layers.0|layers.11".
    """

    name: ClassVar[str] = "sparse-attention"
    changes_outputs: ClassVar[bool] = True
    ratio: float = 0.15
    keys: int | None = None
    log2: float | None = None
    tile: int = 64
    window: int = 0
    max_error: float | None = 0.4
    per_head: bool = True
    at_least: int | None = None
    keep: str = ""
    per_query: str = ""

    def __post_init__(self) -> None:
        for name in ("ratio", "log2", "max_error"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"{name} is {value!r} and must be a number")
        if not isinstance(self.per_head, bool):
            raise ValueError(f"per_head is {self.per_head!r} and must be true or false")
        if self.ratio is None or not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio!r} and must be between 0 and 1")
        if self.keys is not None and self.log2 is not None:
            raise ValueError("keys and log2 are two ways to say one thing: give one of them")
        if (self.keys is not None or self.log2 is not None) and self.ratio != type(self).ratio:
            raise ValueError("ratio and keys or log2 are two ways to say one thing: give one of them")
        for name, value, least in (
            ("keys", self.keys, 1),
            ("tile", self.tile, 1),
            ("window", self.window, 0),
            ("at_least", self.at_least, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r} and must be a whole number from {least} on")
        if self.log2 is not None and not self.log2 > 0:
            raise ValueError(f"log2 is {self.log2!r} and must be above 0")
        if self.max_error is not None and not self.max_error > 0:
            raise ValueError(f"max_error is {self.max_error!r} and must be above 0, or none")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Put the sparse form beside every attention that could have one, measure both, and choose."""
        layers = [program.layer(node) for node in program.graph.nodes if node.target is ATTENTION]
        for option, patterns in (("keep", self.keep), ("per_query", self.per_query)):
            refuse_unknown(option, patterns, layers)
        sparse: dict[fx.Node, Candidate] = {}
        for found in find_candidates(program, rewriter, context.target, self.at_least):
            layer = program.layer(found.node)
            if is_among(self.keep, layer):
                rewriter.skip(found.node, "stays dense: keep asks for it")
                continue
            tile = 1 if is_among(self.per_query, layer) else self.tile
            sparse[self._inserted(rewriter, found, tile)] = replace(found, sizes=replace(found.sizes, tile=tile))
        steps = {node: self._ladder(found.sizes) for node, found in sparse.items()}
        for node in [each for each in sparse if not steps[each]]:
            found = sparse.pop(node)
            rewriter.skip(
                found.node,
                f"stays dense: a share of {self.ratio:g} does not pay for the search among {found.sizes.keys} keys",
            )
        if sparse:
            self._decide(program, rewriter, context, sparse, {node: steps[node] for node in sparse})
        rewriter.erase_dead()

    def _inserted(self, rewriter: Rewriter, found: Candidate, tile: int) -> fx.Node:
        hidden, unit = found.hidden, self._unit(found.sizes)
        return rewriter.call(
            OPERATOR, found.query, found.key, found.value, hidden.bias, hidden.causal, found.scale, [DENSE], unit, tile, self.window,
            like=found.node,
        )  # fmt: skip

    def _unit(self, sizes: Sizes) -> str:
        return "log2" if self.log2 is not None or (sizes.varies and self.keys is None) else "keys"

    def _ladder(self, sizes: Sizes) -> list[tuple[float, float]]:
        """Return budgets of the layer's unit, each with its share of dense work at the example's sizes."""
        if self.keys is not None or self.log2 is not None:
            budget = float(self.keys if self.keys is not None else self.log2 or 0)
            return [(budget, self._share(sizes, budget))]
        found: dict[float, float] = {}
        for part in LADDER if self._measures and self.per_head else (1.0,):
            count = picked(
                min(part * self.ratio, MOST),
                "share",
                sizes.queries,
                sizes.keys,
                sizes.head,
                sizes.value_head,
                sizes.tile,
            )
            if count > 0:
                budget = count / math.log2(sizes.keys) if self._unit(sizes) == "log2" else float(count)
                budget = math.floor(budget * 100) / 100
                found[budget] = self._share(sizes, budget)
        return sorted(found.items())

    @property
    def _measures(self) -> bool:
        return self.max_error is not None

    def _share(self, sizes: Sizes, budget: float) -> float:
        count = picked(budget, self._unit(sizes), sizes.queries, sizes.keys, sizes.head, sizes.value_head, sizes.tile)
        shape = sizes.queries, sizes.keys, sizes.head, sizes.value_head
        dense = sizes.queries * sizes.keys * (sizes.head + sizes.value_head)
        return work(schedule(sizes.keys, count), *shape, sizes.tile) / dense

    def _decide(
        self, program: Program, rewriter: Rewriter, context: PassContext, sparse: dict[fx.Node, Candidate],
        ladders: dict[fx.Node, list[tuple[float, float]]],
    ) -> None:  # fmt: skip
        if not self._measures:
            for node, found in sparse.items():
                self._replace(rewriter, node, found, [ladders[node][-1][0]] * found.sizes.heads, None)
            return
        errors = measure(program, context, {node: [budget for budget, _ in ladders[node]] for node in sparse})
        steps = {
            (node, head): [
                Step(budget, share, _part(errors[node], budget, head)) for budget, share in ladders[node]
            ]
            for node, found in sparse.items() for head in range(found.sizes.heads)
        }  # fmt: skip
        chosen = divide(steps, self.ratio)
        for node, found in sparse.items():
            budgets = [
                self._budget(steps[node, head], chosen[node, head], errors[node], head)
                for head in range(found.sizes.heads)
            ]
            self._replace(rewriter, node, found, budgets, errors[node])

    def _budget(self, steps: Sequence[Step], place: int, errors: Errors, head: int) -> float:
        """Return what a head gets: more than its part where it would miss the bound, dense where nothing is enough."""
        bound = self.max_error or 0.0
        found = enough(steps, place, lambda step: float(errors.of_heads(step.budget)[head]) <= bound)
        return DENSE if found is None else steps[found].budget

    def _replace(
        self, rewriter: Rewriter, node: fx.Node, found: Candidate, budgets: list[float], errors: Errors | None
    ) -> None:  # fmt: skip
        """Use the sparse form, or say why not."""
        shares = [1.0 if budget < 0 else self._share(found.sizes, budget) for budget in budgets]
        share = sum(shares) / len(shares)
        dense = [head for head, budget in enumerate(budgets) if budget < 0]
        if share > _LEAST_GAIN:
            why = (
                f"{len(dense)} of {len(budgets)} heads lose more than {self.max_error:g}"
                if dense
                else "there is little to gain"
            )
            rewriter.skip(found.node, f"stays dense: {why} (work {share:.3f} of dense)")
            return
        rewriter.set_argument(node, _BUDGET, budgets if len(set(budgets)) > 1 else budgets[:1])
        rewriter.replace(found.node, node)
        text = f"sparse attention with {share:.3f} of dense work"
        if errors is not None:
            worst = max(range(len(budgets)), key=lambda head: float(errors.of_heads(budgets[head])[head]))
            text += (
                f", relative error {errors.of_layer(budgets):.3f}, of head {worst} "
                f"{float(errors.of_heads(budgets[worst])[worst]):.3f}"
            )
        if dense:
            text += f", heads {', '.join(map(str, dense))} dense"
        rewriter.note(node, text)


def _part(errors: Errors, budget: float, head: int) -> float:
    """Return what a head's error adds to the squared relative error of its layer."""
    assert errors.length is not None
    return float(errors.difference[budget][head] / errors.length.sum().clamp(min=1e-300))

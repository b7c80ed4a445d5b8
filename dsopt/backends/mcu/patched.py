"""Which of the ways to run first layers patch by patch a build takes: the one that fits and computes the least twice, or the smallest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

from dsopt.artifact import Artifact
from dsopt.backends.mcu.budget import exceeded
from dsopt.backends.mcu.chosen import build_chosen
from dsopt.backends.mcu.emitter import Built, Emitter, Placed
from dsopt.ir import Program
from dsopt.passes.base import PassManager
from dsopt.passes.patch.plan import Choice, choices, products

_MOST_CHOICES = 16
"""Ways to run in patches that are tried, the cheapest first."""
_LOOKED_AT = 6
"""The same where none of them can be taken."""
_MOST_BUILDS = 6
"""Images that are built of ways whose values fit, but something else does not."""
_LEAST_RATIO = {False: 0.75, True: 0.9}
"""Of what values take when they are placed to what they were estimated to take: in patches, and in strips."""
_MARGIN = 0.95
"""The same among similar ways."""
_MOST_PRODUCTS = 1.5
"""Times the products of a whole run that patches may compute for the sake of RAM that would not be needed."""
_MOST_IN_NEED = 3.0
"""The same where the program does not fit without patches."""


@dataclass(frozen=True)
class Way:
    """A way in patches: built, and what the user calls the layer that they end with."""

    choice: Choice
    layer: str
    built: Built

    @property
    def ram_bytes(self) -> int:
        """Return what it takes, with the stack where that was measured."""
        return self.built.measured.ram_bytes

    @property
    def artifact(self) -> Artifact:
        """Return the artifact, whose manifest says what runs in patches, or in strips whose rows are computed once."""
        choice = self.choice
        patches = {
            "until": choice.patch.until, "rows": choice.rows, "columns": choice.columns, "is_cascade": choice.is_cascade,
            "layer": self.layer, "multiply_adds": choice.products,
        }  # fmt: skip
        return replace(self.built.artifact, manifest={**self.built.artifact.manifest, "patches": patches})


class Patches:
    """The ways of one program. What was tried is remembered."""

    def __init__(self, emitter: Emitter, program: Program) -> None:
        self._emitter, self._program = emitter, program
        self._states = sum(program.weights[state.name].nbytes for state in program.states)
        self._products = products(program)
        self._placed: dict[Choice, Placed] = {}
        self._built: dict[Choice, Way] = {}

    @cached_property
    def _choices(self) -> list[Choice]:
        """All of them, those with the fewest products first."""
        return choices(self._program, 1 << 62)

    @property
    def count(self) -> int:
        """Return how many ways were tried."""
        return len(self._placed)

    def cheapest(self, ram_bytes: int, most_products: float = math.inf) -> Way | None:
        """Return the way that fits into a limit, and into the other budgets, with the fewest products; None if none is found."""
        return self._first(self._cheap(ram_bytes, most_products), ram_bytes)

    def smallest(self, ram_bytes: int, is_needed: bool = False) -> Way | None:
        """Return the way with the smallest arena that fits into a limit and into the other budgets; None if none is found.

        is_needed: whether the program does not fit without patches, so that more may be computed twice.
        """
        best = self._first(self._small(is_needed), ram_bytes)
        # Estimates know no scratch memory: what the limit that was reached would give may be as small, and cheaper.
        while best and (cheaper := self.cheapest(best.ram_bytes, best.choice.products - 1)):
            best = cheaper
        return best

    def look(self) -> None:
        """Place the smallest ways without building one: for `least`, where another budget is exceeded anyway."""
        self._small(True, _LOOKED_AT)

    def least(self) -> tuple[Choice, Placed] | None:
        """Return the one with the least RAM among the ways that were tried; None if there are none."""
        found = self._placed.items()
        return min(found, key=lambda each: (each[1].least_bytes, each[0].products)) if found else None

    def build(self, choice: Choice) -> Way:
        """Build a way whether it fits or not, with the usual kernels where many are. Raises ToolchainError without a compiler."""
        if choice not in self._built:
            tries_many = self._emitter.options.optimize == "ram"
            build = self._emitter.build if tries_many else partial(build_chosen, self._emitter)
            built = build(self._place(choice))
            self._built[choice] = Way(choice, self.layer(choice), built)
        return self._built[choice]

    def finished(self, way: Way) -> Way:
        """Return a way with its kernels chosen, if it was built without, and still fits so."""
        if self._emitter.options.optimize != "ram":
            return way
        built = build_chosen(self._emitter, self._place(way.choice))
        over = exceeded(self._emitter.target, built.placement, built.rows, built.measured)
        return way if over else replace(way, built=built)

    def is_cheap(self, choice: Choice) -> bool:
        """Return whether a way computes so little twice that it may be taken for RAM that is not needed."""
        return choice.products <= self._products * _MOST_PRODUCTS

    def layer(self, choice: Choice) -> str:
        """Return the layer that the patches of a way end with, as the user's module has it."""
        node = next(node for node in self._program.graph.nodes if node.name == choice.patch.until)
        return self._program.layer(node) or node.name

    def _cheap(self, ram_bytes: int, most_products: float) -> Iterator[Choice]:
        """Yield ways that may fit, those with the fewest products first."""
        for choice in self._choices:
            if choice.products > most_products:
                return
            if self._guess(choice) <= ram_bytes:
                yield choice

    def _guess(self, choice: Choice) -> float:
        """Return the bytes that a way takes at least, going by how far off the estimate of the most similar one was that was placed."""
        if choice in self._placed:
            return self._placed[choice].least_bytes
        similar = [
            each
            for each in self._placed
            if each.is_cascade == choice.is_cascade and (each.is_cascade or each.patch.until == choice.patch.until)
        ]
        if not similar:
            return self._states + choice.ram_bytes * _LEAST_RATIO[choice.is_cascade]
        other = min(similar, key=lambda each: _distance(each, choice))
        ratio = self._placed[other].placement.plan.arena_bytes / other.ram_bytes
        return self._states + choice.ram_bytes * ratio * _MARGIN

    def _small(self, is_needed: bool, count: int = _MOST_CHOICES) -> list[Choice]:
        """Return ways with a small arena, the smallest first."""
        most = self._products * (_MOST_IN_NEED if is_needed else _MOST_PRODUCTS)
        found = [choice for choice in self._choices if choice.products <= most]
        least = min((choice.ram_bytes for choice in found), default=0)
        near = [choice for choice in found if choice.ram_bytes <= least + least // 10][: count // 2]
        low = sorted(found, key=lambda choice: (choice.ram_bytes, choice.products))[: count // 2]
        tried = [choice for choice in dict.fromkeys((*near, *low, *self._placed)) if choice.products <= most]
        return sorted(tried, key=lambda each: (self._place(each).least_bytes, each.products))

    def _first(self, ways: Iterable[Choice], ram_bytes: int) -> Way | None:
        target = replace(self._emitter.target, ram_bytes=ram_bytes)
        builds = 0
        for choice in islice(ways, _MOST_CHOICES):
            if self._place(choice).least_bytes > ram_bytes:
                continue
            if builds == _MOST_BUILDS:
                return None
            way = self.build(choice)
            if not exceeded(target, way.built.placement, way.built.rows, way.built.measured):
                return way
            builds += 1
        return None

    def _place(self, choice: Choice) -> Placed:
        if choice not in self._placed:
            rewritten, _ = PassManager((choice.patch,)).run(self._program)
            self._placed[choice] = self._emitter.place(rewritten, reorder=False)
        return self._placed[choice]


def _distance(one: Choice, other: Choice) -> float:
    return abs(math.log(one.rows / other.rows)) + abs(math.log(one.columns / other.columns))

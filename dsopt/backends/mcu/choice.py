"""One way for each layer, of several whose costs are known: the fastest, the smallest, or what is between, within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

_MOST_COMBINATIONS = 20_000
"""Up to so many are all looked at."""
_PRICES = range(-10, 11, 2)
"""Of a byte: powers of two of the instructions that there are for each byte."""

_MOST_PAIRED = 100
"""Up to so many options of all layers, pairs of them are looked at."""

_Choice = tuple[int, ...]
"""The number of an option for each layer."""


@dataclass(frozen=True)
class Option:
    """What one way to write a layer takes. parts: bytes of flash by name; what several layers name alike is there once."""

    instructions: int
    parts: Mapping[str, int]


@dataclass(frozen=True)
class Limits:
    """What a whole program may take, None for as much as it likes."""

    flash_bytes: int | None = None
    instructions: int | None = None


@dataclass(frozen=True)
class Rest:
    """What a program takes beside the layers that there is a choice for."""

    instructions: int = 0
    flash_bytes: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Totals:
    """What a whole program takes."""

    instructions: int
    flash_bytes: int

    def overrun(self, limits: Limits) -> float:
        """Return by how much limits are exceeded, as fractions of them together."""
        pairs = ((self.flash_bytes, limits.flash_bytes), (self.instructions, limits.instructions))
        return sum(max(0, need - limit) / max(limit, 1) for need, limit in pairs if limit is not None)


Rank = tuple[float, ...]


def choose(
    layers: Sequence[Sequence[Option]], optimize: str, limits: Limits, rest: Rest, most: int = _MOST_COMBINATIONS
) -> _Choice:  # fmt: skip
    """Return the number of the best option of each layer; of equals, the first options. Deterministic.

    optimize: "speed" has the fewest instructions; "flash" the fewest bytes with at most half as many instructions again as the first
    options; "balanced" and "ram" are neither slower nor larger than the first options, with the least product of both: a percent of
    one is worth a percent of the other.
    Limits come first: where they cannot be met, what exceeds them least is chosen.
    most: up to so many combinations are all looked at; of more, those that a local search comes to from several starts.
    """
    usual = totals(layers, [0] * len(layers), rest)
    search = _Search(layers, rest, lambda found: (found.overrun(limits), *_RANKS[optimize](found, usual)))
    if math.prod(len(options) for options in layers) <= most:
        return search.best_of_all()
    return search.best_from_starts(usual)


def _balanced(found: Totals, usual: Totals) -> Rank:
    over = found.overrun(Limits(usual.flash_bytes, usual.instructions))
    return over, found.instructions * found.flash_bytes, found.flash_bytes


def _small(found: Totals, usual: Totals) -> Rank:
    return found.overrun(Limits(instructions=usual.instructions * 3 // 2)), found.flash_bytes, found.instructions


_RANKS: Mapping[str, Callable[[Totals, Totals], Rank]] = {
    "speed": lambda found, _: (found.instructions, found.flash_bytes),
    "balanced": _balanced,
    "ram": _balanced,
    "flash": _small,
}
"""What is to be least, in this order, given what the first options take."""


def totals(layers: Sequence[Sequence[Option]], chosen: Sequence[int], rest: Rest) -> Totals:
    """Return what a program takes with these options."""
    taken = [options[number] for options, number in zip(layers, chosen, strict=True)]
    parts = dict(rest.parts)
    for option in taken:
        parts.update(option.parts)
    instructions = rest.instructions + sum(option.instructions for option in taken)
    return Totals(instructions, rest.flash_bytes + sum(parts.values()))


@dataclass(frozen=True)
class _Sized:
    """An option as numbers: bytes that no other layer shares, and which of the parts that layers share it has."""

    instructions: int
    own_bytes: int
    shared: tuple[int, ...]

    @staticmethod
    def of(option: Option, bits: Mapping[str, int]) -> _Sized:
        """Number what is shared."""
        own = sum(size for part, size in option.parts.items() if part not in bits)
        return _Sized(option.instructions, own, tuple(bits[part] for part in option.parts if part in bits))


class _Search:
    """Stands at a choice, and keeps the sums of it; `rank` is that of where it stands."""

    def __init__(self, layers: Sequence[Sequence[Option]], rest: Rest, rank: Callable[[Totals], Rank]) -> None:
        self._rank = rank
        bits, self._bytes = _shared_parts(layers, rest)
        self._layers = [[_Sized.of(option, bits) for option in options] for options in layers]
        self._users = [0] * len(self._bytes)
        self._instructions = rest.instructions
        self._flash_bytes = rest.flash_bytes + sum(rest.parts.values())
        self.chosen = [0] * len(layers)
        for options in self._layers:
            self._add(options[0], 1)

    @property
    def rank(self) -> Rank:
        """Return what is to be least."""
        return self._rank(Totals(self._instructions, self._flash_bytes))

    def go(self, chosen: Sequence[int]) -> None:
        """Stand at a choice."""
        for layer, number in enumerate(chosen):
            if number != self.chosen[layer]:
                self._add(self._layers[layer][self.chosen[layer]], -1)
                self._add(self._layers[layer][number], 1)
                self.chosen[layer] = number

    def _add(self, option: _Sized, count: int) -> None:
        self._instructions += count * option.instructions
        self._flash_bytes += count * option.own_bytes
        for bit in option.shared:
            self._users[bit] += count
            if self._users[bit] == (1 if count > 0 else 0):
                self._flash_bytes += count * self._bytes[bit]

    def best_of_all(self) -> _Choice:
        """Return the best of all combinations."""
        best = self.rank, tuple(self.chosen)
        for numbers in product(*(range(len(options)) for options in self._layers)):
            self.go(numbers)
            best = min(best, (self.rank, numbers))
        return best[1]

    def best_from_starts(self, usual: Totals) -> _Choice:
        """Return the best that a search from several starts comes to."""
        ends = []
        for start in self._starts(usual):
            self.go(start)
            while self._improve_layers() or self._improve_sharers():
                pass
            ends.append((self.rank, tuple(self.chosen)))
        self.go(min(ends)[1])
        if sum(len(options) for options in self._layers) <= _MOST_PAIRED:
            while self._improve_pairs():
                pass
        return tuple(self.chosen)

    def _starts(self, usual: Totals) -> list[_Choice]:
        """Return the n-th options of all layers, for all n, and those that are best for several prices of a byte in instructions."""
        most = max(len(options) for options in self._layers)
        found = [tuple(min(number, len(options) - 1) for options in self._layers) for number in range(most)]
        for power in _PRICES:
            price = 2.0**power * usual.instructions / max(usual.flash_bytes, 1)
            found.append(tuple(_cheapest(options, price) for options in self._layers))
        return list(dict.fromkeys(found))

    def _improve_layers(self) -> bool:
        """Go to the best option of one layer after the other."""
        return sum(self._try([layer]) for layer in range(len(self._layers))) > 0

    def _improve_pairs(self) -> bool:
        """The same for two layers at a time: one gives what the other takes."""
        return sum(self._try(pair) for pair in combinations(range(len(self._layers)), 2)) > 0

    def _improve_sharers(self) -> bool:
        """Have all layers that can take a part, or leave it, do so in the fastest way, if that is better."""
        moves = []
        for bit, is_wanted in product(range(len(self._bytes)), (True, False)):
            found = list(self.chosen)
            for layer, options in enumerate(self._layers):
                numbers = [number for number, option in enumerate(options) if (bit in option.shared) == is_wanted]
                if numbers and found[layer] not in numbers:
                    found[layer] = min(numbers, key=lambda n: (options[n].instructions, n))
            moves.append(tuple(found))
        return self._go_to_best(moves)

    def _try(self, layers: Sequence[int]) -> bool:
        """Go to the best options of some layers."""
        moves = []
        for numbers in product(*(range(len(self._layers[layer])) for layer in layers)):
            found = list(self.chosen)
            for layer, number in zip(layers, numbers, strict=True):
                found[layer] = number
            moves.append(tuple(found))
        return self._go_to_best(moves)

    def _go_to_best(self, moves: Sequence[_Choice]) -> bool:
        here = best = self.rank, tuple(self.chosen)
        for move in moves:
            self.go(move)
            best = min(best, (self.rank, move))
        self.go(best[1])
        return best[0] < here[0]


def _cheapest(options: Sequence[_Sized], price: float) -> int:
    return min(range(len(options)), key=lambda n: (options[n].instructions + price * options[n].own_bytes, n))


def _shared_parts(layers: Sequence[Sequence[Option]], rest: Rest) -> tuple[dict[str, int], list[int]]:
    """Number the parts that several layers name, and return the bytes of each: 0 for what is there anyway."""
    count: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for options in layers:
        named = {part: size for option in options for part, size in option.parts.items()}
        sizes |= named
        for part in named:
            count[part] = count.get(part, 0) + 1
    shared = [part for part in count if count[part] > 1 or part in rest.parts]
    bits = {part: bit for bit, part in enumerate(shared)}
    return bits, [0 if part in rest.parts else sizes[part] for part in shared]

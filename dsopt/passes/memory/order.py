"""The order of operators that needs the least memory: best first over sets of operators that have run, a beam where those are too many.

What is alive depends on which operators have run and not on their order, so states are the downsets of the graph of dependencies
(Ahn et al., SERENITY, MLSys 2020). The state with the lowest peak is taken next; the first that has run all is the best. One rule
cuts most of it: a chain of operators that can run, fits below the peak and leaves no more alive than before runs at once. What a set
of operators adds to the bytes alive only falls as more have run before it (a buffer that they begin may end, one that they end may
have ended: submodularity), so moving the chain to the front of any order raises nothing. (Each operator of the chain needs the one
before it, and none but the last leaves so little: what another order runs of it is a beginning, and the rest adds nothing to that.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from dsopt.passes.memory.arena import ALIGNMENT, aligned
from dsopt.passes.memory.liveness import Step
from dsopt.passes.memory.overlay import Overlay, joined, most_saved

MAX_STATES = 100_000
"""Sets of operators that are looked at before the beam takes over: about two seconds."""
_BEAM_STATES = 40_000
_WIDEST_BEAM = 200
_CHAIN = 6
"""Operators of a harmless chain after the first."""


@dataclass(frozen=True)
class Order:
    """Numbers of operators in the order in which they run, the bytes alive at the worst step, and whether no order has fewer."""

    numbers: tuple[int, ...]
    peak_bytes: int
    optimal: bool


def predecessors(steps: Sequence[Step]) -> tuple[frozenset[int], ...]:
    """Return, for each step, those that must run before it: the writers of what it touches, and the readers of what it overwrites."""
    writer: dict[str, int] = {}
    readers: dict[str, set[int]] = {}
    found: list[frozenset[int]] = []
    for number, step in enumerate(steps):
        before = {writer[name] for name in (*step.reads, *step.writes) if name in writer}
        for name in step.writes:
            before |= readers.pop(name, set())
            writer[name] = number
        for name in step.reads:
            if name not in step.writes:
                readers.setdefault(name, set()).add(number)
        found.append(frozenset(before - {number}))
    return tuple(found)


def find_order(
    steps: Sequence[Step],
    sizes: Mapping[str, int],
    before: Iterable[str] = (),
    after: Iterable[str] = (),
    overlays: Iterable[Overlay] = (),
    *,
    alignment: int = ALIGNMENT,
    states: int = MAX_STATES,
) -> Order:
    """Find an order with the fewest bytes alive at the worst step; the given one if none has fewer.

    steps, sizes, before, after: as for `lifetimes`, steps in an order that works. overlays: what results may save at the step at which
    they begin. states: how many sets of operators to look at before a beam search takes over. Deterministic.
    """
    graph = _Graph(steps, sizes, before, after, overlays, alignment)
    given = Order(tuple(range(len(steps))), graph.peak(range(len(steps))), False)
    if given.peak_bytes <= graph.bound:
        return Order(given.numbers, given.peak_bytes, True)
    found = _best_first(graph, given.peak_bytes, states)
    if found is None:
        return Order(given.numbers, given.peak_bytes, True)
    if not found.optimal:
        found = _beam(graph)
    return found if found.peak_bytes < given.peak_bytes else given


class _Graph:
    """Operators as bits of a mask: what each needs, what it would leave alive."""

    def __init__(
        self,
        steps: Sequence[Step],
        sizes: Mapping[str, int],
        before: Iterable[str],
        after: Iterable[str],
        overlays: Iterable[Overlay],
        alignment: int,
    ) -> None:
        self.count, self._alignment = len(steps), alignment
        self.all = (1 << self.count) - 1
        self.needs = [sum(1 << each for each in found) for found in predecessors(steps)]
        self.followers: list[list[int]] = [[] for _ in steps]
        for number, mask in enumerate(self.needs):
            for other in _bits(mask):
                self.followers[other].append(number)
        self._size = {name: aligned(size, alignment) for name, size in sizes.items()}
        self._users = dict.fromkeys(self._size, 0)
        self._writers = dict.fromkeys(self._size, 0)
        self._touched = [tuple(sorted({n for n in (*s.reads, *s.writes) if n in self._size})) for s in steps]
        for number, step in enumerate(steps):
            for name in self._touched[number]:
                self._users[name] |= 1 << number
                self._writers[name] |= (1 << number) if name in step.writes else 0
        self._held = {*before} & {*self._size}
        self._kept = {*after}
        self._pairs: list[list[Overlay]] = [[] for _ in steps]
        for each in overlays:
            writers = self._writers.get(each.output, 0)
            if writers and not writers & (writers - 1) and self._users.get(each.input, 0) & writers:
                self._pairs[writers.bit_length() - 1].append(each)
        self._saved: dict[tuple[int, frozenset[str]], int] = {}
        self._begun = [0] * self.count
        self._may_begin: list[list[tuple[int, int]]] = [[] for _ in steps]
        self._may_end: list[list[tuple[int, int, str]]] = [[] for _ in steps]
        for number in range(self.count):
            self._sort_touched(number)
        self.first_alive = sum(self._size[name] for name in self._held if self._users[name] or name in self._kept)
        self.bound = self._bound()

    def _least(self, number: int, earlier: int, later: int) -> int:
        """Return the fewest bytes alive while an operator runs, in any order: what it touches, and what lives across it.

        earlier, later: the masks of all that must run before and after it.
        """
        touched = self._touched[number]
        across = sum(
            size
            for name, size in self._size.items()
            if (name in self._held or self._writers[name] & earlier)
            and (name in self._kept or self._users[name] & later)
            and name not in touched
        )
        dying = frozenset(name for name in touched if name not in self._kept)
        return across + sum(self._size[name] for name in touched) - self._saving(number, dying)

    def _bound(self) -> int:
        earlier, later = [0] * self.count, [0] * self.count
        for number in range(self.count):
            for other in _bits(self.needs[number]):
                earlier[number] |= earlier[other] | (1 << other)
        for number in reversed(range(self.count)):
            for other in self.followers[number]:
                later[number] |= later[other] | (1 << other)
        anywhere = max((self._least(number, earlier[number], later[number]) for number in range(self.count)), default=0)
        return max(anywhere, self._least_first(), self._least_last())

    def _least_first(self) -> int:
        """Return the fewest bytes alive while an operator runs that may be the first."""
        return min((self.run(0, self.first_alive, n)[0] for n, mask in enumerate(self.needs) if not mask), default=0)

    def _least_last(self) -> int:
        """Return the fewest bytes alive while an operator runs that may be the last: what is kept, and what ends with it."""
        kept = sum(self._size[name] for name in self._kept & {*self._size} if self._users[name] or name in self._held)
        found = []
        for number in (n for n, followers in enumerate(self.followers) if not followers):
            during, left = self.run(self.all & ~(1 << number), 0, number)
            found.append(kept + during - left)
        return min(found, default=0)

    def _saving(self, number: int, dying: frozenset[str]) -> int:
        if not self._pairs[number]:
            return 0
        key = number, dying
        if key not in self._saved:
            pairs = [each for each in self._pairs[number] if each.input in dying]
            self._saved[key] = most_saved(joined(pairs).values(), self._size, self._alignment)
        return self._saved[key]

    def _sort_touched(self, number: int) -> None:
        """Tell what always begins with an operator, what may begin with it, and what may end."""
        own = 1 << number
        for name in self._touched[number]:
            size = self._size[name]
            if name not in self._held and self._writers[name] == own:
                self._begun[number] += size
            elif name not in self._held:
                self._may_begin[number].append((size, self._writers[name]))
            if name not in self._kept:
                self._may_end[number].append((size, self._users[name] & ~own, name))

    def run(self, done: int, alive: int, number: int) -> tuple[int, int]:
        """Return the bytes alive while an operator runs and after it, where those in `done` have run and leave `alive`."""
        during = alive + self._begun[number]
        for size, writers in self._may_begin[number]:
            if not writers & done:
                during += size
        left = during
        dying = []
        for size, others, name in self._may_end[number]:
            if not others & ~done:
                left -= size
                dying.append(name)
        if self._pairs[number]:
            during -= self._saving(number, frozenset(dying))
        return during, left

    def peak(self, numbers: Iterable[int]) -> int:
        """Return the bytes alive at the worst step of an order."""
        done, alive, peak = 0, self.first_alive, 0
        for number in numbers:
            during, alive = self.run(done, alive, number)
            peak = max(peak, during)
            done |= 1 << number
        return peak

    def start(self) -> _State:
        """Return the state in which nothing has run."""
        ready = sum(1 << number for number in range(self.count) if not self.needs[number])
        return _State(0, self.first_alive, ready, 0, 0, 0, None)

    def choices(self, state: _State, peak: int) -> list[_State]:
        """Return the states that may come next, alone one that can do no harm."""
        found = []
        for number in _bits(state.ready):
            following = self._after(state, number)
            if following.during <= peak:
                harmless = self._chain(following, state.alive, peak, number, _CHAIN)
                if harmless is not None:
                    return [harmless]
            found.append(following)
        return found

    def _chain(self, state: _State, alive: int, peak: int, last: int, length: int) -> _State | None:
        """Return where a chain of operators first leaves no more than `alive`, each made ready by the one before; None without one."""
        if state.alive <= alive:
            return state
        if length == 0:
            return None
        for number in self.followers[last]:
            if state.ready >> number & 1:
                following = self._after(state, number)
                if following.during <= peak:
                    found = self._chain(following, alive, peak, number, length - 1)
                    if found is not None:
                        return found
        return None

    def _after(self, state: _State, number: int) -> _State:
        during, alive = self.run(state.done, state.alive, number)
        done = state.done | (1 << number)
        ready = state.ready & ~(1 << number)
        for other in self.followers[number]:
            if not self.needs[other] & ~done:
                ready |= 1 << other
        moved = state.moved + abs(number - state.ran)
        return _State(done, alive, ready, max(state.during, during), state.ran + 1, moved, (number, state.path))


_Path = tuple[int, "_Path | None"]
"""The last operator, and the path before it."""


class _State(NamedTuple):
    """Which operators have run and could run next, the bytes alive, and how it came to be: the worst step and how far all moved."""

    done: int
    alive: int
    ready: int
    during: int
    ran: int
    moved: int
    path: _Path | None


def _best_first(graph: _Graph, given_bytes: int, states: int) -> Order | None:
    """Return the best order, one that is not optimal if there are too many states, None if none is better than the given one.

    Of equal peaks the state that has run most comes first, then the one nearest to the given order.
    """
    pushed = count()
    heap = [(graph.bound, 0, 0, next(pushed), graph.start())]
    lowest: dict[int, int] = {}
    closed: set[int] = set()
    while heap:
        peak, _, _, _, state = heapq.heappop(heap)
        if state.done == graph.all:
            return Order(_numbers(state.path), state.during, True)
        if state.done in closed:
            continue
        closed.add(state.done)
        if len(closed) > states:
            return Order((), 0, False)
        for following in graph.choices(state, peak):
            now = max(peak, following.during)
            if now < lowest.get(following.done, given_bytes):
                lowest[following.done] = now
                heapq.heappush(heap, (now, -following.ran, following.moved, next(pushed), following))
    return None


def _beam(graph: _Graph) -> Order:
    """Keep the best states with about equally many operators, by peak and by what they leave alive."""
    width = max(1, min(_WIDEST_BEAM, _BEAM_STATES // graph.count))
    level = [graph.start()]
    while level[0].done != graph.all:
        found: dict[int, _State] = {}
        least = min(state.ran for state in level)
        for state in level:
            for following in graph.choices(state, max(graph.bound, state.during)) if state.ran == least else [state]:
                if following.done not in found or _rank(graph, following) < _rank(graph, found[following.done]):
                    found[following.done] = following
        level = sorted(found.values(), key=lambda state: _rank(graph, state))[:width]
    return Order(_numbers(level[0].path), level[0].during, False)


def _rank(graph: _Graph, state: _State) -> tuple[int, int, int, int]:
    return max(state.during, graph.bound), state.alive, state.moved, state.done


def _numbers(path: _Path | None) -> tuple[int, ...]:
    found: list[int] = []
    while path is not None:
        found.append(path[0])
        path = path[1]
    return tuple(reversed(found))


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found

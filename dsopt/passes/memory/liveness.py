"""First and last use of every buffer, from the steps that read and write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """A buffer to be placed: its bytes, and the first and last step, both inclusive, during which they must stay whole."""

    name: str
    size_bytes: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.size_bytes < 1 or not self.first <= self.last:
            raise ValueError(
                f"{self.name}: {self.size_bytes} bytes during steps {self.first} to {self.last} is no lifetime"
            )

    def meets(self, other: Lifetime) -> bool:
        """Return whether there is a step at which both are alive."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Step:
    """One operator: the buffers it reads and writes. Scratch counts as written."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


def lifetimes(
    steps: Sequence[Step], sizes: Mapping[str, int], before: Iterable[str] = (), after: Iterable[str] = ()
) -> tuple[Lifetime, ...]:
    """Return the lifetime of every buffer in `sizes` that is used, in the order of `sizes`.

    sizes: bytes of each buffer to be placed; other names in the steps are ignored.  before: buffers that hold values when the
    first step begins (inputs).  after: buffers that must hold theirs after the last step (outputs).
    Raises ValueError if a buffer is read before anything has written it.
    """
    first = dict.fromkeys(before, 0)
    last = dict(first)
    for number, step in enumerate(steps):
        for name in step.reads:
            if name in sizes and name not in first:
                raise ValueError(f"step {number} reads {name}, which nothing has written")
            last[name] = number
        for name in step.writes:
            first.setdefault(name, number)
            last[name] = number
    end = max(len(steps) - 1, 0)
    for name in after:
        first.setdefault(name, end)
        last[name] = end
    return tuple(Lifetime(name, size, first[name], last[name]) for name, size in sizes.items() if name in first)

"""From executed blocks to costs of layers and functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsopt.simulate.block_counter import Block
from dsopt.simulate.cycles import TAKEN_BRANCH, block_cycles
from dsopt.simulate.encoding import instruction_count, instruction_lengths
from dsopt.simulate.image import Image
from dsopt.simulate.simulation import Cost


@dataclass
class _Sum:
    """Instructions, and cycles where they can be estimated."""

    family: str
    instructions: int = 0
    cycles: int = 0

    def add(self, hits: int, code: bytes, taken: int) -> None:
        """Add a block or a piece of one: how often it ran, and how often its end jumped."""
        self.instructions += hits * instruction_count(code, self.family)
        if self.family == "arm":
            self.cycles += hits * block_cycles(code) + taken * TAKEN_BRANCH

    def cost(self) -> Cost:
        return Cost(self.instructions, self.cycles if self.family == "arm" else None)


def layer_costs(image: Image, blocks: Sequence[Block], layers: Sequence[str]) -> dict[str, Cost]:
    """Sum what ran while each layer was active, whatever function it was in. Layers that never ran cost nothing."""
    sums = [_Sum(image.family) for _ in layers]
    for block in blocks:
        if block.layer >= 0:
            sums[block.layer].add(block.hits, image.read(block.address, block.size), block.taken)
    return {name: total.cost() for name, total in zip(layers, sums, strict=True)}


def function_costs(image: Image, blocks: Sequence[Block]) -> dict[str, Cost]:
    """Sum what ran in each function, without what it called; the most expensive first.

    A block belongs to the function in which each of its instructions lies: one that falls through into the next is divided.
    """
    sums: dict[str, _Sum] = {}
    for block in blocks:
        pieces = list(_pieces(image, block))
        for index, (name, code) in enumerate(pieces):
            taken = block.taken if index == len(pieces) - 1 else 0
            sums.setdefault(name, _Sum(image.family)).add(block.hits, code, taken)
    costs = {name: total.cost() for name, total in sums.items()}
    return dict(sorted(costs.items(), key=lambda item: (-item[1].instructions, item[0])))


def _pieces(image: Image, block: Block) -> Iterator[tuple[str, bytes]]:
    """Yield the functions that a block lies in, and its code in each."""
    code = image.read(block.address, block.size)
    offset = start = 0
    name = image.function_at(block.address)
    for length in instruction_lengths(code, image.family):
        here = image.function_at(block.address + offset)
        if here != name:
            yield name, code[start:offset]
            name, start = here, offset
        offset += length
    yield name, code[start:]

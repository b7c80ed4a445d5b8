"""From executed blocks to costs of layers and functions."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.simulate.block_counter import Block
from dsopt.simulate.cycles import TAKEN_BRANCH, block_cycles, instructions
from dsopt.simulate.image import Image
from dsopt.simulate.simulation import Cost


def layer_costs(image: Image, blocks: Sequence[Block], layers: Sequence[str]) -> dict[str, Cost]:
    """Sum what ran while each layer was active, whatever function it was in. Layers that never ran cost nothing."""
    totals = [(0, 0)] * len(layers)
    for block in blocks:
        if block.layer >= 0:
            count, cycles = totals[block.layer]
            totals[block.layer] = count + block.hits * block.instructions, cycles + _cycles(image, block)
    return {name: Cost(*total) for name, total in zip(layers, totals, strict=True)}


def function_costs(image: Image, blocks: Sequence[Block]) -> dict[str, Cost]:
    """Sum what ran in each function, without what it called; the most expensive first.

    A block belongs to the function in which each of its instructions lies: one that falls through into the next is divided.
    """
    totals: dict[str, tuple[int, int]] = {}
    for block in blocks:
        code = image.read(block.address, block.size)
        address, start = block.address, block.address
        name = image.function_at(address)
        pieces: list[tuple[str, bytes]] = []
        for _, second in instructions(code):
            here = image.function_at(address)
            if here != name:
                pieces.append((name, code[start - block.address : address - block.address]))
                name, start = here, address
            address += 2 if second < 0 else 4
        pieces.append((name, code[start - block.address :]))
        for index, (name, piece) in enumerate(pieces):
            count, cycles = totals.get(name, (0, 0))
            count += block.hits * sum(1 for _ in instructions(piece))
            cycles += block.hits * block_cycles(piece)
            if index == len(pieces) - 1:
                cycles += block.taken * TAKEN_BRANCH
            totals[name] = count, cycles
    return {name: Cost(*total) for name, total in sorted(totals.items(), key=lambda item: (-item[1][0], item[0]))}


def _cycles(image: Image, block: Block) -> int:
    return block.hits * block_cycles(image.read(block.address, block.size)) + block.taken * TAKEN_BRANCH

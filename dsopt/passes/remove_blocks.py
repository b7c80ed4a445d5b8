"""remove-blocks: whole residual blocks or transformer layers that do least leave the program.

A block is found by what it computes: a sum x + f(x), where f(x) is made of x. Without the block, x passes. The sums that one module of
the user's computes, such as the two of a transformer layer, go together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import Pass, PassContext


@dataclass(frozen=True)
class Block:
    """The sums of one module. shortcuts: each sum, and which of its operands passes without the block."""

    name: str
    shortcuts: tuple[tuple[fx.Node, int], ...]


@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Remove the residual blocks or transformer layers that do least: add(x, f(x)) -> x.

    count: how many blocks go, one after the other: always the one without which the outputs move least on the calibration data, the
    blocks before it gone (Men et al. 2024, "ShortGPT", and Zhong et al. 2024, "BlockPruner", remove layers so).  keep: modules whose
    blocks stay, as "layers.0|layers.11".
    """

    name: ClassVar[str] = "remove-blocks"
    changes_outputs: ClassVar[bool] = True
    count: int = 1
    keep: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count is {self.count!r} and must be a whole number from 1 on")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Measure the blocks, and remove the one that does least, until `count` are gone."""
        blocks = {block.name: block for block in find_blocks(program) if not self._is_kept(block)}
        if self.count > len(blocks):
            raise UsageError(
                "DS0375", f"count={self.count} blocks are to go, and the program has {len(blocks)}",
                where=", ".join(blocks), why="a block is a sum x + f(x) whose f(x) is made of x, of the shape of x",
                fix=f"ask for {len(blocks)} or fewer" if blocks else "prune channels instead",
            )  # fmt: skip
        batches = _batches(program, context)
        wanted = [_outputs(program, batch, {}) for batch in batches]
        gone: list[Block] = []
        while len(gone) < self.count:
            moved = {}
            for number, block in enumerate(blocks.values()):
                context.progress(number, len(blocks), "measuring blocks")
                moved[block.name] = _movement(program, batches, wanted, [*gone, block])
            least = min(moved, key=lambda name: moved[name])
            gone.append(blocks.pop(least))
            rewriter.changes.append(f"{least} removed: the outputs move by {100 * moved[least]:.2f} %")
        for block in gone:
            for node, place in block.shortcuts:
                node.replace_all_uses_with(node.args[place])  # type: ignore[arg-type]
        rewriter.erase_dead()

    def _is_kept(self, block: Block) -> bool:
        return any(fnmatchcase(block.name, pattern.strip()) for pattern in self.keep.split("|"))


def find_blocks(program: Program) -> tuple[Block, ...]:
    """Return the blocks of a program in its order, under the names of the modules that compute the sums."""
    ancestors = _ancestors(program.graph)
    found: dict[str, list[tuple[fx.Node, int]]] = {}
    for node in program.graph.nodes:
        place = _shortcut(node, ancestors)
        if place is not None:
            found.setdefault(program.layer(node) or node.name, []).append((node, place))
    return tuple(Block(name, tuple(shortcuts)) for name, shortcuts in found.items())


def _ancestors(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return for each node all that it is made of, as bits: one for each place in the graph."""
    bits: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.nodes):
        own = 1 << place
        for source in node.all_input_nodes:
            own |= bits[source]
        bits[node] = own
    return bits


def _shortcut(node: fx.Node, ancestors: Mapping[fx.Node, int]) -> int | None:
    """Return which operand of a sum passes unchanged if the other goes; None if the node is no x + f(x)."""
    if node.target is not torch.ops.aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    if not all(isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), Tensor) for arg in node.args):
        return None
    a, b = node.args
    for place, (short, long) in enumerate(((a, b), (b, a))):
        assert isinstance(short, fx.Node)
        assert isinstance(long, fx.Node)
        same = short.meta["val"].shape == node.meta["val"].shape and short.meta["val"].dtype == node.meta["val"].dtype
        if same and short.op == "call_function" and short is not long and _own_bit(ancestors, short) & ancestors[long]:
            return place
    return None


def _own_bit(ancestors: Mapping[fx.Node, int], node: fx.Node) -> int:
    return 1 << (ancestors[node].bit_length() - 1)


def _batches(program: Program, context: PassContext) -> list[tuple[Tensor, ...]]:
    names = [spec.name for spec in program.signature.inputs]
    missing = [name for batch in context.calibration for name in names if name not in batch]
    if missing or not context.calibration:
        what = f"the data lacks the input {missing[0]!r}" if missing else "remove-blocks needs data"
        raise UsageError(
            "DS0376",
            what,
            why="it measures what each block does to the outputs",
            fix="give inputs that are typical of use: --data samples.npz, or PassContext(calibration=...)",
        )
    return [tuple(batch[name] for name in names) for batch in context.calibration]


def _outputs(program: Program, batch: tuple[Tensor, ...], bypassed: Mapping[Any, Callable[..., Any]]) -> list[Tensor]:
    with torch.no_grad():
        results = evaluate(program.graph, program.bind(batch), substitutes=bypassed)
    return [each.double() for each in results[len(program.signature.states) :] if each.is_floating_point()]


def _movement(
    program: Program, batches: list[tuple[Tensor, ...]], wanted: list[list[Tensor]], gone: list[Block]
) -> float:
    """Return the length of the change of all outputs, over the length of the outputs."""
    bypassed = {node: partial(_operand, place) for block in gone for node, place in block.shortcuts}
    change = whole = 0.0
    for batch, outputs in zip(batches, wanted, strict=True):
        for want, have in zip(outputs, _outputs(program, batch, bypassed), strict=True):
            change += float((want - have).square().sum())
            whole += float(want.square().sum())
    return (change / whole) ** 0.5 if whole else 0.0


def _operand(place: int, *args: Any, **kwargs: Any) -> Any:
    return args[place]

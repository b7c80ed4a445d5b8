"""remove-blocks: whole residual blocks or transformer layers leave the program, those that do least or all but every k-th."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.ir.blocks import Block, Layer, cut_layers, find_blocks, find_layers
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import Pass, PassContext


@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Remove residual blocks or transformer layers: add(x, f(x)) -> x.

    count: how many go, one after the other: always the one without which the outputs move least on the calibration data, the blocks
    before it gone (Men et al. 2024, "ShortGPT", and Zhong et al. 2024, "BlockPruner", remove layers so).  every: keep the first layer
    and each `every`-th after it instead; this needs no data.  keep: modules whose blocks stay, as "layers.0|layers.11".

    What stands after the last sum in its module, such as the norm of a post-norm layer, goes with `every`, and stays with `count`.
    """

    name: ClassVar[str] = "remove-blocks"
    changes_outputs: ClassVar[bool] = True
    count: int = 1
    keep: str = ""
    every: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count is {self.count!r} and must be a whole number from 1 on")
        if not isinstance(self.every, int) or self.every in (1, True) or self.every < 0:
            raise ValueError(f"every is {self.every!r} and must be a whole number from 2 on, or 0 for count")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Remove all layers but every k-th; or measure the blocks, and remove the one that does least, until `count` are gone."""
        if self.every:
            layers = find_layers(program)
            if len(layers) < 2:
                raise _too_few(f"every={self.every} needs layers", [layer.name for layer in layers])
            remove_layers(
                rewriter, [each for n, each in enumerate(layers) if n % self.every and not self._is_kept(each)]
            )
            return
        blocks = {block.name: block for block in find_blocks(program) if not self._is_kept(block)}
        if self.count > len(blocks):
            raise _too_few(f"count={self.count} blocks are to go", list(blocks))
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

    def _is_kept(self, block: Block | Layer) -> bool:
        return any(fnmatchcase(block.name, pattern.strip()) for pattern in self.keep.split("|"))


def remove_layers(rewriter: Rewriter, layers: Sequence[Layer]) -> None:
    """Remove layers of the rewriter's program, with all that is then dead."""
    cut_layers(rewriter.program, layers)
    rewriter.changes += [f"{layer.name} removed" for layer in layers]
    rewriter.erase_dead()


def _too_few(wanted: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        "DS0375", f"{wanted}, and the program has {len(names)}",
        where=", ".join(names), why="a block is a sum x + f(x) whose f(x) is made of x, of the shape of x",
        fix=f"ask for {len(names)} or fewer" if names else "prune channels instead",
    )  # fmt: skip


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

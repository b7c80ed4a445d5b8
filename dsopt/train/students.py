"""student: the program that is to learn from another one, made of some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.ir.blocks import Layer, find_layers
from dsopt.passes.base import PassManager
from dsopt.passes.remove_blocks import RemoveBlocks, remove_layers


def student(teacher: Program, *, keep_every: int | None = None, blocks: Sequence[str] | None = None) -> Program:
    """Return a program of some of the teacher's layers, with its weights (Sanh et al. 2019, "DistilBERT", section 3).

    keep_every: keep the first layer and each `keep_every`-th after it.  blocks: the layers to keep, by the names of their modules, in which
    `*` stands for any part.  All that is outside of layers stays.  The teacher is not changed. For a narrower student, run `prune` on the
    result; any other program that takes the same inputs can be a student, too.
    Raises UsageError for layers that the teacher does not have.
    """
    if (keep_every is None) == (blocks is None):
        raise UsageError("DS0379", "a student is made by keep_every or by blocks", fix="give one of the two")
    if keep_every is not None:
        if not isinstance(keep_every, int) or keep_every < 2:
            raise UsageError("DS0379", f"keep_every is {keep_every!r} and must be a whole number from 2 on")
        return PassManager((RemoveBlocks(every=keep_every),)).run(teacher)[0]
    result = teacher.clone()
    layers = find_layers(result)
    kept = [layer for name in blocks or () for layer in _named(layers, name)]
    remove_layers(Rewriter(result), [layer for layer in layers if layer not in kept])
    result.verify()
    return result


def _named(layers: Sequence[Layer], name: str) -> list[Layer]:
    found = [layer for layer in layers if layer.is_called(name) or fnmatchcase(layer.name, name)]
    if not found:
        raise UsageError(
            "DS0379", f"the program has no layer {name!r}", fix="name some of: " + ", ".join(each.name for each in layers)
        )  # fmt: skip
    return found

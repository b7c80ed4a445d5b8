"""remove-dead-code: delete nodes that nothing uses and weights that no node reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """y = op(x), never used -> nothing."""

    name: ClassVar[str] = "remove-dead-code"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Delete all dead nodes; inputs stay, because they are part of the signature."""
        removed = rewriter.erase_dead()
        if removed:
            rewriter.changes.append(f"{removed} dead nodes removed")

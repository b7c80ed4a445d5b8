"""McuBackend: the protocol of `dsopt.backends.base` for microcontroller cores."""

from __future__ import annotations

from typing import Any

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.base import Blocker, EmitOptions, signature_manifest, state_files
from dsopt.backends.mcu.generate import generate
from dsopt.backends.mcu.pipeline import pipeline
from dsopt.backends.mcu.place import Placement, check_budget, place
from dsopt.ir import Program
from dsopt.passes.base import Pass
from dsopt.target import McuTarget, Target


class McuBackend:
    """Emit C99 for a core, build it, and measure it where the core can be emulated."""

    def pipeline(self, target: Target) -> tuple[Pass, ...]:
        """Return the default passes, in order."""
        return pipeline()

    def unsupported(self, program: Program, target: Target) -> tuple[Blocker, ...]:
        """Return every node without a loop form, and every shape that is not fixed."""
        from dsopt.backends.tir.lower import blockers

        return blockers(program)

    def emit(self, program: Program, target: Target, options: EmitOptions) -> Artifact:
        """Generate the C files and place memory. Raises BudgetError before any C is written if the values cannot fit."""
        from dsopt.backends.tir.lower import lower

        assert isinstance(target, McuTarget)
        steps = 3
        options.progress(0, steps, "lower")
        placement = place(lower(program))
        check_budget(placement, target)
        options.progress(1, steps, "generate C")
        sources = generate(program, placement, options.name, target.name, dsopt.__version__, options.seed)
        files = {name: text.encode() for name, text in sources.files.items()} | state_files(program)
        manifest = {
            **signature_manifest(program),
            "target": target.name,
            "layers": layers(placement),
            "memory": placement.manifest(),
        }
        options.progress(steps, steps, "done")
        return Artifact(manifest, files)


def layers(placement: Placement) -> list[dict[str, Any]]:
    """Return a row for each layer function, in the order in which they run, with the place of its first result."""
    rows: list[dict[str, Any]] = []
    for kernel in placement.program.kernels:
        buffer = placement.program.buffers[kernel.outputs[0]]
        root = placement.program.root(buffer.name)
        space, offset = (
            ("state", placement.states[root.name])
            if root.kind == "state"
            else ("arena", placement.plan.offsets[root.name])
        )
        rows.append(
            {
                "node": kernel.node,
                "function": kernel.name,
                "layer": kernel.layer,
                "source": kernel.source,
                "multiply_adds": kernel.multiply_adds,
                "result": {"space": space, "offset": offset, "shape": list(buffer.shape), "dtype": buffer.dtype},
            }
        )
    return rows

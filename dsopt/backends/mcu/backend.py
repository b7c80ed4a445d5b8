"""McuBackend: the protocol of `dsopt.backends.base` for microcontroller cores."""

from __future__ import annotations

from collections.abc import Mapping

from dsopt.artifact import Artifact
from dsopt.backends.base import INTEGER_LOWERING, Blocker, EmitOptions, refuse
from dsopt.backends.mcu.build import Build
from dsopt.backends.mcu.pipeline import pipeline
from dsopt.backends.tir.ports import refuse_float_ports
from dsopt.errors import ToolchainError
from dsopt.ir import Program
from dsopt.passes.base import Pass, parse_pipeline
from dsopt.runtime.executor import Executor
from dsopt.target import McuTarget, Target, core_of


class McuBackend:
    """Emit C99 for a core, build it, and measure it where the core can be emulated."""

    needs_fixed_sizes = True

    def pipeline(self, target: Target) -> tuple[Pass, ...]:
        """Return the default passes, in order."""
        return pipeline()

    def unsupported(self, program: Program, target: Target) -> tuple[Blocker, ...]:
        """Return every node without a loop form, and every shape that is not fixed."""
        from dsopt.backends.tir.lower import blockers

        return blockers(program)

    def emit(self, program: Program, target: Target, options: EmitOptions) -> Artifact:
        """Generate the C files, build the image, run it once on the emulated core, and describe all of it in the manifest.

        Where the values of whole layers do not fit into RAM, the first layers run patch by patch, if that helps.

        Raises UnsupportedOpError; UsageError if ports of integers are asked for and none can be; BudgetError with every budget that is
        exceeded; ToolchainError without a compiler.
        """
        assert isinstance(target, McuTarget)
        refuse(self.unsupported(program, target), target)
        if options.integer_ports:
            refuse_float_ports(program)
        return Build(program, target, options).artifact()

    def lowering(self, target: Target) -> tuple[Pass, ...]:
        """Return the passes that turn a quantised program into one of integers."""
        return parse_pipeline(f"{INTEGER_LOWERING},fold-padding,fuse-residual")

    def cost(self, program: Program, target: Target, options: EmitOptions) -> Mapping[str, float]:
        """Count the bytes of the arena and, if asked for, estimate the cycles of a run on the emulated core."""
        from dsopt.backends.mcu.cost import CoreCost

        assert isinstance(target, McuTarget)
        return CoreCost(program, target, options)

    def judge_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open the generated C on this computer, which is fast enough for many samples; on the emulated core without a compiler."""
        from dsopt.backends.mcu.desk import DeskExecutor

        try:
            return DeskExecutor(artifact), "the generated C, built for this computer"
        except ToolchainError:
            return self.check_executor(artifact)

    def check_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open the image on the emulated core; say why not where nothing here emulates it."""
        from dsopt.runtime.simulated import open_executor
        from dsopt.simulate import choose_simulator

        try:
            choose_simulator(core_of(artifact.target))
        except ToolchainError as problem:
            return None, problem.what
        return open_executor(artifact), f"an emulated {core_of(artifact.target)}"

"""McuBackend: the protocol of `dsopt.backends.base` for microcontroller cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.base import INTEGER_LOWERING, Blocker, EmitOptions, refuse, signature_manifest, state_files
from dsopt.backends.mcu.budget import RAM_EXCEEDED, check_measured, check_plan, limits
from dsopt.backends.mcu.generate import generate
from dsopt.backends.mcu.harness import harness_tables
from dsopt.backends.mcu.header import Interface
from dsopt.backends.mcu.layers import add_traces, layer_rows
from dsopt.backends.mcu.pipeline import pipeline
from dsopt.backends.mcu.place import Placement, place
from dsopt.backends.tir.ports import refuse_float_ports
from dsopt.errors import BudgetError, ToolchainError
from dsopt.ir import Program, example_inputs
from dsopt.passes.base import Pass, PassManager, parse_pipeline
from dsopt.passes.patch.plan import Choice, choices, products
from dsopt.runtime.executor import Executor
from dsopt.target import LEAST_BYTES, McuTarget, Target, core_of

_MOST_CHOICES = 16
"""Ways to run in patches that are tried, the cheapest first."""
_MOST_PRODUCTS = 1.5
"""Times the products of a whole run that patches may compute for the sake of RAM that would not be needed."""


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

        Raises UnsupportedOpError; UsageError if ports of integers are asked for and none can be; BudgetError before any C is
        written if the values cannot fit, and after linking if code and stack do not; ToolchainError without a compiler.
        """
        assert isinstance(target, McuTarget)
        refuse(self.unsupported(program, target), target)
        if options.integer_ports:
            refuse_float_ports(program)
        try:
            whole = self._emit(program, target, options)
        except BudgetError as problem:
            if problem.code != RAM_EXCEEDED:
                raise
            patched = self._emit_patched(program, target, options, self._fitting(program, target))
            if patched is None:
                raise
            return patched
        if options.optimize != "ram":
            return whole
        least = dataclasses.replace(target, ram_bytes=max(whole.manifest["memory"]["ram_bytes"] - 1, LEAST_BYTES))
        patched = self._emit_patched(program, least, options, self._smallest(program, least, options))
        if patched is None:
            return whole
        return dataclasses.replace(patched, manifest={**patched.manifest, "limits": limits(target)})

    def _fitting(self, program: Program, target: McuTarget) -> list[Choice]:
        """Return the ways in patches that may fit into RAM, those with the fewest products first."""
        room = target.ram_bytes - sum(program.weights[state.name].nbytes for state in program.states)
        return choices(program, room + room // 8)[:_MOST_CHOICES]  # estimates are high

    def _smallest(self, program: Program, target: McuTarget, options: EmitOptions) -> list[Choice]:
        """Return ways in patches that do not compute too much twice, those with the smallest arena first."""
        most = products(program) * _MOST_PRODUCTS
        found = [choice for choice in choices(program, target.ram_bytes) if choice.products <= most]
        least = min((choice.ram_bytes for choice in found), default=0)
        near = [choice for choice in found if choice.ram_bytes <= least + least // 10][: _MOST_CHOICES // 2]
        smallest = sorted(found, key=lambda choice: (choice.ram_bytes, choice.products))[: _MOST_CHOICES // 2]
        tried = list(dict.fromkeys((*near, *smallest)))
        arenas = {choice: self._arena_bytes(choice, program, target, options) for choice in tried}
        return sorted(tried, key=lambda choice: (arenas[choice], choice.products))

    def _arena_bytes(self, choice: Choice, program: Program, target: McuTarget, options: EmitOptions) -> int:
        rewritten, _ = PassManager((choice.patch,)).run(program)
        return self._placed(rewritten, target, options, False).plan.arena_bytes

    def _placed(self, program: Program, target: McuTarget, options: EmitOptions, reorder: bool) -> Placement:
        from dsopt.backends.mcu.kernels import special_lowerings
        from dsopt.backends.tir.lower import lower

        return place(lower(program, special_lowerings(target, options.optimize), options.integer_ports), reorder)

    def _emit_patched(
        self, program: Program, target: McuTarget, options: EmitOptions, ways: Sequence[Choice]
    ) -> Artifact | None:
        """Emit the program with its first layers in patches, in the first way that fits into RAM; None if none does."""
        for choice in ways:
            rewritten, _ = PassManager((choice.patch,)).run(program)
            try:
                artifact = self._emit(rewritten, target, options, reorder=False)
            except BudgetError:  # also of flash or instructions, which patches take more of
                continue
            patches = {**dataclasses.asdict(choice.patch), "multiply_adds": choice.products}
            return dataclasses.replace(artifact, manifest={**artifact.manifest, "patches": patches})
        return None

    def _emit(self, program: Program, target: McuTarget, options: EmitOptions, reorder: bool = True) -> Artifact:
        from dsopt.backends.mcu.measure import build_and_measure

        options.progress(0, 3, "lowering to loops")
        placement = self._placed(program, target, options, reorder)
        rows = layer_rows(program, placement)
        check_plan(placement, target, rows)
        options.progress(1, 3, "generating C")
        sources = generate(
            program, placement, options.name, target.name, dsopt.__version__, options.seed, options.optimize == "flash"
        )
        options.progress(2, 3, "building and measuring")
        functions = [kernel.name for kernel in placement.program.kernels]
        built = {name: text for name, text in sources.files.items() if name not in ("run_tests.c", "test_vectors.c")}
        built["harness_tables.c"] = harness_tables(sources.names, sources.ports, placement)
        measured = build_and_measure(
            built, functions, placement, target, _input_bytes(program, sources.ports, options.seed)
        )
        add_traces(rows, placement, sources.names)
        for row in rows:
            row["code_bytes"] = measured.code_bytes.get(row["function"])
            cost = measured.layers.get(row["function"])
            row["instructions"] = cost.instructions if cost else None
            row["estimated_cycles"] = cost.estimated_cycles if cost else None
        check_measured(placement, target, rows, measured)
        files = {name: text.encode() for name, text in sources.files.items()} | state_files(program)
        manifest = {
            **_stored(signature_manifest(program), sources.ports),
            "target": target.name,
            **({"board": target.board.as_dict()} if target.board else {}),
            "c_prefix": sources.names.prefix,
            "layers": rows,
            "memory": placement.manifest() | measured.memory(),
            "limits": limits(target),
        }
        options.progress(3, 3, "done")
        return Artifact(manifest, {**files, "image.elf": measured.elf})

    def lowering(self, target: Target) -> tuple[Pass, ...]:
        """Return the passes that turn a quantised program into one of integers."""
        return parse_pipeline(f"{INTEGER_LOWERING},fold-padding,fuse-residual")

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


def _stored(manifest: dict[str, Any], ports: Interface) -> dict[str, Any]:
    """Return the manifest with what inputs and outputs are in memory where that is a grid."""
    for key, group in (("inputs", ports.inputs), ("outputs", ports.outputs)):
        for entry, port in zip(manifest[key], group, strict=True):
            if port.grid is not None:
                entry["stored"] = {"dtype": port.buffer.dtype, **dataclasses.asdict(port.grid)}
    return manifest


def _input_bytes(program: Program, ports: Interface, seed: int) -> list[bytes]:
    """Return seeded inputs and the first values of the states, as the harness takes them."""
    states = [program.weights[state.name].detach().contiguous().numpy().tobytes() for state in program.states]
    values = [value.detach().contiguous().numpy() for value in example_inputs(program, seed=seed)]
    return [port.stored(each).tobytes() for port, each in zip(ports.inputs, values, strict=True)] + states

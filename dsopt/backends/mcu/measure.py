"""Build the generated C for the target's core, run it once there in an emulator, and say what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dsopt.backends.mcu.place import Placement
from dsopt.backends.mcu.toolchain import BuildOptions, find_toolchain, measure_image
from dsopt.errors import ToolchainError
from dsopt.simulate import Cost, Simulation, choose_simulator, simulate
from dsopt.target import McuTarget

STACK_BYTES = 32 << 10
"""Room for the stack in the emulated image; how much of it is used is measured."""

_FASTEST_MULTIPLY_ADDS_PER_SECOND = 2e6
"""Far below what the emulators do, so that only an image that hangs is stopped."""


@dataclass(frozen=True)
class Measurement:
    """Bytes of the linked image without the test harness, and what one emulated run took.

    static_bytes: arena, states and other variables.  stack_bytes, instructions: None where the core cannot be emulated here,
    and `why_not_run` says why.  layers: costs by function.  code_bytes: of each function of a layer, by name; symbol_bytes: of all
    functions and variables.
    """

    elf: bytes
    flash_bytes: int
    static_bytes: int
    stack_bytes: int | None = None
    instructions: int | None = None
    layers: Mapping[str, Cost] = field(default_factory=dict)
    code_bytes: Mapping[str, int] = field(default_factory=dict)
    symbol_bytes: Mapping[str, int] = field(default_factory=dict)
    why_not_run: str = ""

    @property
    def ram_bytes(self) -> int:
        """Return the static bytes and, where it was measured, the stack."""
        return self.static_bytes + (self.stack_bytes or 0)

    def memory(self) -> dict[str, int | str]:
        """Return the measured part of manifest["memory"]."""
        found: dict[str, int | str] = {
            "ram_bytes": self.ram_bytes,
            "static_bytes": self.static_bytes,
            "flash_bytes": self.flash_bytes,
        }
        if self.stack_bytes is None or self.instructions is None:
            return {**found, "why_not_run": self.why_not_run}
        return {**found, "stack_bytes": self.stack_bytes, "instructions": self.instructions}


def build_and_measure(
    sources: Mapping[str, str],
    functions: Sequence[str],
    placement: Placement,
    target: McuTarget,
    inputs: Sequence[bytes],
) -> Measurement:
    """Compile, link and run once. sources: with harness_tables.c.  functions: one per layer.  inputs: bytes of inputs and states.

    Raises ToolchainError without a compiler.
    """
    toolchain = find_toolchain(target.core)
    image = toolchain.compile(sources, target.core, BuildOptions(stack_bytes=STACK_BYTES))
    sizes = measure_image(image.elf)
    known = {name: sizes.symbols[name] for name in functions if name in sizes.symbols}
    built = Measurement(image.elf, sizes.flash_bytes, sizes.ram_bytes, code_bytes=known, symbol_bytes=sizes.symbols)
    return _run(built, functions, placement, target, inputs)


def _run(
    built: Measurement, functions: Sequence[str], placement: Placement, target: McuTarget, inputs: Sequence[bytes]
) -> Measurement:
    try:
        choose_simulator(target.core)
    except ToolchainError as problem:
        return replace(built, why_not_run=problem.what)
    work = sum(kernel.multiply_adds for kernel in placement.program.kernels)
    seconds = 60.0 + work / _FASTEST_MULTIPLY_ADDS_PER_SECOND
    result: Simulation = simulate(built.elf, target.core, runs=[list(inputs)], layers=list(functions), seconds=seconds)
    return replace(built, stack_bytes=result.stack_bytes, instructions=result.instructions, layers=result.layers)

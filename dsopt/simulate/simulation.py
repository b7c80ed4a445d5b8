"""What a simulation gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Executed instructions, and the cycles that they are estimated to take: an estimate (see cycles.py), never a measurement.

    estimated_cycles: None for RISC-V, whose cores differ too much for one rule, and where QEMU counted.
    """

    instructions: int
    estimated_cycles: int | None


@dataclass(frozen=True)
class TracePoint:
    """Where a layer leaves its result: `bytes` of them, `offset` after `symbol`."""

    function: str
    symbol: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Simulation:
    """The result of running an image on an emulated core; the same for the same image and inputs, whatever the machine.

    exit_code: 0, or what the model returned instead of finishing; the later runs are then missing.
    outputs: for each run the bytes of each output, in the order of the image's table.
    run_instructions: of each run.  stack_bytes: the most that any run used.
    layers, functions: sums over all runs; a layer's holds what it calls, a function's does not. QEMU cannot tell functions apart,
    nor layers where its board has no room for the probes: they are then empty.
    traces: what layers left in memory in the last run, by function.
    """

    simulator: str
    core: str
    exit_code: int
    outputs: tuple[tuple[bytes, ...], ...]
    run_instructions: tuple[int, ...]
    stack_bytes: int
    layers: Mapping[str, Cost]
    functions: Mapping[str, Cost]
    traces: Mapping[str, bytes]

    @property
    def instructions(self) -> int:
        """Return the executed instructions of all runs together."""
        return sum(self.run_instructions)

    @property
    def estimated_cycles(self) -> int | None:
        """Estimate the cycles of all runs together; None where only instructions are known."""
        cycles = [cost.estimated_cycles for cost in self.functions.values()]
        known = [count for count in cycles if count is not None]
        return sum(known) if known and len(known) == len(cycles) else None

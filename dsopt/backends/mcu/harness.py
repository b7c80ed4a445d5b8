"""Generate harness_tables.c: what the simulator's firmware needs to know of a model (dsopt/simulate/firmware/README.md)."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.backends.mcu.c_text import Names
from dsopt.backends.mcu.header import Interface, Port
from dsopt.backends.mcu.place import Placement
from dsopt.backends.tir.c_source import C_TYPES


def harness_tables(names: Names, ports: Interface, placement: Placement) -> str:
    """Return the text of harness_tables.c: inputs and states are written before a run, outputs and states read after it."""
    inputs = [*ports.inputs, *ports.states]
    outputs = [*ports.outputs, *ports.states]
    weights = sorted({placement.program.root(p.buffer.name) for p in outputs}, key=lambda buffer: buffer.name)
    externs = [f"extern uint8_t {names.arena}[];", f"extern uint8_t {names.states}[];"]
    externs += [f"extern const {C_TYPES[b.dtype]} {names.weight(b.name)}[];" for b in weights if b.kind == "weight"]
    return "\n".join(
        [
            '#include "harness.h"',
            '#include "model.h"',
            "",
            *externs,
            "",
            _table("inputs", names, placement, inputs),
            _table("outputs", names, placement, outputs),
            f"void harness_init(void)\n{{\n    {names.prefix}_init();\n}}\n",
            f"int harness_run(void)\n{{\n    {names.prefix}_run();\n    return 0;\n}}\n",
        ]
    )


def _table(kind: str, names: Names, placement: Placement, ports: Sequence[Port]) -> str:
    word = kind.removesuffix("s")
    spans = [f"{{{_address(names, placement, port)}, {port.buffer.size_bytes}}}" for port in ports] or ["{0, 0}"]
    return (
        f"const harness_span harness_{kind}[] = {{{', '.join(spans)}}};\n"
        f"const uint32_t harness_{word}_count = {len(ports)};\n"
    )


def _address(names: Names, placement: Placement, port: Port) -> str:
    root = placement.program.root(port.buffer.name)
    if root.kind == "weight":
        return f"(void *)(uintptr_t){names.weight(root.name)}"
    symbol, offset = location(names, placement, port.buffer.name)
    return f"{symbol} + {offset}"


def location(names: Names, placement: Placement, buffer: str) -> tuple[str, int]:
    """Return the symbol and the offset in bytes at which a value that is no weight lies."""
    root, offset = placement.program.root(buffer), placement.program.offset(buffer)
    if root.kind == "state":
        return names.states, placement.states[root.name] + offset
    return names.arena, placement.plan.offsets[root.name] + offset

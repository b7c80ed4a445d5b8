"""One program to one image: loops, placement, C, and what an emulated run of it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions, signature_manifest, state_files
from dsopt.backends.mcu.budget import Rows, limits
from dsopt.backends.mcu.generate import generate
from dsopt.backends.mcu.harness import harness_tables
from dsopt.backends.mcu.header import Interface
from dsopt.backends.mcu.layers import add_traces, layer_rows
from dsopt.backends.mcu.measure import Measurement, build_and_measure
from dsopt.backends.mcu.place import Placement, place
from dsopt.ir import Program, example_inputs
from dsopt.target import McuTarget


@dataclass(frozen=True)
class Placed:
    """A program as loops with a place for each value. rows: of manifest["layers"].

    layers: for each layer that has several ways to be written, by its number, the functions that it became.
    """

    program: Program
    placement: Placement
    rows: Rows
    reorder: bool = True
    layers: tuple[tuple[str, ...], ...] = ()

    @property
    def least_bytes(self) -> int:
        """Return the RAM that it takes without stack and other variables."""
        return self.placement.plan.arena_bytes + self.placement.state_bytes


@dataclass(frozen=True)
class Built:
    """The same with its image. rows: with what each layer costs."""

    artifact: Artifact
    placement: Placement
    rows: Rows
    measured: Measurement


@dataclass(frozen=True)
class Emitter:
    """Makes images of what programs a build may become, such as one in patches, with the same options; looks at no budget."""

    target: McuTarget
    options: EmitOptions

    def place(self, program: Program, reorder: bool = True, chosen: Mapping[int, int] | None = None) -> Placed:
        """Lower a program to loops and place its values.

        reorder: False for programs whose order is meant: patch by patch.  chosen: the way to write a layer, by its number; of the
        others, the usual one.
        """
        from dsopt.backends.mcu.kernels import special_lowerings
        from dsopt.backends.mcu.kernels.ways import Ways
        from dsopt.backends.tir.lower import lower

        self.options.progress(0, 3, "lowering to loops")
        ways = Ways(chosen or {})
        special = special_lowerings(self.target, self.options.optimize, ways)
        placement = place(lower(program, special, self.options.integer_ports), reorder)
        layers = tuple(found[0].kernels if found else () for found in ways.layers)
        return Placed(program, placement, layer_rows(program, placement), reorder, layers)

    def build(self, placed: Placed) -> Built:
        """Generate C, build it, and run it once where the core can be emulated. Raises ToolchainError without a compiler."""
        options, target, program, placement = self.options, self.target, placed.program, placed.placement
        options.progress(1, 3, "generating C")
        sources = generate(
            program, placement, options.name, target.name, dsopt.__version__, options.seed, options.optimize == "flash"
        )
        options.progress(2, 3, "building and measuring")
        functions = [kernel.name for kernel in placement.program.kernels]
        files = {name: text for name, text in sources.files.items() if name not in ("run_tests.c", "test_vectors.c")}
        files["harness_tables.c"] = harness_tables(sources.names, sources.ports, placement)
        inputs = _input_bytes(program, sources.ports, options.seed)
        measured = build_and_measure(files, functions, placement, target, inputs)
        rows = [dict(row) for row in placed.rows]
        add_traces(rows, placement, sources.names)
        for row in rows:
            row["code_bytes"] = measured.code_bytes.get(row["function"])
            cost = measured.layers.get(row["function"])
            row["instructions"] = cost.instructions if cost else None
            row["estimated_cycles"] = cost.estimated_cycles if cost else None
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
        texts = {name: text.encode() for name, text in sources.files.items()}
        artifact = Artifact(manifest, {**texts, **state_files(program), "image.elf": measured.elf})
        return Built(artifact, placement, rows, measured)


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

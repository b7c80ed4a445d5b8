"""Program -> the C files of a model, before any compiler has seen them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files as package_files

from dsopt.backends.mcu.c_text import Names, comment
from dsopt.backends.mcu.header import Interface, Port, model_header
from dsopt.backends.mcu.model_source import model_source
from dsopt.backends.mcu.place import Placement
from dsopt.backends.mcu.test_source import Sample, run_tests_source, test_vectors_source
from dsopt.backends.mcu.weights_source import weights_source
from dsopt.backends.tir.c_source import CFunction, c_functions
from dsopt.backends.tir.program import LoopProgram, MicroKernel
from dsopt.ir import Program, example_inputs

TEST_TOLERANCE = 1e-4
"""Of run_tests.c: wide enough for any compiler's order of sums, narrow enough for any wrong element."""


@dataclass(frozen=True)
class Sources:
    """The generated files by name, and the symbols in them."""

    files: Mapping[str, str]
    names: Names
    ports: Interface


def interface(program: Program, loops: LoopProgram) -> Interface:
    """Return inputs, outputs and states under the user's names."""
    signature = program.signature

    def port(name: str, buffer: str) -> Port:
        return Port(name, loops.buffers[buffer], loops.grids.get(buffer))

    return Interface(
        [port(spec.name, name) for spec, name in zip(signature.inputs, loops.inputs, strict=True)],
        [port(spec.name, name) for spec, name in zip(signature.outputs, loops.outputs, strict=True)],
        [Port(state.name, loops.buffers[state.buffer]) for state in loops.states],
    )


def generate(
    program: Program, placement: Placement, name: str, target: str, version: str, seed: int, is_small: bool = False
) -> Sources:
    """Write all C files of a placed program. Deterministic: the same program gives the same bytes.

    is_small: all loops are to be compiled for size.
    """
    made = generate_model(placement, interface(program, placement.program), name, target, version, is_small)
    tests = {
        "test_vectors.c": test_vectors_source(made.names, seeded_vector(program, made.ports, seed)),
        "run_tests.c": run_tests_source(made.names, made.ports, TEST_TOLERANCE),
    }
    return replace(made, files={**made.files, **tests})


def generate_model(
    placement: Placement,
    ports: Interface,
    name: str,
    target: str,
    version: str,
    is_small: bool = False,
    standing: Collection[str] = (),
) -> Sources:
    """Write the files of placed loops that are needed to run them. is_small, standing: of `model_source`."""
    loops, names = placement.program, Names.of(name)
    micro = micro_kernels(loops)
    functions = functions_of(loops)
    files = {
        **({"kernels.h": kernels_header(micro, target)} if micro else {}),
        "model.c": model_source(names, ports, placement, functions, target, is_small, standing),
        "weights.c": weights_source(names, loops, target),
    }
    if any(function.helpers for function in functions.values()):
        files["dsopt_math.h"] = (package_files(__package__) / "dsopt_math.h").read_text(encoding="utf-8")
    digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()
    files["model.h"] = model_header(names, ports, placement, target, version, digest)
    return Sources(files, names, ports)


def functions_of(loops: LoopProgram) -> dict[str, CFunction]:
    """Return the loops of each kernel in C, by the kernel's name."""
    overlapping = {kernel.name for kernel in loops.kernels if kernel.overlaps}
    return c_functions({kernel.name: kernel.func for kernel in loops.kernels}, overlapping)


def micro_kernels(loops: LoopProgram) -> list[MicroKernel]:
    """Return the functions that the layers call, each once, in the order in which they are first needed."""
    found: dict[str, MicroKernel] = {}
    for each in (micro for kernel in loops.kernels for micro in kernel.micro):
        assert found.setdefault(each.name, each) == each, f"two functions are called {each.name}"
    return list(found.values())


def kernels_header(micro: Sequence[MicroKernel], target: str) -> str:
    """Return the text of kernels.h, which model.c includes."""
    head = f"/* The inside of layers for {comment(target)}: portable C, and assembly for cores that have the instructions.\n"
    head += "   Generated: do not edit. */\n\n#include <stdint.h>\n"
    return "\n".join([head, *(each.text for each in micro)])


def seeded_vector(program: Program, ports: Interface, seed: int) -> Sample:
    """Return seeded inputs and what the program itself gives for them, as they lie in memory."""
    inputs = example_inputs(program, seed=seed)
    outputs = program.run(*inputs)
    as_arrays = [
        [port.stored(value.detach().contiguous().numpy()) for port, value in zip(group, values, strict=True)]
        for group, values in ((ports.inputs, inputs), (ports.outputs, outputs))
    ]
    return Sample(*as_arrays)

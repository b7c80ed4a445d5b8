"""Bring a program to the sizes that an artifact was built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsopt.dims import Size, solve
from dsopt.errors import UsageError
from dsopt.ir import Program


def specialized_like(program: Program, manifest: Mapping[str, Any]) -> Program:
    """Fix the varying sizes that the artifact has as numbers.

    Raises UsageError where inputs differ in name, rank, dtype or size, or outputs in name.
    """
    ours = {
        spec.name: (program.shape(node), str(program.dtype(node)).removeprefix("torch."))
        for spec, node in zip(program.signature.inputs, program.inputs, strict=True)
    }
    theirs = {entry["name"]: (tuple(entry["shape"]), entry["dtype"]) for entry in manifest["inputs"]}
    problems: list[str] = []
    if set(ours) != set(theirs):
        problems.append(
            f"inputs of the model: {', '.join(ours) or 'none'}; of the artifact: {', '.join(theirs) or 'none'}"
        )
    given, built_names = ([spec.name for spec in program.signature.outputs], [e["name"] for e in manifest["outputs"]])
    if set(given) != set(built_names):
        problems.append(
            f"outputs of the model: {', '.join(given) or 'none'}; of the artifact: {', '.join(built_names) or 'none'}"
        )
    sizes: dict[str, int] = {}
    for name in sorted(set(ours) & set(theirs)):
        (shape, dtype), (wanted, wanted_dtype) = ours[name], theirs[name]
        if dtype != wanted_dtype or len(shape) != len(wanted):
            problems.append(
                f"{name}: {dtype}{_text(shape)} in the model, {wanted_dtype}{_text(wanted)} in the artifact"
            )
            continue
        for mine, built in zip(shape, wanted, strict=True):
            if isinstance(mine, str) and isinstance(built, int):
                sizes |= solve(mine, built, sizes)
            elif isinstance(mine, int) and mine != built:
                problems.append(f"{name}: {_text(shape)} in the model, {_text(wanted)} in the artifact")
                break
    if problems:
        raise UsageError(
            "DS0451", "the model is not the one that the artifact was built from", where="\n".join(problems),
            fix="give the model and the --input or --dim options that it was compiled with",
        )  # fmt: skip
    return program.specialize(sizes) if sizes else program


def at_sizes(program: Program, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> Program:
    """Do as `specialized_like`, and check `sizes`: of dims that still vary, or what the artifact has fixed them to.

    Raises UsageError as there, for names that do not vary, and for sizes out of their bounds.
    """
    matched = specialized_like(program, manifest)
    if sizes:
        program.specialize(sizes)  # refuses unknown names and sizes out of bounds
    fixed = {name: size for name, size in sizes.items() if name not in matched.dims}
    return specialized_like(program.specialize(fixed), manifest) if fixed else matched


def _text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"

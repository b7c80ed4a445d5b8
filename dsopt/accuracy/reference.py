"""What a drop is measured against: the float model, which a program that was quantised before does not hold any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from dsopt.accuracy.job import is_quantised
from dsopt.accuracy.samples import input_specs
from dsopt.errors import UsageError
from dsopt.ir import Program

_FAKE = torch.ops.dsopt.fake_quantize.default


def is_rounded(program: Program) -> bool:
    """Tell whether a program is no float model any more: quantised, or prepared to be."""
    return is_quantised(program) or any(node.target is _FAKE for node in program.graph.nodes)


def reference_program(program: Program, given: Program | None, must_be_float: bool) -> Program:
    """Return what a program is to be compared with: the one that was given, or else the program itself.

    must_be_float: refuse a rounded program as its own reference. It may be given as such, to judge only the code made of it.
    Raises UsageError.
    """
    if given is None:
        if must_be_float and is_rounded(program):
            raise UsageError(
                "DS0348", "the program is quantised already, so a drop from float cannot be told from it alone",
                fix="give the float model, too: --reference MODEL (in Python: Gate(reference=program))",
            )  # fmt: skip
        return program
    pairs = zip_longest(input_specs(program), input_specs(given))
    bad = [f"it takes {_said(theirs)} for {_said(ours)}" for ours, theirs in pairs if not _takes(theirs, ours)]
    if bad:
        raise UsageError(
            "DS0349", "the reference takes other inputs than the program", where="\n".join(bad),
            fix="give the float model that the program was made from, with the same or with varying sizes",
        )  # fmt: skip
    return given


def _takes(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> bool:
    """Tell whether an input takes what another does: sizes are equal, or may vary."""
    if theirs is None or ours is None or (theirs["name"], theirs["dtype"]) != (ours["name"], ours["dtype"]):
        return False
    left: Sequence[int | str] = theirs["shape"]
    right: Sequence[int | str] = ours["shape"]
    return len(left) == len(right) and all(isinstance(a, str) or a == b for a, b in zip(left, right, strict=True))


def _said(spec: Mapping[str, Any] | None) -> str:
    return (
        "nothing"
        if spec is None
        else f"{spec['name']} ({spec['dtype']} [{', '.join(str(size) for size in spec['shape'])}])"
    )

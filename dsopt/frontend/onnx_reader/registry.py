"""Which operators are read, and the functions that compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from dsopt.frontend.onnx_reader.call import Call

Run = Callable[[Call], Any]
RunT = TypeVar("RunT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operator:
    """One operator.

    run: computes tensors.  run_known: computes known numbers when all inputs are known; returns None where it cannot.
    needs_numbers: its result's shape depends on the numbers of its inputs.  refuse: says why one use of it, by its attributes
    alone, is not supported, and what the nearest supported form is; None if it is.
    """

    name: str
    run: Run
    run_known: Run | None = None
    needs_numbers: bool = False
    refuse: Callable[[Call], tuple[str, str] | None] | None = None


OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str,
    known: Run | None = None,
    needs_numbers: bool = False,
    refuse: Callable[[Call], tuple[str, str] | None] | None = None,
) -> Callable[[RunT], RunT]:
    """Register a function of a `Call` as what computes the operators `names`."""

    def register(run: RunT) -> RunT:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = Operator(name, run, known, needs_numbers, refuse)
        return run

    return register


def register_all(names: Iterable[tuple[str, Run]]) -> None:
    """Register a table of operators."""
    for name, run in names:
        operator(name)(run)


INTERNAL = "dsopt."
"""Prefix of the operators that `lower` writes; no file may name them."""


def supported_operators() -> tuple[str, ...]:
    """Return the ONNX operators that are read, sorted; those of other domains with their domain ("com.microsoft.Gelu")."""
    from dsopt.frontend.onnx_reader import ops  # noqa: F401  registers them

    return tuple(sorted(name for name in OPERATORS if not name.startswith(INTERNAL)))

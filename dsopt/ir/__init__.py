"""The program: graph, weights and signature; the only place that touches private names of torch."""

from dsopt.ir.match import Match, find
from dsopt.ir.program import Program, StateBinding, example_inputs
from dsopt.ir.rewriter import Rewriter
from dsopt.ir.signature import Dim, Signature, StateSpec, ValueSpec, WeightSpec

__all__ = [
    "Dim",
    "Match",
    "Program",
    "Rewriter",
    "Signature",
    "StateBinding",
    "StateSpec",
    "ValueSpec",
    "WeightSpec",
    "example_inputs",
    "find",
]

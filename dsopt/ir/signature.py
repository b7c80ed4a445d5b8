"""What a program takes and gives: weights, explicit state, and the user's inputs and outputs under their own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsopt.nesting import Tree

WeightKind = Literal["parameter", "buffer", "constant"]


@dataclass(frozen=True)
class WeightSpec:
    """A stored tensor: its qualified name in the user's module, and whether training changes it (only parameters)."""

    name: str
    kind: WeightKind


@dataclass(frozen=True)
class StateSpec:
    """A tensor that the program reads and replaces at every run, such as a KV cache; its first value is a stored weight."""

    name: str


@dataclass(frozen=True)
class ValueSpec:
    """One of the user's inputs or outputs by its flat name, such as "x" or "opts.k"."""

    name: str


@dataclass(frozen=True)
class Dim:
    """A size that varies from run to run: `min` <= size <= `max`, where max=None is unbounded."""

    name: str
    min: int = 1
    max: int | None = None


@dataclass(frozen=True)
class Signature:
    """Names in the order of the graph: placeholders are weights, states, inputs; the output node returns states, outputs.

    `input_tree` is {"tuple": [args, kwargs]} and `output_tree` the nesting of what the model returns: see dsopt.nesting.
    """

    weights: tuple[WeightSpec, ...]
    states: tuple[StateSpec, ...]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    input_tree: Tree
    output_tree: Tree
    argument_names: tuple[str, ...] = ()

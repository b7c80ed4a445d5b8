"""What a program holds, layer by layer, and what keeps a target from running it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from dsopt.backends.base import Blocker, load_backend
from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.ir.printer import op_text, type_text
from dsopt.ir.torch_private import size_at
from dsopt.passes.base import PassContext, PassManager
from dsopt.target import Target


@dataclass(frozen=True)
class Layer:
    """One operator: parameters are counted where they are first used, multiply-adds at the example's sizes."""

    node: str
    layer: str
    op: str
    type: str
    parameters: int
    multiply_adds: int
    source: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. dims: {name: (least, largest or None, in the example)}.  blockers: None where no target was asked."""

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, str], ...]
    dims: dict[str, tuple[int, int | None, int]]
    layers: tuple[Layer, ...]
    weight_bytes: int
    target: str | None
    blockers: tuple[Blocker, ...] | None

    @property
    def parameters(self) -> int:
        """Return the number of stored numbers that the operators use."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Return the multiply-adds of one run at the example's sizes."""
        return sum(layer.multiply_adds for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "inputs": dict(self.inputs), "outputs": dict(self.outputs), "states": dict(self.states),
            "dims": {name: {"min": low, "max": high, "example": example} for name, (low, high, example) in self.dims.items()},
            "layers": [asdict(layer) for layer in self.layers],
            "parameters": self.parameters, "multiply_adds": self.multiply_adds, "weight_bytes": self.weight_bytes,
            "target": self.target, "blockers": None if self.blockers is None else [asdict(each) for each in self.blockers],
        }  # fmt: skip


def inspect(program: Program, target: Target | None = None) -> Inspection:
    """Look at a program without changing it; with a target, also list every operator that the target cannot run."""
    signature = program.signature
    seen: set[fx.Node] = set()
    layers = tuple(_layer(program, node, seen) for node in program.graph.nodes if _is_operator(node))
    return Inspection(
        tuple((spec.name, _type(program, node)) for spec, node in zip(signature.inputs, program.inputs, strict=True)),
        tuple((spec.name, _type(program, node)) for spec, node in zip(signature.outputs, program.outputs, strict=True)),
        tuple((state.name, _type(program, state.placeholder)) for state in program.states),
        {name: (dim.min, dim.max, _example(program, name)) for name, dim in sorted(program.dims.items())},
        layers,
        sum(tensor.numel() * tensor.element_size() for tensor in program.weights.values()),
        None if target is None else target.name,
        None if target is None else blockers(program, target),
    )


def blockers(program: Program, target: Target) -> tuple[Blocker, ...]:
    """Return every operator that a target cannot run after its own passes."""
    backend = load_backend(target)
    rewritten, _ = PassManager(backend.pipeline(target)).run(program, PassContext(target=target))
    return backend.unsupported(rewritten, target)


def _is_operator(node: fx.Node) -> bool:
    """Tell whether a node computes a tensor; sizes and the unpacking of tuples are no layers."""
    if node.op != "call_function" or "getitem" in str(node.target):
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value)
    )


def _layer(program: Program, node: fx.Node, seen: set[fx.Node]) -> Layer:
    parameters = 0
    for used in node.all_input_nodes:
        weight = program.weight(used)
        if weight is not None and used not in seen:
            seen.add(used)
            parameters += weight.numel()
    return Layer(
        node.name,
        program.layer(node),
        op_text(node),
        _type(program, node),
        parameters,
        multiply_adds(node),
        program.source(node),
    )


def _type(program: Program, node: fx.Node) -> str:
    return type_text(program, node.meta["val"])


def _example(program: Program, dim: str) -> int:
    """Return the size of a dim in the captured example."""
    for node in program.inputs:
        for size in node.meta["val"].shape:
            if program.size(size) == dim:
                return size_at(size, {})
    return 1

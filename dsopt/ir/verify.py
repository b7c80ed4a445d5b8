"""Verify a program: structure, signature, stored weights, aliasing, and every recorded shape and dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from dsopt.errors import VerifyError
from dsopt.ir import torch_private as private
from dsopt.ir.interpret import infer
from dsopt.ir.signature import StateSpec, WeightSpec
from dsopt.nesting import leaves

if TYPE_CHECKING:
    from dsopt.ir.program import Program


def verify(program: Program) -> None:
    """Check a program and raise one VerifyError that lists every contradiction found: node, layer, source."""
    problems = [*_structure(program), *_stored_weights(program)]
    if not problems:
        problems = [*_aliasing(program), *_types(program)]
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise VerifyError("DS0212", f"the program contradicts itself in {len(problems)} places", where="\n".join(shown))


def _structure(program: Program) -> list[str]:
    problems: list[str] = []
    signature, graph = program.signature, program.graph
    try:
        graph.lint()
    except RuntimeError as problem:
        return [f"the graph is malformed: {problem}"]
    expected = len(signature.weights) + len(signature.states) + len(signature.inputs)
    if len(program.placeholders) != expected:
        problems.append(f"{len(program.placeholders)} placeholders for {expected} weights, states and inputs")
    results: Any = program.output_node.args[0]
    if len(results) != len(signature.states) + len(signature.outputs):
        problems.append(
            f"{len(results)} results for {len(signature.states)} states and {len(signature.outputs)} outputs"
        )
    for result in results:
        if not isinstance(result, fx.Node):
            problems.append(f"the program returns {result!r}, which is no node")
    for label, tree, specs in (
        ("input", signature.input_tree, signature.inputs),
        ("output", signature.output_tree, signature.outputs),
    ):
        if list(leaves(tree)) != [spec.name for spec in specs]:
            problems.append(f"the {label} names differ from the {label} tree")
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            problems.append(f"{program.where(node)}: a {node.op} node cannot be in a program")
        elif node.op != "output" and "val" not in node.meta:
            problems.append(f"{program.where(node)}: no type is recorded")
    return problems


def _stored_weights(program: Program) -> list[str]:
    problems: list[str] = []
    specs: list[WeightSpec | StateSpec] = [*program.signature.weights, *program.signature.states]
    for node, spec in zip(program.placeholders, specs, strict=False):
        stored, value = program.weights.get(spec.name), node.meta.get("val")
        if stored is None:
            problems.append(f"{spec.name}: no tensor is stored")
        elif not isinstance(value, Tensor) or tuple(stored.shape) != tuple(value.shape) or stored.dtype != value.dtype:
            recorded = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else str(value)
            problems.append(f"{spec.name}: stored {stored.dtype} {list(stored.shape)}, the graph says {recorded}")
    for state in program.states:
        before, after = state.placeholder.meta.get("val"), state.update.meta.get("val")
        if not _agree(before, after):
            problems.append(f"state {state.name}: {_text(before)} becomes {_text(after)}")
    return problems


def _aliasing(program: Program) -> list[str]:
    """No node writes into a tensor, so that values may share memory and weights are never changed."""
    return [
        f"{program.where(node)}: writes into its argument"
        for node in program.graph.nodes
        if node.op == "call_function" and private.schema_mutates(node.target)
    ]


def _types(program: Program) -> list[str]:
    problems: list[str] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        try:
            inferred = infer(node)
        except (
            Exception
        ) as problem:  # any operator may refuse its arguments in its own way; each is a contradiction to list
            problems.append(
                f"{program.where(node)}: {type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
            )
            continue
        if not _agree(node.meta["val"], inferred):
            problems.append(
                f"{program.where(node)}: recorded {_text(node.meta['val'])}, the operator gives {_text(inferred)}"
            )
    return problems


def _agree(recorded: Any, inferred: Any) -> bool:
    if isinstance(recorded, Tensor) and isinstance(inferred, Tensor):
        if recorded.dtype != inferred.dtype or recorded.dim() != inferred.dim():
            return False
        return all(_same(a, b) for a, b in zip(recorded.shape, inferred.shape, strict=True))
    if isinstance(recorded, (tuple, list)) and isinstance(inferred, (tuple, list)):
        return len(recorded) == len(inferred) and all(_agree(a, b) for a, b in zip(recorded, inferred, strict=True))
    numbers = (bool, int, float, torch.SymInt, torch.SymBool, torch.SymFloat)
    if isinstance(recorded, numbers) and isinstance(inferred, numbers):
        return _same(recorded, inferred) if isinstance(recorded, (int, torch.SymInt)) else True
    return recorded is None and inferred is None


def _same(left: Any, right: Any) -> bool:
    if private.is_unbacked(left) or private.is_unbacked(right):
        return True  # a size that depends on data gets a new symbol at each inference
    return private.same_size(left, right)


def _text(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)

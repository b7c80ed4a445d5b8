"""Build programs: from an exported program, and again with fresh types after sizes were fixed or a file was read."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from dsopt.errors import CaptureError, UsageError
from dsopt.ir import torch_private as private
from dsopt.ir.functional import functional_graph
from dsopt.ir.interpret import infer
from dsopt.ir.program import Program
from dsopt.ir.signature import Dim, Signature, StateSpec, ValueSpec, WeightKind, WeightSpec
from dsopt.ir.symbols import Size
from dsopt.ir.tree import name_inputs, name_outputs

_TORCH_FOLDER = str(Path(torch.__file__).parent)


def from_exported(exported: ExportedProgram, dim_names: Mapping[tuple[str, int], str] | None = None) -> Program:
    """Make a Program of an exported one, sharing its weights.

    dim_names: {(input name, axis): dim name} for the sizes that vary; others are named after input and axis.
    Raises CaptureError for mutated inputs, custom objects and outputs that are not tensors.
    """
    exported, functional = functional_graph(exported)
    signature = exported.graph_signature
    argument_names = private.argument_names(exported)
    input_tree, input_names = name_inputs(exported, argument_names)
    output_tree, output_names = name_outputs(exported)
    mutated = [spec.target for spec in signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION]
    _refuse_other_outputs(exported)

    tensors: dict[str, Tensor] = {}
    weights: list[tuple[fx.Node, WeightSpec]] = []
    states: dict[str, fx.Node] = {}
    inputs: list[fx.Node] = []
    # By position: a copied graph renames what is a Python name, such as the `input` of nn.Sequential.
    placeholders = [node for node in functional.nodes if node.op == "placeholder"]
    for spec, node in zip(signature.input_specs, placeholders, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                inputs.append(node)
            elif node.users:
                raise CaptureError(
                    "DS0120",
                    f"input {node.name!r} is a {type(node.meta.get('val')).__name__} that varies",
                    fix="pass it as a tensor, or fix its value when capturing",
                )
            continue
        if spec.target in mutated:
            assert spec.target is not None
            states[spec.target] = node
            tensors[spec.target] = _stored(exported, spec.target)
        elif node.users:
            assert spec.target is not None
            weights.append((node, WeightSpec(spec.target, _weight_kind(spec.kind, node))))
            tensors[spec.target] = _stored(exported, spec.target)

    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in [*(node for node, _ in weights), *(states[name] for name in mutated), *inputs]:
        copies[node] = graph.node_copy(node, lambda item: copies[item])
    for node, name in zip(inputs, input_names, strict=True):
        copies[node].meta["input_name"] = name
    for node in functional.nodes:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, lambda item: copies[item])
            # A program knows no strides: a view of what a pass has rewritten may have to move bytes, which reshape allows.
            if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                copies[node].target = torch.ops.aten.reshape.default
        elif node.op not in ("placeholder", "output"):
            raise CaptureError(
                "DS0121",
                f"the exported graph holds a {node.op} node ({node.target}), such as torch.cond makes",
                where=_source(node),
                fix="write the choice with torch.where, or capture the branch that is used",
            )
    results: Any = functional.output_node().args[0]
    pairs = zip(results, signature.output_specs, strict=True)
    kept = [copies[result] for result, spec in pairs if isinstance(spec.arg, TensorArgument)]
    graph.output(tuple(kept))
    for node in graph.nodes:
        _keep_metadata(node)
    ours = Signature(
        tuple(spec for _, spec in weights),
        tuple(StateSpec(name) for name in mutated),
        tuple(ValueSpec(name) for name in input_names),
        tuple(ValueSpec(name) for name in output_names),
        input_tree,
        output_tree,
        argument_names,
    )
    tensors = {name: private.detached_copy(value) for name, value in tensors.items()}
    program = Program(graph, tensors, ours, {}, {})
    _name_dims(program, dim_names or {})
    return program


def _refuse_other_outputs(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind == OutputKind.USER_INPUT_MUTATION:
            raise CaptureError(
                "DS0122",
                f"the model writes into its input {spec.target!r}",
                why="a compiled program never changes what the caller gave it",
                fix="copy the input first (x = x.clone()), or return the new value",
            )
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.BUFFER_MUTATION):
            raise CaptureError(
                "DS0123",
                f"the exported program has an output of kind {spec.kind.name}",
                fix="export the model for inference",
            )


def _stored(exported: ExportedProgram, name: str) -> Tensor:
    value = exported.state_dict.get(name, exported.constants.get(name))
    if not isinstance(value, Tensor):
        raise CaptureError(
            "DS0124", f"{name!r} is a {type(value).__name__}, not a tensor", fix="keep weights and constants as tensors"
        )
    return value


def _weight_kind(kind: InputKind, node: fx.Node) -> WeightKind:
    if kind == InputKind.PARAMETER:
        return "parameter"
    if kind == InputKind.BUFFER:
        return "buffer"
    if kind == InputKind.CONSTANT_TENSOR:
        return "constant"
    raise CaptureError(
        "DS0124", f"{node.name!r} is a {kind.name.lower()}, not a tensor", fix="keep weights and constants as tensors"
    )


def _source(node: fx.Node) -> str:
    """Return 'net.py:15: y = self.a(x)' of the innermost frame that is not torch's own code."""
    frames = re.findall(r'File "([^"]*)", line (\d+), in \S+\n\s*(.*)', node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if not frame[0].startswith(_TORCH_FOLDER)]
    if not frames:
        return ""
    path, line, code = frames[-1]
    return f"{path.replace(chr(92), '/').rpartition('/')[2]}:{line}: {code.strip()}"


def _keep_metadata(node: fx.Node) -> None:
    stack = node.meta.get("nn_module_stack")
    layer = str(list(stack.values())[-1][0]) if stack else ""
    layer = re.sub(r"@\d+$", "", layer.removeprefix("L['self']").removeprefix("."))
    if layer.startswith("_empty_nn_module_stack"):
        layer = ""
    custom = node.meta.get("custom") or {}
    node.meta = {
        "val": node.meta.get("val"), "layer": layer, "source": _source(node), "custom": {"dsopt": dict(custom.get("dsopt", {}))},
        **({"input_name": node.meta["input_name"]} if "input_name" in node.meta else {}),
    }  # fmt: skip


def _name_dims(program: Program, dim_names: Mapping[tuple[str, int], str]) -> None:
    mode = private.fake_mode_of(program.graph)
    symbols: dict[str, str] = {}
    ranges: dict[str, Dim] = {}
    for named_by_user in (True, False):
        for node, spec in zip(program.inputs, program.signature.inputs, strict=True):
            for axis, size in enumerate(node.meta["val"].shape):
                found = private.symbol_names(size)
                if len(found) != 1 or found[0] in symbols or str(size) != found[0]:
                    continue
                given = dim_names.get((spec.name, axis))
                if named_by_user and given is None:
                    continue
                name = given or (
                    "batch"
                    if axis == 0 and "batch" not in ranges
                    else f"{re.sub(r'[^0-9A-Za-z_]', '_', spec.name)}_{axis}"
                )
                if name in ranges:
                    name = f"{name}_{len(ranges)}"
                low, high = private.symbol_range(mode, found[0])
                symbols[found[0]], ranges[name] = (
                    name,
                    Dim(name, 1 if low <= 2 else low, high),
                )  # torch records 2 for "any"
    program.symbols, program.dims = symbols, ranges


# ---- typing again ----


def specialize(program: Program, sizes: Mapping[str, int]) -> Program:
    """Return the program with the dims in `sizes` fixed. Raises UsageError for an unknown dim or a size outside its range."""
    for name, size in sizes.items():
        dim = program.dims.get(name)
        if dim is None:
            known = ", ".join(program.dims) or "none: every size of this program is fixed"
            raise UsageError("DS0201", f"the program has no varying dim {name!r}", fix=f"varying dims: {known}")
        if size < dim.min or (dim.max is not None and size > dim.max):
            raise UsageError(
                "DS0202",
                f"dim {name!r} cannot be {size}",
                why=f"it was captured for {dim.min} to {dim.max or 'any size'}",
            )
    result = program.clone()
    if sizes:
        retype(result, {name: dim for name, dim in program.dims.items() if name not in sizes}, sizes)
    return result


Placeholders = Mapping[fx.Node, tuple[tuple[Size, ...], torch.dtype]]


def retype(
    program: Program, dims: Mapping[str, Dim], fixed: Mapping[str, int], given: Placeholders | None = None,
    examples: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Give every node its shape and dtype anew, under a fresh mode in which `dims` vary and `fixed` have one size.

    given: shapes and dtypes of the placeholders; without it, those that are recorded.  examples: sizes of the captured example; without
    it, those of the program as it is, if it is typed.
    """
    mode = private.new_fake_mode()
    sizes: dict[str, int | torch.SymInt] = dict(fixed)
    hints = examples or (program.example_sizes() if given is None else {})
    given = given or {node: (program.shape(node), program.dtype(node)) for node in program.placeholders}
    for name, dim in dims.items():
        sizes[name] = private.new_symbol(mode, name, hints.get(name, max(dim.min, 4)), dim.min, dim.max)
    for node, (shape, dtype) in given.items():
        node.meta["val"] = private.fake_tensor(mode, tuple(evaluate_size(size, sizes) for size in shape), dtype)
    program.symbols = {str(size): name for name, size in sizes.items() if not isinstance(size, int)}
    program.dims = dict(dims)
    for node in list(program.graph.nodes):
        if node.op == "call_function":
            node.meta["val"] = infer(node)
            _fold_size(node)
    program.graph.eliminate_dead_code()


def _fold_size(node: fx.Node) -> None:
    """Replace a node that gives a plain number, such as sym_size of a fixed dim, by that number."""
    value = node.meta["val"]
    if isinstance(value, (bool, int, float)):
        for user in list(node.users):
            user.args = fx.node.map_arg(user.args, lambda item: value if item is node else item)
            user.kwargs = fx.node.map_arg(user.kwargs, lambda item: value if item is node else item)


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod
}  # fmt: skip


def evaluate_size(size: int | str, sizes: Mapping[str, int | torch.SymInt]) -> int | torch.SymInt:
    """Evaluate an expression over dim names: integers, names, + - * // % and parentheses. Raises ValueError for anything else."""
    if isinstance(size, int):
        return size
    tokens = re.findall(r"\d+|[A-Za-z_]\w*|//|[-+*%()]|\S", size)
    value: int | torch.SymInt
    value, rest = _sum(tokens, sizes)
    if rest:
        raise ValueError(f"{size!r} is not a size: {rest[0]!r} is not understood")
    return value


def _sum(tokens: list[str], sizes: Mapping[str, Any]) -> tuple[Any, list[str]]:
    value, tokens = _product(tokens, sizes)
    while tokens and tokens[0] in "+-":
        right, rest = _product(tokens[1:], sizes)
        value, tokens = _OPERATIONS[tokens[0]](value, right), rest
    return value, tokens


def _product(tokens: list[str], sizes: Mapping[str, Any]) -> tuple[Any, list[str]]:
    value, tokens = _atom(tokens, sizes)
    while tokens and tokens[0] in ("*", "//", "%"):
        right, rest = _atom(tokens[1:], sizes)
        value, tokens = _OPERATIONS[tokens[0]](value, right), rest
    return value, tokens


def _atom(tokens: list[str], sizes: Mapping[str, Any]) -> tuple[Any, list[str]]:
    if not tokens:
        raise ValueError("a size ends too early")
    first, rest = tokens[0], tokens[1:]
    if first == "-":
        value, rest = _atom(rest, sizes)
        return -value, rest
    if first == "(":
        value, rest = _sum(rest, sizes)
        if not rest or rest[0] != ")":
            raise ValueError("a size has an open parenthesis")
        return value, rest[1:]
    if first.isdigit():
        return int(first), rest
    if first in sizes:
        return sizes[first], rest
    raise ValueError(f"a size names {first!r}, which is no dim")

"""The numbered text form of a program: one line per node, equal for equal programs whatever their node names are."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from dsopt.ir.program import Program

_DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.bool: "bool",
    torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def type_text(program: Program, value: Any) -> str:
    """Return "f32[batch, 3, 8, 8]" of a fake tensor, "2*batch" of a size, "(f32[1], f32[1])" of a tuple."""
    if isinstance(value, Tensor):
        dtype = _DTYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        return f"{dtype}[{', '.join(str(program.size(size)) for size in value.shape)}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type_text(program, item) for item in value)})"
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return str(program.size(value))
    return "none" if value is None else str(value)


def op_text(node: fx.Node) -> str:
    """Return a node's operator: "conv2d", "dsopt.conv_act", "getitem"; the overload only where it is not the default."""
    name = (
        str(node.target)
        if not hasattr(node.target, "__module__") or "." in str(node.target)
        else getattr(node.target, "__name__", "?")
    )
    if node.target is operator.getitem or "built-in" in name or "function" in name:
        return str(getattr(node.target, "__name__", name))
    return name.removeprefix("aten.").removesuffix(".default")


def program_text(program: Program) -> str:
    """Return the whole program: a head with inputs, states and outputs, then one line per node."""
    names: dict[fx.Node, str] = {}
    signature = program.signature
    for node in program.placeholders[: len(signature.weights)]:
        names[node] = "@" + str(program.weight_name(node))
    for state in program.states:
        names[state.placeholder] = "$" + state.name
    for node, spec in zip(program.inputs, signature.inputs, strict=True):
        names[node] = "%" + spec.name
    lines = [
        "program("
        + ", ".join(f"{names[node]}: {type_text(program, node.meta['val'])}" for node in program.inputs)
        + ")"
    ]
    lines += [
        f"state {names[state.placeholder]}: {type_text(program, state.placeholder.meta['val'])}"
        for state in program.states
    ]
    number = 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        names[node] = f"%{number}"
        number += 1
        layer = program.layer(node)
        note = f"  # {layer}" if layer else ""
        lines.append(
            f"{names[node]} = {op_text(node)}({_arguments(node, names)}): {type_text(program, node.meta['val'])}{note}"
        )
    for state in program.states:
        lines.append(f"next {names[state.placeholder]} = {names[state.update]}")
    results = zip(signature.outputs, program.outputs, strict=True)
    lines.append("return " + ", ".join(f"{spec.name}={names[node]}" for spec, node in results))
    return "\n".join(lines) + "\n"


def _arguments(node: fx.Node, names: dict[fx.Node, str]) -> str:
    parts = [_value(item, names) for item in node.args]
    parts += [f"{key}={_value(item, names)}" for key, item in sorted(node.kwargs.items())]
    return ", ".join(parts)


def _value(item: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(item, fx.Node):
        return names[item]
    if isinstance(item, (tuple, list)):
        return "[" + ", ".join(_value(part, names) for part in item) + "]"
    if isinstance(item, torch.dtype):
        return _DTYPES.get(item, str(item))
    return repr(item) if isinstance(item, str) else str(item)

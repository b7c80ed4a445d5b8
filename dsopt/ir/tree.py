"""Flat names for the nested inputs and outputs of an exported program."""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from dsopt.errors import CaptureError
from dsopt.ir import torch_private as private
from dsopt.nesting import Tree, leaves


def name_inputs(exported: ExportedProgram, argument_names: tuple[str, ...]) -> tuple[Tree, list[str]]:
    """Return ({"tuple": [args, kwargs]} with named leaves, names in order). Names come from the arguments of `forward`."""
    arguments = [spec.arg for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    values = [
        None if isinstance(argument, TensorArgument) else _Constant(getattr(argument, "value", None))
        for argument in arguments
    ]
    args_spec, kwargs_spec = private.tree_children(exported.call_spec.in_spec)
    rest = list(values)
    positional = private.tree_children(args_spec)
    names = argument_names if len(argument_names) >= len(positional) else tuple(f"x{i}" for i in range(len(positional)))
    args = [_named(spec, name, rest) for spec, name in zip(positional, names, strict=False)]
    keys = private.tree_keys(kwargs_spec)
    kwargs = [
        [key, _named(spec, key, rest)] for key, spec in zip(keys, private.tree_children(kwargs_spec), strict=True)
    ]
    tree: Tree = {"tuple": [{"tuple": args}, {"dict": kwargs}]}
    return tree, list(leaves(tree))


def name_outputs(exported: ExportedProgram) -> tuple[Tree, list[str]]:
    """Return (tree with named leaves, names in order): "output" for a single tensor, keys and indices otherwise."""
    arguments = [spec.arg for spec in exported.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    rest: list[Any] = []
    for argument in arguments:
        if not isinstance(argument, TensorArgument) and not hasattr(argument, "value"):
            raise CaptureError(
                "DS0125",
                "the model returns a size that varies, which is no tensor",
                fix="return torch.tensor-like values, or leave it out",
            )
        rest.append(None if isinstance(argument, TensorArgument) else _Constant(getattr(argument, "value", None)))
    spec = exported.call_spec.out_spec
    tree = _named(spec, "" if private.tree_kind(spec) == "dict" else "output", rest)
    return tree, list(leaves(tree))


class _Constant:
    """A leaf that is a plain value and no tensor."""

    def __init__(self, value: object) -> None:
        self.value = value


def _named(spec: Any, path: str, rest: list[Any]) -> Tree:
    kind = private.tree_kind(spec)
    if kind == "leaf":
        leaf = rest.pop(0)
        if not isinstance(leaf, _Constant):
            return path
        if leaf.value is None or isinstance(leaf.value, (bool, int, float, str)):
            return {"const": leaf.value}
        raise CaptureError(
            "DS0126",
            f"{path!r} is a {type(leaf.value).__name__}, which a program cannot take or give",
            fix="use tensors",
        )
    children = private.tree_children(spec)
    if kind == "none":
        return {"const": None}
    keys = private.tree_keys(spec) if kind == "dict" else [str(i) for i in range(len(children))]
    named = [
        (key, _named(child, f"{path}.{key}" if path else key, rest)) for key, child in zip(keys, children, strict=True)
    ]
    if kind == "dict":
        return {"dict": [[key, child] for key, child in named]}
    return {kind: [child for _, child in named]}

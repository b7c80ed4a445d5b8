"""Make example inputs from the types that a model declares: seeded, and of sizes that the model can be run with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsopt.errors import ReadError, UnsupportedOpError
from dsopt.frontend.onnx_reader.graph import Graph, Port
from dsopt.frontend.onnx_reader.names import identifier
from dsopt.frontend.onnx_reader.problems import EXPORT_AGAIN, too_large
from dsopt.frontend.onnx_reader.values import Constant

MAX_INPUT_ELEMENTS = 2**28
"""Of all inputs together: the example holds them, and torch.export copies it."""
_SEED = 0
# Tried in this order: (batch-like, sequence-like, image-like) sizes; images must survive several halvings.
_SIZES = ((2, 5, 64), (2, 8, 128), (2, 16, 224), (2, 64, 256), (2, 3, 7), (1, 1, 1))
_PASSED_ON = frozenset(
    {"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Concat", "Transpose"}
)
_TERM = re.compile(r"\s*([+*-]?)\s*(\d{1,9}|[A-Za-z_][\w.]*)")


@dataclass(frozen=True)
class Dims:
    """How the declared shapes read: `names` {input: {axis: dim name}}; `texts` {dim name: what the file wrote}."""

    names: Mapping[str, Mapping[int, str]]
    texts: Mapping[str, str]


def read_dims(ports: tuple[Port, ...], names: tuple[str, ...]) -> Dims:
    """Name the varying axes: after the file's own dim names, others after input and axis. Raises ReadError DS0197, DS0192."""
    found: dict[str, dict[int, str]] = {}
    texts: dict[str, str] = {}
    by_text: dict[str, str] = {}
    for port, name in zip(ports, names, strict=True):
        _check_port(port)
        for axis, size in enumerate(port.shape or ()):
            if isinstance(size, int):
                continue
            text = size or f"{name}_{axis}"
            if text not in by_text:
                by_text[text] = identifier(text.strip(), texts)
                texts[by_text[text]] = text
            found.setdefault(name, {})[axis] = by_text[text]
    return Dims(found, texts)


def size_choices(ports: tuple[Port, ...], names: tuple[str, ...], dims: Dims) -> Iterator[dict[str, int]]:
    """Yield sizes for the varying dims, likelier ones first."""
    for batch, sequence, image in _SIZES:
        sizes: dict[str, int] = {}
        for port, name in zip(ports, names, strict=True):
            for axis, dim in dims.names.get(name, {}).items():
                is_image = (
                    axis >= 2 and len(port.shape or ()) >= 3 and port.dtype is not None and port.dtype.is_floating_point
                )
                guess = batch if axis == 0 else image if is_image and len(port.shape or ()) >= 4 else sequence
                sizes.setdefault(dim, guess)
        for dim, text in dims.texts.items():
            computed = _evaluate(text, {dims.texts[known]: size for known, size in sizes.items()})
            if computed is not None:
                sizes[dim] = computed
        yield sizes
        if not sizes:
            return


def shapes_of(
    ports: tuple[Port, ...], names: tuple[str, ...], dims: Dims, sizes: Mapping[str, int]
) -> list[tuple[int, ...]]:
    """Return the example's shape for each input. Raises ReadError DS0192 if it would be huge."""
    shapes, total = [], 0
    for port, name in zip(ports, names, strict=True):
        axes = dims.names.get(name, {})
        shape = tuple(
            size if isinstance(size, int) else sizes[axes[axis]] for axis, size in enumerate(port.shape or ())
        )
        total += math.prod(shape)
        if total > MAX_INPUT_ELEMENTS:
            what = f"input {port.name!r} of shape {list(shape)} has {math.prod(shape):,} elements"
            raise too_large(what, why=f"At most {MAX_INPUT_ELEMENTS:,} are taken, in all inputs together.")
        shapes.append(shape)
    return shapes


def make_inputs(graph: Graph, constants: Mapping[str, Constant], shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """Return seeded inputs: normal floats; indices within the tables that they are looked up in; other integers and bools 1."""
    generator = torch.Generator().manual_seed(_SEED)
    limits = _index_limits(graph, constants)
    inputs = []
    for port, shape in zip(graph.inputs, shapes, strict=True):
        dtype = port.dtype or torch.float32
        if dtype.is_floating_point or dtype.is_complex:
            inputs.append(torch.randn(shape, generator=generator).to(dtype))
        elif port.value in limits:
            inputs.append(torch.randint(0, limits[port.value], shape, generator=generator).to(dtype))
        else:
            inputs.append(torch.ones(shape, dtype=dtype))
    return tuple(inputs)


def _index_limits(graph: Graph, constants: Mapping[str, Constant]) -> dict[str, int]:
    """Return, for integer inputs that are looked up in stored tables, the rows of the smallest such table."""
    sources = {port.value: port.value for port in graph.inputs}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in _PASSED_ON and node.inputs and node.inputs[0] in sources:
            sources.update(dict.fromkeys(node.outputs, sources[node.inputs[0]]))
        elif (
            node.op == "Gather" and len(node.inputs) == 2 and node.inputs[1] in sources and node.inputs[0] in constants
        ):
            table, axis = constants[node.inputs[0]].tensor, node.attributes.get("axis", 0)
            if table.dim() and isinstance(axis, int) and -table.dim() <= axis < table.dim() and table.shape[axis]:
                source = sources[node.inputs[1]]
                limits[source] = min(limits.get(source, 2**31), table.shape[axis])
    return limits


def _check_port(port: Port) -> None:
    if port.dtype is None:
        raise UnsupportedOpError(
            "DS0197",
            f"input {port.name!r} is no tensor of numbers",
            why="Sequences, optional values, maps and text cannot be compiled.",
            fix="Export the model with tensor inputs.",
        )
    if port.shape is None:
        fix = "Give the input a shape with onnx.helper, using names for the sizes that vary."
        raise ReadError("DS0197", f"the file does not say how many axes input {port.name!r} has", fix=fix)
    for size in port.shape:
        if isinstance(size, int) and size < 0:
            raise ReadError("DS0197", f"input {port.name!r} has a size of {size}", fix=EXPORT_AGAIN)


def _evaluate(text: str, sizes: Mapping[str, int]) -> int | None:
    """Return the value of a sum or product such as "past + sequence" or "2*batch" over known dims; None for anything else."""
    if text in sizes and not re.search(r"[+*-]", text):
        return None
    total, product, sign, position, count = 0, 1, 1, 0, 0
    for match in _TERM.finditer(text):
        operation, term = match.groups()
        value = int(term) if term.isdigit() else sizes.get(term)
        if match.start() != position or value is None or (count and not operation) or count > 20:
            return None
        if operation == "*":
            product *= value
        else:
            total += sign * product if count else 0
            sign, product = (-1 if operation == "-" else 1), value
        position, count = match.end(), count + 1
    result = total + sign * product
    return result if count > 1 and position == len(text) and 0 < result < MAX_INPUT_ELEMENTS else None

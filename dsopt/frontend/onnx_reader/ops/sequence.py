"""Sequences of tensors, which exist while tracing only, and optional values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.values import Constant, Known, Value, as_tensor, known


@operator("SequenceEmpty")
def sequence_empty(call: Call) -> list[Value]:
    """Return no tensors."""
    del call
    return []


@operator("SequenceConstruct")
def sequence_construct(call: Call) -> list[Value]:
    """Return the inputs."""
    return list(call.tensors())


def _place(call: Call, index: int, length: int) -> int:
    place = call.number(index)
    if not isinstance(place, int):
        raise call.unsupported("a computed place in a sequence", "a fixed place")
    if not -length <= place < length:
        raise MalformedError(f"place {place} is outside a sequence of {length}")
    return place % length


@operator("SequenceAt")
def sequence_at(call: Call) -> Value:
    """Return one element."""
    items = call.sequence(0)
    return items[_place(call, 1, len(items))]


@operator("SequenceInsert")
def sequence_insert(call: Call) -> list[Value]:
    """Return the sequence with one more element."""
    items = list(call.sequence(0))
    items.insert(_place(call, 2, len(items) + 1) if call.has(2) else len(items), call.tensor(1))
    return items


@operator("SequenceErase")
def sequence_erase(call: Call) -> list[Value]:
    """Return the sequence without one element."""
    items = list(call.sequence(0))
    del items[_place(call, 1, len(items)) if call.has(1) else -1]
    return items


@operator("SequenceLength")
def sequence_length(call: Call) -> Known:
    """Return the number of elements."""
    return known(len(call.sequence(0)))


@operator("SplitToSequence")
def split_to_sequence(call: Call) -> list[Tensor]:
    """Cut along an axis."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", 0), x.dim())
    if not call.has(1):
        parts = list(torch.split(x, 1, axis))
        return parts if call.integer("keepdims", 1) else [part.squeeze(axis) for part in parts]
    sizes: list[Any] = call.numbers(1)
    if call.rank(1) == 0:
        return list(torch.split(x, sizes[0], axis))
    return list(torch.split(x, sizes, axis))


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call) -> Tensor:
    """Join the elements along an axis, on demand a new one."""
    items = [item for item in call.sequence(0) if isinstance(item, Tensor)]
    axis = call.integer("axis", 0)
    return torch.stack(items, axis) if call.integer("new_axis", 0) else torch.cat(items, axis)


@operator("Optional", "OptionalGetElement")
def optional_element(call: Call) -> Value:
    """Return the value."""
    value = call.value(0)
    return call.tensor(0) if isinstance(value, Constant) else value


@operator("OptionalHasElement")
def optional_has_element(call: Call) -> Known:
    """Tell whether there is a value."""
    return known(call.has(0), torch.bool)


@operator("SequenceMap")
def sequence_map(call: Call) -> tuple[list[Value], ...]:
    """Compute a graph for each element."""
    body, items = call.graph("body"), call.sequence(0)
    others = [call.value(index) for index in range(1, len(call.values))]
    results: list[list[Value]] = [[] for _ in body.outputs]
    for index, item in enumerate(items):
        arguments = [other[index] if isinstance(other, list) else other for other in others]
        for result, value in zip(results, call.run_graph(body, [item, *arguments]), strict=True):
            result.append(as_tensor(value) if isinstance(value, Known) else value)
    return tuple(results)

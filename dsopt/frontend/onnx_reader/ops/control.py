"""Branches and loops: taken or unrolled where that is known while tracing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in
from dsopt.frontend.onnx_reader.graph import Graph
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.values import Constant, Known, Value, known

MAX_STEPS = 1024
"""Steps of a loop that are written out one by one."""


@operator("If")
def if_(call: Call) -> tuple[Value, ...]:
    """Take the branch that a known condition chooses; else compute both and choose element by element."""
    condition, then, other = call.known(0), call.graph("then_branch"), call.graph("else_branch")
    if condition is not None:
        return tuple(call.run_graph(then if all(condition.items()) else other, ()))
    chosen = call.tensor(0).reshape([])
    pairs = zip(call.run_graph(then, ()), call.run_graph(other, ()), strict=True)
    return tuple(_select(call, chosen, call.as_tensor(left), call.as_tensor(right)) for left, right in pairs)


def _select(call: Call, chosen: Tensor, left: Tensor, right: Tensor) -> Tensor:
    if left.dtype != right.dtype or left.shape != right.shape:
        raise call.unsupported("If whose branches differ in shape", "a constant condition, or branches of one shape")
    return torch.where(chosen, left, right)


def _truth(value: Value) -> bool | None:
    """Return a condition that is known while tracing, else None."""
    if isinstance(value, Known) and value.is_concrete:
        return all(value.items())
    return all(value.numbers.items()) if isinstance(value, Constant) and value.numbers is not None else None


@operator("Loop")
def loop(call: Call) -> tuple[Value, ...]:
    """Unroll a loop whose number of steps is known while tracing."""
    body, trips = call.graph("body"), call.number(0) if call.has(0) else None
    if trips is None:
        trips = MAX_STEPS
    elif not isinstance(trips, int):
        raise call.unsupported("Loop over a varying number of steps", "a fixed number of steps")
    condition: Value = call.value(1) if call.has(1) else known(True, torch.bool)
    state = [call.value(index) for index in range(2, len(call.values))]
    scans: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(state) :]]
    step = 0
    while step < trips:
        truth = _truth(condition)
        if truth is None:
            raise call.unsupported("Loop that ends by a computed condition", "a fixed number of steps")
        if not truth:
            break
        if step >= MAX_STEPS:
            raise call.unsupported(f"Loop of more than {MAX_STEPS} steps", f"up to {MAX_STEPS} steps")
        condition, *results = call.run_graph(body, [known(step), condition, *state])
        state = results[: len(state)]
        for scan, value in zip(scans, results[len(state) :], strict=True):
            scan.append(call.as_tensor(value))
        step += 1
    return (*state, *(_stacked(call, body, scan, index + 1 + len(state)) for index, scan in enumerate(scans)))


def _stacked(call: Call, body: Graph, scan: list[Tensor], position: int) -> Tensor:
    if scan:
        return torch.stack(scan)
    port = body.outputs[position]
    if port.shape is None or not all(isinstance(size, int) for size in port.shape) or port.dtype is None:
        raise call.unsupported("Loop without steps whose result has no declared shape", "at least one step")
    sizes = [size for size in port.shape if isinstance(size, int)]
    return torch.empty([0, *sizes], dtype=port.dtype)


@operator("Scan")
def scan(call: Call) -> tuple[Value, ...]:
    """Unroll a scan over axes of fixed length."""
    if call.version < 9:
        raise call.unsupported("Scan of opset 8", "Scan of opset 9 or later")
    body, count = call.graph("body"), call.integer("num_scan_inputs", 0)
    if not 1 <= count <= len(call.values):
        raise MalformedError(f"attribute 'num_scan_inputs' is {count}")
    state: list[Value] = [call.value(index) for index in range(len(call.values) - count)]
    inputs = call.tensors(len(state))
    axes = call.integers("scan_input_axes") or [0] * count
    backwards = call.integers("scan_input_directions") or [0] * count
    if not inputs or not len(inputs) == count == len(axes) == len(backwards):
        raise MalformedError(f"it has {len(inputs)} inputs to scan, {len(axes)} axes and {len(backwards)} directions")
    axes = [axis_in(axis, x.dim()) for axis, x in zip(axes, inputs, strict=True)]
    steps: Any = inputs[0].shape[axes[0]]
    if not isinstance(steps, int) or steps > MAX_STEPS:
        raise call.unsupported(
            f"Scan over {steps if isinstance(steps, int) else 'a varying number of'} steps",
            f"a fixed number of up to {MAX_STEPS} steps",
        )
    scans: list[list[Tensor]] = [[] for _ in body.outputs[len(state) :]]
    for step in range(steps):
        slices = [
            x.select(axis, steps - 1 - step if back else step)
            for x, axis, back in zip(inputs, axes, backwards, strict=True)
        ]
        results = call.run_graph(body, [*state, *slices])
        state = results[: len(state)]
        for items, value in zip(scans, results[len(state) :], strict=True):
            items.append(call.as_tensor(value))
    out_axes = call.integers("scan_output_axes") or [0] * len(scans)
    out_backwards = call.integers("scan_output_directions") or [0] * len(scans)
    joined = [
        torch.stack(items[::-1] if back else items, axis_in(axis, items[0].dim() + 1))
        for items, axis, back in zip(scans, out_axes, out_backwards, strict=True)
    ]
    return (*state, *joined)

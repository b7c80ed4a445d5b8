"""A LoopProgram -> where every buffer lies on the GPU, and which kernel is launched when over what.

Weights lie in one allocation, in one file. All else shares a workspace: a buffer's bytes are its own from the first launch that
writes it to the last that reads it, and other buffers' before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from dsopt.backends.cuda.kernels import CompiledKernels
from dsopt.backends.tir.program import Buffer, Kernel, LoopProgram
from dsopt.ir import Program
from dsopt.passes.memory.arena import Plan, plan_arena
from dsopt.passes.memory.liveness import Step, lifetimes

ALIGNMENT = 256
"""Bytes; what cuMemAlloc itself keeps to, and enough for any vector access and any cache line."""


def plan_workspace(loops: LoopProgram) -> Plan:
    """Place every buffer that owns bytes of the workspace: inputs from the start, outputs and next states to the end."""
    steps = [
        Step(_roots(loops, kernel.inputs), _roots(loops, (*kernel.outputs, *kernel.scratch)))
        for kernel in loops.kernels
    ]
    before = _roots(loops, (*loops.inputs, *(state.buffer for state in loops.states)))
    after = _roots(loops, (*loops.outputs, *(state.update for state in loops.states)))
    named = {*before, *after, *(name for step in steps for name in (*step.reads, *step.writes))}
    sizes = {name: loops.buffers[name].size_bytes for name in sorted(named)}
    return plan_arena(lifetimes(steps, sizes, before, after), ALIGNMENT)


def _roots(loops: LoopProgram, names: Iterable[str]) -> tuple[str, ...]:
    """Return the owners of the bytes of buffers that are not weights, each once."""
    roots = (loops.root(name) for name in names)
    return tuple(dict.fromkeys(root.name for root in roots if root.kind != "weight"))


def weights_file(loops: LoopProgram) -> tuple[bytes, dict[str, int]]:
    """Return the bytes of all weights, each aligned, and the offset of each. First values of states are not among them."""
    content = bytearray()
    offsets: dict[str, int] = {}
    for name in sorted(loops.constants):
        if loops.buffers[name].kind == "weight":
            content += bytes(-len(content) % ALIGNMENT)
            offsets[name] = len(content)
            content += np.ascontiguousarray(loops.constants[name]).tobytes()
    return bytes(content), offsets


def memory_manifest(
    loops: LoopProgram, weights: Mapping[str, int], weights_bytes: int, workspace: Plan
) -> dict[str, Any]:
    """Return the manifest's "memory": both allocations, and the place of every buffer, aliases included."""
    buffers = {}
    for name in sorted(loops.buffers):
        buffer, root = loops.buffers[name], loops.root(name)
        space, offset = (
            ("weights", weights.get(root.name))
            if root.kind == "weight"
            else ("workspace", workspace.offsets.get(root.name))
        )
        if offset is not None:
            buffers[name] = {
                "space": space, "offset": offset, "bytes": buffer.size_bytes, "shape": list(buffer.shape), "dtype": buffer.dtype,
            }  # fmt: skip
    return {
        "weights_bytes": weights_bytes,
        "workspace_bytes": workspace.arena_bytes,
        "workspace_lower_bound_bytes": workspace.lower_bound_bytes,
        "optimal": workspace.optimal,
        "alignment": ALIGNMENT,
        "buffers": buffers,
    }


def launches_manifest(kernels: Sequence[Kernel], compiled: CompiledKernels) -> list[dict[str, Any]]:
    """Return the manifest's "launches", in order; the first `reads` arguments of each are only read."""
    return [
        {
            "kernel": compiled.symbols[kernel.name],
            "node": kernel.node,
            "grid": [compiled.launches[kernel.name].blocks, 1, 1],
            "block": [compiled.launches[kernel.name].threads, 1, 1],
            "args": list(kernel.arguments),
            "reads": len(kernel.inputs),
        }
        for kernel in kernels
    ]


def ports_manifest(program: Program, loops: LoopProgram) -> dict[str, dict[str, str]]:
    """Return which buffer holds each graph-level input and output: "x", "state.NAME", "next.NAME"."""
    signature = program.signature
    inputs = {spec.name: name for spec, name in zip(signature.inputs, loops.inputs, strict=True)}
    outputs = {spec.name: name for spec, name in zip(signature.outputs, loops.outputs, strict=True)}
    return {
        "inputs": inputs | {f"state.{state.name}": state.buffer for state in loops.states},
        "outputs": outputs | {f"next.{state.name}": state.update for state in loops.states},
    }


def layers_manifest(program: Program, loops: LoopProgram) -> list[dict[str, Any]]:
    """Return the manifest's "layers": one record for each node that has kernels, named after the buffer of its result."""
    nodes = {node.name: node for node in program.graph.nodes}
    last = {kernel.node: kernel for kernel in loops.kernels}
    multiply_adds = dict.fromkeys(last, 0)
    for kernel in loops.kernels:
        multiply_adds[kernel.node] += kernel.multiply_adds
    return [
        {
            "name": kernel.outputs[0],
            "node": node,
            "layer": kernel.layer,
            "op": str(nodes[node].target).rpartition(".")[0],
            "shape": _shown_shape(nodes[node], loops.buffers[kernel.outputs[0]]),
            "dtype": loops.buffers[kernel.outputs[0]].dtype,
            "multiply_adds": multiply_adds[node],
        }
        for node, kernel in last.items()
    ]


def _shown_shape(node: fx.Node, buffer: Buffer) -> list[int]:
    """Return the shape of a node's result, which its kernel may see in another; the kernel's own where a node has many results."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.numel() == buffer.elements:
        return [int(size) for size in value.shape]
    return list(buffer.shape)

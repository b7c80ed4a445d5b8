"""The native part of a cpu artifact: kernels for sparse attentions, and the segments of the model around them.

Beside model.onnx, which says everything in standard operators, lie segment.N.onnx, whose weights are bytes of model.onnx, and
kernels/HASH.LEVEL.so. What no kernel can be made for stays a call in a segment; without any kernel the model is all there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from dsopt.backends.cpu.convert import Converted
from dsopt.backends.cpu.functions import DSOPT
from dsopt.backends.cpu.model import Place, segment_file
from dsopt.backends.cpu.portable import Form
from dsopt.backends.cpu.segments import Segment, Step, cut, describe
from dsopt.errors import ToolchainError

Files = dict[str, bytes]


def has_functions(converted: Converted) -> bool:
    """Tell whether a program has what a native kernel may be made for."""
    return any(node.domain == DSOPT for node in converted.emitter.nodes)


def native_part(converted: Converted, name: str, places: Mapping[str, Place]) -> tuple[Files, dict[str, Any]]:
    """Return the files and the manifest's "native": see `dsopt.runtime.segment_plan`; {"absent": why} without any kernel.

    places: where the weights lie. Raises VerifyError if onnx finds a segment wrong.
    """
    files: Files = {}
    kernels: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    problems: list[str] = []
    called = {node.op_type for node in converted.emitter.nodes if node.domain == DSOPT}
    for function in sorted(called):
        form = converted.emitter.functions[function].meaning
        try:
            libraries = _libraries(form)
        except ToolchainError as problem:
            problems.append(problem.what)
            continue
        if not libraries:
            problems.append(f"there is none for {str(form.dtype).removeprefix('torch.')} on this machine")
            continue
        kernel = {"config": _plain(kernel_config(form)), "libraries": _add(files, libraries)}
        if kernel not in kernels:
            kernels.append(kernel)
        numbers[function] = kernels.index(kernel)
    if not kernels:
        return {}, {"absent": "; ".join(dict.fromkeys(problems))}
    steps = cut(converted, lambda node: node.domain == DSOPT and node.op_type in numbers)
    layers = set(converted.values.values())
    entries = [_entry(step, number, numbers, layers) for number, step in enumerate(steps)]
    for step, entry in zip(steps, entries, strict=True):
        if isinstance(step, Segment):
            files[entry["segment"]] = segment_file(step.graph, name, places)
    return files, {"steps": entries, "kernels": kernels, "outputs": [port.name for port in converted.outputs]}


def _entry(step: Step, number: int, numbers: Mapping[str, int], layers: set[str]) -> dict[str, Any]:
    if not isinstance(step, Segment):
        return describe(step, numbers)
    graph = step.graph
    made = [name for node in graph.nodes for name in node.outputs]
    return {
        "segment": f"segment.{number}.onnx",
        "inputs": [port.name for port in graph.inputs],
        "outputs": [port.name for port in graph.outputs],
        "layers": [name for name in made if name in layers],
    }


def _add(files: Files, libraries: Mapping[str, bytes]) -> dict[str, str]:
    """Add libraries under names by their content, so that kernels that share one have one file."""
    names = {}
    for level, content in sorted(libraries.items()):
        names[level] = f"kernels/{hashlib.sha256(content).hexdigest()[:16]}.{level}.so"
        files[names[level]] = content
    return names


def kernel_config(form: Form) -> dict[str, Any]:
    """Return the fields of `dsopt.runtime.sparse_kernel.KernelConfig`."""
    return {
        "heads": form.heads,
        "key_heads": form.key_heads,
        "head": form.head,
        "value_head": form.value_head,
        "causal": form.causal,
        "scale": form.scale,
        "budget": form.budget,
        "unit": form.unit,
        "tile": form.tile,
        "window": form.window,
        "has_bias": form.bias is not None,
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "budget": list(config["budget"])}


def _libraries(form: Form) -> Mapping[str, bytes]:
    """Build the libraries of a kernel, {} if there is no kernel for such numbers. Raises ToolchainError without a compiler."""
    if form.dtype != torch.float32 or 0 in (form.heads, form.head, form.value_head):
        return {}
    return build(kernel_config(form))


def build(config: Mapping[str, Any]) -> Mapping[str, bytes]:
    """Build one kernel: the one place that knows where kernels come from. TVM is imported only here."""
    try:
        from dsopt.backends.cpu.sparse import build as compile_kernel
    except ModuleNotFoundError as problem:
        raise ToolchainError("DS0396", "what makes native kernels is not installed", why=str(problem)) from problem
    from dsopt.runtime.sparse_call import KernelConfig

    return compile_kernel(KernelConfig(**config))

"""What the manifest of a cpu artifact says about native kernels: the steps of a run, read with care because anyone may have written it.

native.steps      segments for ONNX Runtime, views of arrays, and calls of kernels, in order, over arrays by name
native.kernels    for each kernel its configuration, and its libraries by level of the CPU
native.outputs    the names of the results, in the order of the manifest's outputs and states
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError
from dsopt.runtime.onnx_names import input_names, result_names

_MOST_SIZE = 1 << 24
_MOST_DIMS = 16


@dataclass(frozen=True)
class SegmentStep:
    """A part of the model that ONNX Runtime runs. layers: the results in it that belong to layers of the manifest."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ViewStep:
    """An array, transposed, in another shape (a size of 0 is copied, one may be -1), or a part of it.

    part: axis, first index, and the one behind the last; for one index alone, without the axis, there are two numbers.
    """

    name: str
    of: str
    transpose: tuple[int, ...]
    reshape: tuple[int, ...]
    part: tuple[int, ...]


@dataclass(frozen=True)
class KernelStep:
    """A call of kernel number `kernel` with (query, key, value) and perhaps a bias. is_rows: the result lies as (B, T, H, E)."""

    kernel: int
    inputs: tuple[str, ...]
    output: str
    is_rows: bool


@dataclass(frozen=True)
class KernelFiles:
    """A kernel: the fields of its configuration, and the file of each level of the CPU."""

    config: Mapping[str, Any]
    libraries: Mapping[str, str]


Step = SegmentStep | ViewStep | KernelStep


@dataclass(frozen=True)
class Plan:
    """All steps of a run."""

    steps: tuple[Step, ...]
    kernels: tuple[KernelFiles, ...]
    outputs: tuple[str, ...]


def read_plan(artifact: Artifact) -> Plan | None:
    """Return the plan of an artifact, None if it has no native kernels. Raises ArtifactError if the plan contradicts itself."""
    entry = artifact.manifest.get("native")
    if entry is None or (isinstance(entry, Mapping) and "absent" in entry):
        return None
    try:
        plan = Plan(
            tuple(_step(each) for each in _list(entry["steps"])),
            tuple(_kernel(each) for each in _list(entry["kernels"])),
            tuple(_name(each) for each in _list(entry["outputs"])),
        )
        _check(plan, artifact)
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(
            "DS0397",
            "what the manifest says about native kernels cannot be followed",
            why=f"it has no {problem}" if isinstance(problem, KeyError) else str(problem)[:300],
            fix="compile the model again",
        ) from problem
    return plan


def _step(entry: Any) -> Step:
    if not isinstance(entry, Mapping):
        raise ValueError("a step is no record")
    if "segment" in entry:
        lists = (tuple(_name(each) for each in _list(entry[key])) for key in ("inputs", "outputs", "layers"))
        return SegmentStep(_name(entry["segment"]), *lists)
    if "view" in entry:
        transpose, reshape, part = (tuple(_number(each, -1) for each in _list(entry.get(key, [])))
                                    for key in ("transpose", "reshape", "part"))  # fmt: skip
        if transpose and sorted(transpose) != list(range(len(transpose))):
            raise ValueError(f"{list(transpose)} is no order of axes")
        if reshape.count(-1) > 1 or len(reshape) > _MOST_DIMS or -1 in part or len(part) not in (0, 2, 3):
            raise ValueError(f"the view {str(entry['view'])[:80]!r} has no shape, or is no part")
        if bool(transpose) + bool(reshape) + bool(part) != 1:
            raise ValueError(
                f"the view {str(entry['view'])[:80]!r} is not exactly one of transposed, reshaped and a part"
            )
        return ViewStep(_name(entry["view"]), _name(entry["of"]), transpose, reshape, part)
    if not isinstance(entry["rows"], bool):
        raise ValueError("a kernel's 'rows' is not true or false")
    inputs = tuple(_name(each) for each in _list(entry["inputs"]))
    return KernelStep(_number(entry["kernel"]), inputs, _name(entry["output"]), entry["rows"])


def _kernel(entry: Any) -> KernelFiles:
    config, libraries = entry["config"], entry["libraries"]
    if not isinstance(config, Mapping) or not isinstance(libraries, Mapping) or not libraries:
        raise ValueError("a kernel has no configuration or no library")
    sizes = {key: _number(config[key], 1) for key in ("heads", "key_heads", "head", "value_head", "tile")}
    sizes["window"] = _number(config["window"])
    budget = tuple(_real(each) for each in _list(config["budget"]))
    scale = None if config["scale"] is None else _real(config["scale"])
    if sizes["heads"] % sizes["key_heads"] or len(budget) not in (1, sizes["heads"]):
        raise ValueError("a kernel's heads or budgets do not fit each other")
    if config["causal"] not in ("none", "start", "end") or config["unit"] not in ("keys", "log2", "share"):
        raise ValueError("a kernel's causal or unit is none that is known")
    if not isinstance(config["has_bias"], bool):
        raise ValueError("a kernel's has_bias is not true or false")
    known = {**sizes, "scale": scale, "budget": budget, **{key: config[key] for key in ("causal", "unit", "has_bias")}}
    if set(config) != set(known):
        raise ValueError("a kernel's configuration has fields that are not known")
    return KernelFiles(known, {_name(level): _name(file) for level, file in libraries.items()})


def _check(plan: Plan, artifact: Artifact) -> None:
    """Check that what a step reads was made before, and that files are there. Raises ValueError."""
    there = set(input_names(artifact))
    for step in plan.steps:
        if isinstance(step, KernelStep):
            if step.kernel >= len(plan.kernels):
                raise ValueError(f"there is no kernel {step.kernel}")
            if len(step.inputs) != 3 + plan.kernels[step.kernel].config["has_bias"]:
                raise ValueError(f"the kernel that gives {step.output!r} has {len(step.inputs)} inputs")
        reads = (step.of,) if isinstance(step, ViewStep) else step.inputs
        if missing := sorted(set(reads) - there):
            raise ValueError(f"{missing[0]!r} is read before it is made")
        there |= set(_made(step))
    files = [step.file for step in plan.steps if isinstance(step, SegmentStep)]
    files += [file for kernel in plan.kernels for file in kernel.libraries.values()]
    if missing := sorted(set(files) - set(artifact.files)):
        raise ValueError(f"the file {missing[0]!r} is not there")
    if len(plan.outputs) != len(result_names(artifact)) or not set(plan.outputs) <= there:
        raise ValueError("its outputs are not those of the artifact")


def _made(step: Step) -> Sequence[str]:
    if isinstance(step, SegmentStep):
        return step.outputs
    return (step.name,) if isinstance(step, ViewStep) else (step.output,)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{str(value)[:80]!r} is no list")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise ValueError(f"{str(value)[:80]!r} is no name")
    return value


def _number(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST_SIZE:
        raise ValueError(f"{str(value)[:80]!r} is no size")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:80]!r} is no number")
    return float(value)

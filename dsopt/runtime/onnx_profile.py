"""What ONNX Runtime says each of its nodes took, under the names of the model's layers."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dsopt.runtime.executor import LayerCost

WARM_UP_RUNS, PROFILED_RUNS = 3, 15

_SUFFIX = "_kernel_time"
_INLINED = re.compile(r"_inlfunc_(?P<function>[A-Za-z0-9]+)_(token_(?P<number>\d+)_)?")


def read_profile(path: Path, layers: Sequence[Mapping[str, Any]], skipped_runs: int) -> tuple[LayerCost, ...]:
    """Read the file that ONNX Runtime wrote and return the median time of each layer, in the order in which they ran.

    layers: of the manifest, each with the name of its node.  skipped_runs: at the beginning, which warm up.  Nodes that ONNX
    Runtime fused have the name of one of their layers; nodes that it added, such as changes of layout, have rows of their own.
    Nodes of a function belong to the layer that calls it.
    """
    # A layer that does nothing, such as dropout, shares the name of the one before it.
    names = {str(layer.get("onnx_node", layer["name"])): layer for layer in reversed(layers)}
    callers: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for layer in layers:
        callers[str(layer.get("function", ""))].append(layer)
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    in_run: dict[tuple[str, str], float] = {}
    first = ""
    number = -1
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith(_SUFFIX):
            continue
        name = str(event["name"]).removesuffix(_SUFFIX)
        first = first or name
        if name == first:
            _keep(runs, in_run, number >= skipped_runs)
            in_run, number = {}, number + 1
        called = _caller(name, callers)
        key = (
            _key(called, str(called["name"]))
            if called
            else _layer(name, str(event.get("args", {}).get("op_name", "")), names)
        )
        in_run[key] = in_run.get(key, 0.0) + float(event["dur"]) * 1e-6
    _keep(runs, in_run, number >= skipped_runs)
    return tuple(LayerCost(node, layer, seconds=median(seconds)) for (node, layer), seconds in runs.items())


def _keep(runs: dict[tuple[str, str], list[float]], in_run: Mapping[tuple[str, str], float], is_wanted: bool) -> None:
    if is_wanted:
        for key, seconds in in_run.items():
            runs[key].append(seconds)


def _caller(name: str, callers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Mapping[str, Any] | None:
    """Return the layer that calls the function of an inlined node, as ONNX Runtime names these: numbered from the second call on."""
    found = _INLINED.match(name)
    if found is None or found["function"] not in callers:
        return None
    number = 0 if found["number"] is None else int(found["number"]) + 1
    layers = callers[found["function"]]
    return layers[number] if number < len(layers) else None


def _key(layer: Mapping[str, Any], name: str) -> tuple[str, str]:
    return str(layer["node"]), str(layer["layer"]) or name


def _layer(name: str, op: str, layers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return program node and layer of an executed node: "features.2/relu_nchwc" belongs to the layer "features.2/relu"."""
    text = name.removeprefix("fused ")
    while text:
        if text in layers:
            return _key(layers[text], text)
        # Shorten by what the converter or ONNX Runtime appended: "/MatMul", "_nchwc", "_token_8".
        text = text[: max(text.rfind("/"), text.rfind("_"), 0)]
    return name, op

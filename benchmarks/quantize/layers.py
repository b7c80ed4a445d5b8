"""How far three ways of computing a quantised layer are apart, layer by layer, on identical integer inputs.

The oracle is the NumPy reference of the integer operators. The simulation (fake-quant, in float32) and ONNX Runtime are given, at
each rounding, the oracle's integers in the place of their own, so that no difference of one layer reaches the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx

from dsopt import Artifact, Pass, PassManager, Program
from dsopt.ir.interpret import evaluate

_DSOPT = torch.ops.dsopt
_LAYER = "benchmark layer"
_UNSIGNED = 128
"""Between the int8 of a program and the uint8 that is written in its place in an ONNX file."""

Integers = dict[str, np.ndarray]
"""By the name of the node that rounds."""


@dataclass(frozen=True)
class LayerDifferences:
    """The largest differences from the oracle, in steps of a layer's result, by layer; the oracle's output for the samples."""

    simulation: dict[str, int]
    onnxruntime: dict[str, int]
    oracle_output: np.ndarray


def compare_layers(
    rounded: Program, lowering: Sequence[Pass], onnx_artifact: Artifact, inputs: tuple[Tensor, ...]
) -> LayerDifferences:
    """Compare on a few samples. rounded: quantised, as quantize and dequantize; lowering: the passes that make it integer."""
    marked = rounded.clone()
    for node in _roundings(marked):
        marked.facts(node)[_LAYER] = node.name
    lowered, _ = PassManager(tuple(lowering)).run(marked)
    oracle, output = _oracle(lowered, inputs)
    assert oracle, "nothing was rounded"
    simulated = _simulation(rounded, inputs, oracle)
    model = onnx.load_from_string(bytes(onnx_artifact.files["model.onnx"]))
    tensors = _onnx_names(rounded, onnx_artifact.manifest["layers"], model)
    names = [spec.name for spec in rounded.signature.inputs]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return LayerDifferences(simulated, _onnx_differences(model, tensors, feeds, oracle), output)


def _roundings(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target is _DSOPT.quantize.default]


def _oracle(lowered: Program, inputs: tuple[Tensor, ...]) -> tuple[Integers, np.ndarray]:
    found: Integers = {}

    def keep(node: fx.Node, value: Any) -> None:
        name = lowered.facts(node).get(_LAYER)
        if name is not None and isinstance(value, Tensor) and not value.is_floating_point():
            found[name] = value.numpy().astype(np.int64)

    with torch.no_grad():
        results = evaluate(lowered.graph, lowered.bind(inputs), keep)
    return found, results[len(lowered.states)].numpy()


def _simulation(rounded: Program, inputs: tuple[Tensor, ...], oracle: Integers) -> dict[str, int]:
    differences: dict[str, int] = {}

    def judged(name: str) -> Any:
        def quantize(*args: Any) -> Tensor:
            own = _DSOPT.quantize(*args)
            differences[name] = _largest(own.numpy(), oracle[name])
            return torch.from_numpy(oracle[name]).to(own.dtype)

        return quantize

    substitutes = {node: judged(node.name) for node in _roundings(rounded) if node.name in oracle}
    with torch.no_grad():
        evaluate(rounded.graph, rounded.bind(inputs), None, substitutes)
    return differences


def _largest(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(np.int64) - right).max(initial=0))


# ---- ONNX Runtime ----


def _onnx_names(rounded: Program, layers: Sequence[Mapping[str, Any]], model: onnx.ModelProto) -> dict[str, str]:
    """Return the tensor of integers in the file for each rounding of the program: what its DequantizeLinear reads."""
    tensors = {str(row["node"]): str(row["name"]) for row in layers}
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in _roundings(rounded):
        for user in node.users:
            producer = producers.get(tensors.get(user.name, ""))
            if user.target is _DSOPT.dequantize.default and producer is not None:
                assert producer.op_type == "DequantizeLinear", producer.op_type
                found[node.name] = producer.input[0]
    return found


def _onnx_differences(
    model: onnx.ModelProto, tensors: Mapping[str, str], feeds: Mapping[str, np.ndarray], oracle: Integers
) -> dict[str, int]:
    """Run a copy of the model in which every layer takes its integers from outside, and gives those that it computed."""
    layers = {name: tensor for name, tensor in tensors.items() if name in oracle}
    types = {
        each.name: each.type.tensor_type.elem_type for each in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    given: dict[str, np.ndarray] = {}
    for name, tensor in layers.items():
        outside = f"{tensor}.given"
        for node in model.graph.node:
            node.input[:] = [outside if each == tensor else each for each in node.input]
        shape: list[Any] = [None] * oracle[name].ndim
        model.graph.input.append(onnx.helper.make_tensor_value_info(outside, types[tensor], shape))
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, types[tensor], shape))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[tensor])
        given[outside] = (oracle[name] + (_UNSIGNED if dtype == np.uint8 else 0)).astype(dtype)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the cpu target opens it
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    used = {each.name for each in session.get_inputs()}
    every = {name: value for name, value in {**feeds, **given}.items() if name in used}
    results = session.run(list(layers.values()), every)
    return {
        name: _largest(result.astype(np.int64) - (_UNSIGNED if result.dtype == np.uint8 else 0), oracle[name])
        for name, result in zip(layers, results, strict=True)
    }

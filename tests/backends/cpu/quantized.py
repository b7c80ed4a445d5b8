"""Quantise small modules, and compare each layer in ONNX Runtime with the quantised program, on identical integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.cpu.convert import convert
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from tests.backends.cpu.harness import emit

_DSOPT = torch.ops.dsopt
PASSES = "canonicalize,fold-batch-norm,fuse-attention,fold-constants,remove-dead-code,quantize{%s}"
OFFSET = 128
"""Between the int8 of a program and the uint8 that is written in its place."""


def quantised(module: nn.Module, samples: Sequence[tuple[Tensor, ...]], options: str = "") -> Program:
    """Capture with the first sample, calibrate with all."""
    program = dsopt.capture(module.eval(), samples[0])
    names = [spec.name for spec in program.signature.inputs]
    calibration = tuple(dict(zip(names, sample, strict=True)) for sample in samples)
    rounded, _ = PassManager(parse_pipeline(PASSES % options)).run(program, PassContext(calibration=calibration))
    return rounded


def layer_differences(program: Program, inputs: tuple[Tensor, ...], is_optimised: bool) -> dict[str, int]:
    """Return the largest difference in steps of every rounded value, each layer being given the program's own integers."""
    wanted: dict[str, np.ndarray[Any, Any]] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.target is _DSOPT.quantize.default:
            wanted[node.name] = value.numpy().astype(np.int64)

    with torch.no_grad():
        evaluate(program.graph, program.bind(inputs), keep)
    model = onnx.load_from_string(model_bytes(emit(program)))
    tensors = _rounded_tensors(program, model)
    types = {
        each.name: each.type.tensor_type.elem_type for each in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    feeds = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
    for name, tensor in tensors.items():
        outside = f"{tensor}.given"
        for node in model.graph.node:
            node.input[:] = [outside if each == tensor else each for each in node.input]
        shape = [None] * wanted[name].ndim
        model.graph.input.append(onnx.helper.make_tensor_value_info(outside, types[tensor], shape))
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, types[tensor], shape))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[tensor])
        feeds[outside] = (wanted[name] + (OFFSET if dtype == np.uint8 else 0)).astype(dtype)
    session = open_session(model, is_optimised)
    known = {each.name for each in session.get_inputs()}
    results = session.run(list(tensors.values()), {name: value for name, value in feeds.items() if name in known})
    return {
        name: int(np.abs(got.astype(np.int64) - (OFFSET if got.dtype == np.uint8 else 0) - wanted[name]).max(initial=0))
        for name, got in zip(tensors, results, strict=True)
    }


def model_bytes(artifact: Artifact) -> bytes:
    return bytes(artifact.files["model.onnx"])


def open_session(model: onnx.ModelProto, is_optimised: bool = True) -> ort.InferenceSession:
    """Open on one thread."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if is_optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _rounded_tensors(program: Program, model: onnx.ModelProto) -> dict[str, str]:
    """Return the tensor of integers in the file for every rounding: what its DequantizeLinear reads."""
    values = convert(program).values
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in program.graph.nodes:
        if node.target is not _DSOPT.quantize.default:
            continue
        readers = [producers[values[user.name]] for user in node.users if user.name in values]
        assert readers, f"{node.name} is not to be found in the file"
        assert readers[0].op_type == "DequantizeLinear"
        found[node.name] = readers[0].input[0]
    return found


def operators(model: onnx.ModelProto, tmp_path: Any) -> list[str]:
    """Return the operators that ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def stored_bytes(model: onnx.ModelProto, dtype: int) -> int:
    """Return how many bytes of the file hold tensors of a type of onnx.TensorProto."""
    return sum(len(each.raw_data) for each in model.graph.initializer if each.data_type == dtype)

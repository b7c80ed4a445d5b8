"""Build small ONNX models and compare what the reader makes of them with ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from dsopt.frontend.onnx_reader import OnnxModel, read_onnx
from dsopt.ir import Program
from dsopt.ir.build import from_exported

Array = Any


def one_node(
    op: str,
    inputs: Sequence[Array | None],
    *,
    opset: int = 17,
    outputs: int = 1,
    stored: Mapping[int, Array] | None = None,
    domain: str = "",
    **attributes: Any,
) -> tuple[onnx.ModelProto, list[Array]]:
    """Return a model of one node, and the arrays for its graph inputs. stored: inputs that are initializers, by position."""
    stored = stored or {}
    names = [f"x{index}" for index in range(max(len(inputs), max(stored, default=-1) + 1))]
    feeds = [array for array in inputs if array is not None]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=False)
        if array is not None
    ]
    given = [
        name if index in stored or (index < len(inputs) and inputs[index] is not None) else ""
        for index, name in enumerate(names)
    ]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, given, results, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        infos,
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(np.asarray(array), names[index]) for index, array in stored.items()],
    )
    return model_of(graph, opset, domain), feeds


def model_of(
    graph: onnx.GraphProto, opset: int = 17, domain: str = "", functions: Sequence[Any] = ()
) -> onnx.ModelProto:
    """Wrap a graph."""
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)


def info(name: str, shape: Sequence[int | str | None], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Declare a value."""
    return helper.make_tensor_value_info(name, dtype, shape)


def expected(model: onnx.ModelProto | str, feeds: Sequence[Array]) -> list[Array]:
    """Run a model in ONNX Runtime, without its optimiser."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    results: list[Array] = session.run(None, dict(zip(names, map(np.asarray, feeds), strict=True)))
    return results


def computed(model: OnnxModel, feeds: Sequence[Array]) -> list[Array]:
    """Run a read model."""
    with torch.no_grad():
        results = model.module(*(torch.from_numpy(np.array(feed)) for feed in feeds))
    return [result.numpy() for result in results.values()]


def captured(model: OnnxModel) -> Program:
    """Export a read model with its own varying sizes."""
    dims: dict[str, torch.export.Dim] = {}
    shapes = {
        name: {axis: dims.setdefault(dim, torch.export.Dim(dim)) for axis, dim in model.dynamic.get(name, {}).items()}
        for name in model.input_names
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model.module, model.example, dynamic_shapes=shapes, strict=False)
    names = {(name, axis): dim for name, axes in model.dynamic.items() for axis, dim in axes.items()}
    return from_exported(exported, names)


def targets(program: Program) -> list[str]:
    """Return the operators of a program in order, without overloads."""
    found = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("aten.").split(".")[0] for name in found]


def assert_close(got: Sequence[Array], want: Sequence[Array], tolerance: float = 1e-5) -> None:
    """Compare outputs: types, shapes, and values relative to the largest of each."""
    assert len(got) == len(want)
    for left, right in zip(got, want, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        scale = max(1.0, float(np.nanmax(np.abs(right.astype(np.float64)), initial=0.0, where=np.isfinite(right))))
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * scale)


def check(
    op: str,
    inputs: Sequence[Array | None],
    *,
    opset: int = 17,
    outputs: int = 1,
    stored: Mapping[int, Array] | None = None,
    domain: str = "",
    tolerance: float = 1e-5,
    **attributes: Any,
) -> OnnxModel:
    """Compare one node with ONNX Runtime and return what was read."""
    proto, feeds = one_node(op, inputs, opset=opset, outputs=outputs, stored=stored, domain=domain, **attributes)
    model = read_onnx(proto.SerializeToString())
    assert_close(computed(model, feeds), expected(proto, feeds), tolerance)
    return model


def floats(*shape: int, seed: int = 0) -> Array:
    """Return seeded normal floats."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)

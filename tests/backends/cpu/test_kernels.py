"""ONNX Runtime loads every operator in every dtype that the table of kernels says it has."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from dsopt.backends.cpu.kernels import KERNEL_DTYPES
from dsopt.backends.cpu.model import IR_VERSION, ONNX_DTYPES, OPSET

INT64 = onnx.TensorProto.INT64
T = "the operator's type"
IMAGE = [1, 1, 4, 4]
UNARY: list[tuple[Any, list[int]]] = [(T, IMAGE)]
BINARY = UNARY * 2
AXES = [*UNARY, (INT64, [1])]
VECTORS: list[tuple[Any, list[int]]] = [(T, [1])] * 4
SEQUENCE: list[tuple[Any, list[int]]] = [(T, [1, 1, 1])] * 3

BINARY_OPERATORS = [
    "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu", "MatMul",
]  # fmt: skip

FORMS: dict[str, tuple[list[tuple[Any, list[int]]], dict[str, Any]]] = {
    **{name: (UNARY, {}) for name in KERNEL_DTYPES},
    **{name: (BINARY, {}) for name in BINARY_OPERATORS},
    **{name: (AXES, {}) for name in KERNEL_DTYPES if name.startswith("Reduce")},
    "AveragePool": (UNARY, {"kernel_shape": [2, 2]}),
    "MaxPool": (UNARY, {"kernel_shape": [2, 2]}),
    "Conv": ([(T, IMAGE), (T, [1, 1, 1, 1])], {}),
    "ConvTranspose": ([(T, IMAGE), (T, [1, 1, 1, 1])], {}),
    "BatchNormalization": ([*UNARY, *VECTORS], {}),
    "InstanceNormalization": ([*UNARY, *VECTORS[:2]], {}),
    "LayerNormalization": ([*UNARY, (T, [4]), (T, [4])], {}),
    "Gemm": ([(T, [2, 2])] * 3, {}),
    "Einsum": ([(T, [2, 2])] * 2, {"equation": "ij,jk->ik"}),
    "MultiHeadAttention": ([(T, [1, 2, 4])] * 3, {"num_heads": 1}),
    "LSTM": (SEQUENCE, {"hidden_size": 1}),
    "GRU": (SEQUENCE, {"hidden_size": 1}),
    "RNN": (SEQUENCE, {"hidden_size": 1}),
    "Col2Im": ([(T, [1, 4, 4]), (INT64, [2]), (INT64, [2])], {}),
    "GridSample": ([(T, IMAGE), (T, [1, 1, 1, 2])], {}),
    "CumSum": ([(T, [3]), (INT64, [])], {}),
    "Range": ([(T, [])] * 3, {}),
    "Clip": ([*UNARY, (T, []), (T, [])], {}),
    "Where": ([(onnx.TensorProto.BOOL, IMAGE), *BINARY], {}),
    "Pad": ([*UNARY, (INT64, [8]), (T, [])], {}),
    "TopK": (AXES, {}),
    "DepthToSpace": ([(T, [1, 4, 1, 1])], {"blocksize": 2}),
    "Resize": ([*UNARY, None, (onnx.TensorProto.FLOAT, [4])], {"mode": "nearest"}),  # type: ignore[list-item]
    "QuantizeLinear": ([*UNARY, (T, []), (onnx.TensorProto.UINT8, [])], {}),
    "DequantizeLinear": ([*UNARY, (onnx.TensorProto.FLOAT, []), (T, [])], {}),
    "MatMulInteger": ([(T, [2, 2]), (onnx.TensorProto.INT8, [2, 2]), (T, []), (onnx.TensorProto.INT8, [])], {}),
    "ConvInteger": ([(T, IMAGE), (onnx.TensorProto.UINT8, [1, 1, 1, 1]), (T, [])], {}),
}
PAIRS = [(name, dtype) for name, typed in KERNEL_DTYPES.items() for dtype in sorted(typed.dtypes, key=str)]


@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=[f"{n}-{str(d).removeprefix('torch.')}" for n, d in PAIRS])
def test_onnx_runtime_has_the_kernel(name: str, dtype: torch.dtype) -> None:
    shapes, attributes = FORMS[name]
    values = [
        helper.make_tensor_value_info(f"x{number}", ONNX_DTYPES[dtype] if each[0] is T else each[0], each[1])
        for number, each in enumerate(shapes)
        if each is not None
    ]
    names = [f"x{number}" if each is not None else "" for number, each in enumerate(shapes)]
    results = {"TopK": ["y", "z"]}.get(name, ["y"])
    domain = "com.microsoft" if name == "MultiHeadAttention" else ""
    node = helper.make_node(name, names, results, domain=domain, **attributes)
    graph = helper.make_graph([node], "one", values, [onnx.ValueInfoProto(name=result) for result in results])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

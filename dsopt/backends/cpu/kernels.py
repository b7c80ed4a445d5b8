"""The dtypes for which ONNX Runtime's CPU provider has kernels, where that is not every dtype.

Found by loading a one-node model for each pair with ONNX Runtime 1.32 (see tests/backends/cpu/test_kernels.py); operators
that are not listed take every dtype that their converters give them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDER: dict[torch.dtype, torch.dtype] = {
    torch.bool: torch.uint8,
    torch.uint8: torch.int32,
    torch.int8: torch.int32,
    torch.int16: torch.int32,
    torch.int32: torch.int64,
}
"""The next dtype that holds every value of a dtype; float64 has none, and float16 is ONNX Runtime's own business."""


INT4: torch.dtype = vars(torch)["int4"]  # the stubs of torch lack the two
UINT4: torch.dtype = vars(torch)["uint4"]
NARROW = (INT4, UINT4)
"""Dtypes of files whose elements share bytes; torch has no such tensors, and here they are int8."""


@dataclass(frozen=True)
class Typed:
    """Which inputs of an operator share its type (None: all) and the dtypes it has kernels for."""

    dtypes: frozenset[torch.dtype]
    inputs: tuple[int, ...] | None = None

    def covers(self, number: int) -> bool:
        """Tell whether input `number` has the operator's type."""
        return self.inputs is None or number in self.inputs


_F32 = frozenset({torch.float32})
_FLOATS = frozenset({torch.float32, torch.float64})
_WIDE_INTS = frozenset({torch.int32, torch.int64})
_INTS = _WIDE_INTS | {torch.uint8, torch.int8, torch.int16}
_NUMBERS = _INTS | _FLOATS
_WIDE = _WIDE_INTS | _FLOATS
_NO_INT16 = _NUMBERS - {torch.int16}
_BOOL = frozenset({torch.bool})
_BYTES = frozenset({torch.uint8, torch.int8})


def _table(*rows: tuple[str, frozenset[torch.dtype], tuple[int, ...] | None]) -> dict[str, Typed]:
    return {name: Typed(dtypes, inputs) for names, dtypes, inputs in rows for name in names.split()}


KERNEL_DTYPES: dict[str, Typed] = _table(
    ("Asin Acos Asinh Acosh Atan Atanh Cosh Erf Sinh Tan", _F32, None),
    ("Elu Gelu HardSigmoid LeakyRelu PRelu Selu Softplus", _F32, None),
    (
        "AveragePool Conv ConvTranspose GlobalAveragePool GlobalMaxPool InstanceNormalization MultiHeadAttention RNN",
        _F32,
        None,
    ),
    ("Col2Im", _F32, (0,)),
    ("Ceil Cos Exp Floor Log LogSoftmax Reciprocal Round Sigmoid Sin Softmax Sqrt Tanh", _FLOATS, None),
    ("BatchNormalization Gemm GridSample LayerNormalization", _FLOATS, None),
    ("GRU LSTM", _F32, (0, 1, 2, 3, 5, 6)),  # they load in float64, and refuse to run
    ("IsInf IsNaN", _FLOATS, None),
    ("Einsum MatMul Pow", _WIDE, None),
    ("CumSum ReduceL1 ReduceL2 ReduceLogSumExp ReduceMean ReduceProd ReduceSum", _WIDE, (0,)),
    ("Range", _WIDE, None),
    ("Abs Add Div Mod Mul Shrink Sign Sub", _NUMBERS, None),
    ("Greater GreaterOrEqual Less LessOrEqual", _NUMBERS, None),
    ("Neg", _NUMBERS - {torch.uint8}, None),
    ("ArgMax ArgMin ReduceMax ReduceMin", _NO_INT16, (0,)),
    ("Clip Max Min", _NO_INT16, None),
    ("Where", _NO_INT16, (1, 2)),
    ("Pad", _NO_INT16 | _BOOL, (0, 2)),
    ("Relu", _FLOATS | {torch.int8, torch.int32}, None),
    ("MaxPool", _FLOATS | {torch.int8, torch.uint8}, None),
    ("TopK", _WIDE - {torch.int32}, (0,)),
    ("Trilu", _WIDE | _BOOL, (0,)),
    ("DepthToSpace", _FLOATS | {torch.uint8}, None),
    ("Resize", _F32 | {torch.uint8, torch.int8, torch.int32}, (0,)),
    ("BitwiseAnd BitwiseNot BitwiseOr BitwiseXor", _INTS, None),
    ("NonZero", _BOOL | _F32 | _WIDE_INTS, None),
    ("QuantizeLinear", _F32, (0, 1)),
    ("DequantizeLinear", _INTS - {torch.int64} | {INT4, UINT4}, (0, 2)),
    ("MatMulInteger", _BYTES, (0, 2)),  # the second operand has a type of its own
    ("ConvInteger", frozenset({torch.uint8}), (0, 2)),
)
"""Operator -> the dtypes it has kernels for. Resize of ints is exact for nearest neighbours only, which is what it is used for."""

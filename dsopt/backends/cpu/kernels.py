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


@dataclass(frozen=True)
class Typed:
    """Which inputs of an operator share its type (None: all) and the dtypes it has kernels for."""

    dtypes: frozenset[torch.dtype]
    inputs: tuple[int, ...] | None = None

    def covers(self, number: int) -> bool:
        """Tell whether input `number` has the operator's type."""
        return self.inputs is None or number in self.inputs


KERNEL_DTYPES: dict[str, Typed] = {}

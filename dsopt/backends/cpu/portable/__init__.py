"""dsopt::sparse_attention written with standard ONNX operators, as the body of a function.

It is `dsopt.ops.sparse_attention` step by step, for fixed lengths, so that all that depends on lengths alone is constant. Between
the steps lie tensors of (G, t, c, D) for G heads, t tiles and c picked keys or nodes, never of (T, S).
"""

from __future__ import annotations

from dsopt.backends.cpu.portable.form import write
from dsopt.backends.cpu.portable.plan import Bias, Form

__all__ = ["Bias", "Form", "write"]

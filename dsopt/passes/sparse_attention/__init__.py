"""sparse-attention: attention whose cost grows with n log n, where calibration data shows that it does no harm."""

from dsopt.passes.sparse_attention.rewrite import SparseAttention

__all__ = ["SparseAttention"]

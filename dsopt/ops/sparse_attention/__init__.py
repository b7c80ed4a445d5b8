"""The operator dsopt::sparse_attention."""

from __future__ import annotations

from dsopt.ops.sparse_attention.operator import OPERATOR
from dsopt.ops.sparse_attention.reference import sparse_attention
from dsopt.ops.sparse_attention.work import Work

__all__ = ["OPERATOR", "Work", "sparse_attention"]

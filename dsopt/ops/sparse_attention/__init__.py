"""The operator dsopt::sparse_attention, and caches of keys and values for generating text."""

from __future__ import annotations

from dsopt.ops.sparse_attention.cache import DenseCache, SparseCache
from dsopt.ops.sparse_attention.operator import OPERATOR, multiply_adds
from dsopt.ops.sparse_attention.reference import attend_selected, sparse_attention
from dsopt.ops.sparse_attention.selection import Selection, select
from dsopt.ops.sparse_attention.work import Work
from dsopt.sparse_schedule import picked

__all__ = [
    "OPERATOR",
    "DenseCache",
    "Selection",
    "SparseCache",
    "Work",
    "attend_selected",
    "multiply_adds",
    "picked",
    "select",
    "sparse_attention",
]

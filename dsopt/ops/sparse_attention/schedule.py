"""How much a sparse attention may look at: kept in `dsopt.sparse_schedule`, as the runtime needs it too and never imports torch."""

from __future__ import annotations

from dsopt.sparse_schedule import (
    DENSE,
    FIRST_NODES,
    LEAF,
    OPENED,
    UNITS,
    Schedule,
    cover_size,
    levels,
    picked,
    schedule,
    work,
)

__all__ = [
    "DENSE",
    "FIRST_NODES",
    "LEAF",
    "OPENED",
    "UNITS",
    "Schedule",
    "cover_size",
    "levels",
    "picked",
    "schedule",
    "work",
]

"""Place the buffers of the workspace."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.backends.cuda.plan import ALIGNMENT, Lifetime


def place(buffers: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """Return the offset of each buffer, and the bytes that hold them all."""
    placed: list[tuple[int, Lifetime]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size_bytes, b.first, b.name)):
        offset = 0
        for start, other in sorted(placed, key=lambda pair: pair[0]):
            if other.first <= buffer.last and buffer.first <= other.last and start < offset + buffer.size_bytes:
                offset = max(offset, -(-(start + other.size_bytes) // ALIGNMENT) * ALIGNMENT)
        placed.append((offset, buffer))
    return {b.name: o for o, b in placed}, max((o + b.size_bytes for o, b in placed), default=0)

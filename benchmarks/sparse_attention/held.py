"""The native kernel beside torch's attention, both held to AVX2: in a process of its own, as torch reads its level when it is loaded.

ONNX Runtime cannot be held, and is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.harness import Row, interleave, progress
from benchmarks.sparse_attention.speed import HEAD, HEADS, LEAST_ROUNDS, OPENINGS, build, native, row, torch_dense

LEVEL = "x86-64-v3"
HELD = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""What holds torch, and the libraries that it calls."""


def held_rows(lengths: Sequence[int], seconds: float) -> list[Row]:
    """Return a row for each length, one thread; none without the kernel. seconds: of timing for each."""
    command = [sys.executable, "-m", "benchmarks.sparse_attention.held", str(seconds), *map(str, lengths)]
    progress(f"speed: both held to AVX2, {', '.join(map(str, lengths))} keys")
    done = subprocess.run(command, env={**os.environ, **HELD}, check=True, capture_output=True, text=True)
    rows: list[Row] = json.loads(done.stdout)
    return rows


def main(seconds: float, lengths: Sequence[int]) -> list[Row]:
    """Time in this process."""
    torch.set_num_threads(1)
    try:
        libraries = {LEVEL: build()[LEVEL]}
    except (ImportError, KeyError):
        return []
    rows = []
    for n in lengths:
        rounds: dict[str, list[list[float]]] = {}
        rng = np.random.default_rng(n)
        for _ in range(OPENINGS):
            query, key, value = (rng.standard_normal((1, HEADS, n, HEAD), dtype=np.float32) for _ in range(3))
            calls = {
                "dsopt": native((query, key, value), 1, libraries),
                "torch": torch_dense((query, key, value)),
            }
            for name, taken in interleave(calls, budget_seconds=seconds / OPENINGS, least_rounds=LEAST_ROUNDS).items():
                rounds.setdefault(name, []).append(taken)
        rows.append(
            {**row(n, 1, rounds), "measure": "speed held to AVX2", "isa": torch.backends.cpu.get_cpu_capability()}
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), [int(each) for each in sys.argv[2:]])))

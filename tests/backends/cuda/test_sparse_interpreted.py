"""The Triton kernels of sparse attention against the reference in float64, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from dsopt.backends.cuda.sparse import has_triton
from tests.backends.cuda.sparse_cases import CASES, eager_errors

NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed: pip install 'dsopt[cuda-dev]'"),
    pytest.mark.skipif(NUMPY >= (2, 3), reason="Triton's interpreter fails with numpy 2.3 and later"),
]

FLOAT32 = 2e-6
"""max|a-b| / max|b| on the same lists: sums of float32 in another order than the reference's."""

HALF = [name for name in CASES if name.startswith("half")]
QUICK = ["causal, to the end, own bias a head"]
SLOW = [name for name in CASES if name not in QUICK]


def _run(names: Sequence[str]) -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.cuda.sparse_cases", *names],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def quick() -> dict[str, list[float]]:
    return _run(QUICK)


@pytest.fixture(scope="module")
def slow() -> dict[str, list[float]]:
    return _run(SLOW)


def _check(name: str, found: list[float]) -> None:
    assert len(found) == (4 if CASES[name].has_gradient else 1)
    limits = [1.5 * each for each in eager_errors(CASES[name])] if name in HALF else [FLOAT32] * len(found)
    assert all(error <= limit for error, limit in zip(found, limits, strict=True)), (found, limits)


@pytest.mark.parametrize("name", QUICK)
def test_kernels_agree_with_the_reference(name: str, quick: dict[str, list[float]]) -> None:
    _check(name, quick[name])


def test_the_operator_runs_by_the_kernels_with_gradients(quick: dict[str, list[float]]) -> None:
    assert max(quick["operator"]) <= FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_kernels_agree_with_the_reference_in_more_cases(name: str, slow: dict[str, list[float]]) -> None:
    _check(name, slow[name])

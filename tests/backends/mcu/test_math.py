"""dsopt_math.h against numpy in float64, over floats spread evenly through all 2^32 bit patterns."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.backends.tir.host_runner import host_compiler

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def erf(x: Doubles) -> Doubles:
    return torch.erf(torch.from_numpy(x)).numpy()


ONE_ARGUMENT: dict[str, tuple[Callable[[Doubles], Any], float]] = {
    "expf": (np.exp, 1.0),
    "expm1f": (np.expm1, 1.7),
    "logf": (np.log, 1.0),
    "log1pf": (np.log1p, 2.5),
    "tanhf": (np.tanh, 1.5),
    "erff": (erf, 1.5),
    "sqrtf": (np.sqrt, 0.5),
    "floorf": (np.floor, 0.0),
    "ceilf": (np.ceil, 0.0),
    "truncf": (np.trunc, 0.0),
    "rintf": (np.rint, 0.0),
    "fabsf": (np.abs, 0.0),
}
"""Function -> its oracle, and the most ulp that the header claims."""


@pytest.fixture(scope="module", params=["", "-mfma"], ids=["plain", "fused"])
def math(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Floats]:
    """The functions on arrays, with and without multiply-add in one rounding: compilers for either core exist."""
    folder = tmp_path_factory.mktemp("math")
    (folder / "dsopt_math.h").write_text((files("dsopt.backends.mcu") / "dsopt_math.h").read_text())
    lines = ['#include "dsopt_math.h"']
    for name in (*ONE_ARGUMENT, "sinf", "cosf"):
        lines.append(f"void {name}_all(const float *x, float *y, int n)")
        lines.append(f"{{ for (int i = 0; i < n; ++i) y[i] = dsopt_{name}(x[i]); }}")
    for name in ("powf", "atan2f", "fmodf"):
        lines.append(f"void {name}_all(const float *x, const float *z, float *y, int n)")
        lines.append(f"{{ for (int i = 0; i < n; ++i) y[i] = dsopt_{name}(x[i], z[i]); }}")
    (folder / "all.c").write_text("\n".join(lines) + "\n")
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC", "-ffreestanding"]
    flags += [request.param, "-ffp-contract=fast"] if request.param else []
    command = [host_compiler(), *flags, "all.c", "-o", "all.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if request.param and "unrecognized" in done.stderr:
        pytest.skip("this machine has no fused multiply-add")
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "all.so"))

    def call(name: str, *arguments: Floats) -> Floats:
        result = np.empty_like(arguments[0])
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (*arguments, result)]
        getattr(library, f"{name}_all")(*pointers, len(result))
        return result

    return call


def every(step: int) -> Floats:
    return np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def ulps(got: Floats, want: Doubles, least: float = 1.1754944e-38) -> Doubles:
    """Return |got - want| in units in the last place of want; 0 where both are the same infinity or NaN."""
    with np.errstate(all="ignore"):
        nearest = want.astype(np.float32)
        unit = np.spacing(np.maximum(np.abs(nearest), np.float32(least))).astype(np.float64)
        error = np.abs(got.astype(np.float64) - want) / unit
    error[(got == nearest) | (np.isnan(got) & np.isnan(nearest))] = 0.0
    return np.where(np.isnan(error), np.inf, error)


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_functions_are_as_accurate_as_their_comments_say(name: str, math: Callable[..., Floats]) -> None:
    oracle, most = ONE_ARGUMENT[name]
    x = every(4099)
    with np.errstate(all="ignore"):
        error = ulps(math(name, x), oracle(x.astype(np.float64)))
    worst = int(error.argmax())
    assert error[worst] <= most, f"{name}({x[worst]!r}) is off by {error[worst]} ulp"


@pytest.mark.parametrize("name", ["sinf", "cosf"])
def test_sine_and_cosine_hold_for_arguments_of_any_size(name: str, math: Callable[..., Floats]) -> None:
    x = np.concatenate([every(4099), np.linspace(-600, 600, 200_003, dtype=np.float32)])
    oracle = {"sinf": np.sin, "cosf": np.cos}[name]
    with np.errstate(all="ignore"):
        error = ulps(math(name, x), oracle(x.astype(np.float64)), 2.0**-20)
    assert error.max() <= 3.0


def test_remainders_are_exact(math: Callable[..., Floats]) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, (2, 200_000), dtype=np.uint64).astype(np.uint32)
    a, b = bits.view(np.float32)
    a = np.concatenate([a, np.float32([1, -7, 7, 0, -0.0, np.inf, 1, np.nan, 1e-45, 3e38, 6])])
    b = np.concatenate([b, np.float32([0.1, 3, -3, 2, 2, 2, np.inf, 1, 1e-40, 1e-45, 0])])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(math("fmodf", a, b), np.fmod(a, b))


def test_powers_are_accurate_and_keep_the_special_cases(math: Callable[..., Floats]) -> None:
    random = np.random.default_rng(0)
    bases = [np.exp(random.uniform(-80, 80, 100_000)), -np.exp(random.uniform(-3, 3, 50_000))]
    powers = [random.uniform(-3, 3, 100_000), random.integers(-9, 9, 50_000).astype(np.float64)]
    special = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 3.0, np.inf, -np.inf, np.nan, 1e-40, 1e38, 7.0, -3.0, 0.3]
    grid = np.meshgrid(special, special)
    x = np.concatenate([*bases, grid[0].ravel()]).astype(np.float32)
    z = np.concatenate([*powers, grid[1].ravel()]).astype(np.float32)
    with np.errstate(all="ignore"):
        error = ulps(math("powf", x, z), np.power(x.astype(np.float64), z.astype(np.float64)))
        angle = ulps(math("atan2f", x, z), np.arctan2(x.astype(np.float64), z.astype(np.float64)))
    assert error.max() <= 1.5
    assert angle.max() <= 2.0

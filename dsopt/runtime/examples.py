"""Seeded inputs for an artifact, from its manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dsopt.dims import dim_names, evaluate
from dsopt.errors import InputError, UsageError
from dsopt.runtime.arguments import DimRange, TensorSpec
from dsopt.runtime.arrays import Array

_MAX_BYTES = 16 << 30


def example_feeds(
    inputs: Sequence[TensorSpec], dims: Mapping[str, DimRange], sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Return {input name: array}: floats are normal, integers 0 or 1 (valid indices of any table), booleans true.

    sizes: of the dims that vary; those not given are 1, or the least that the artifact takes. The same seed gives the same numbers.
    Raises UsageError for a dim that the artifact does not have, InputError for sizes that no array can have.
    """
    given = dict(sizes or {})
    if unknown := sorted(set(given) - set(dims)):
        known = ", ".join(sorted(dims)) or "none: every size is fixed"
        raise UsageError(
            "DS0819", f"the artifact has no varying size {unknown[0]!r}", fix=f"its varying sizes: {known}"
        )
    full = {name: given.get(name, max(1, allowed.min)) for name, allowed in dims.items()}
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(_size(size, full, spec) for size in spec.shape)
        if float(np.prod(shape, dtype=np.float64)) * np.dtype(spec.dtype).itemsize > _MAX_BYTES:
            raise InputError(
                "DS0820", f"{spec.name} would have the shape {list(shape)}, more than {_MAX_BYTES:,} bytes"
            )
        kind = np.dtype(spec.dtype).kind
        if kind == "f":
            feeds[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
        elif kind == "b":
            feeds[spec.name] = np.ones(shape, dtype=bool)
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def _size(size: int | str, dims: Mapping[str, int], spec: TensorSpec) -> int:
    try:
        value = evaluate(size, dims)
    except ValueError as error:
        used = ", ".join(f"{name}={dims[name]}" for name in sorted(dim_names(size)))
        raise InputError("DS0820", f"{spec.name} has no shape for {used}", why=str(error)) from error
    if value < 0:
        raise InputError("DS0820", f"{spec.name} has a size of {value} for {size}")
    return value

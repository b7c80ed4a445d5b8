"""The values that flow between ONNX nodes while a model is traced: tensors, stored constants and known numbers.

Shape arithmetic must not become tensors: `Known` holds numbers, torch's symbolic sizes among them, in a numpy array of
objects, so that reshaping, slicing and broadcasting them is numpy's work and sizes stay symbolic under torch.export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import SymBool, SymFloat, SymInt, Tensor

from dsopt.frontend.onnx_reader.problems import UndecidedError

Number = int | float | bool | SymInt | SymFloat | SymBool
MAX_KNOWN = 4096
"""Integers with more elements stay tensors."""
MAX_KNOWN_FLOATS = 64
"""Floats of more elements are weights, not numbers that shapes are computed from."""


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers known while tracing, any shape. array: dtype object; dtype: what a tensor of them would have."""

    array: np.ndarray[Any, Any]
    dtype: torch.dtype

    def items(self) -> list[Any]:
        """Return the numbers in row-major order."""
        return list(self.array.reshape(-1))

    @property
    def is_concrete(self) -> bool:
        """Tell whether no number is symbolic."""
        return not any(isinstance(item, (SymInt, SymFloat, SymBool)) for item in self.array.reshape(-1))


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor stored in the file or computed from such. path: its name among the module's weights.

    numbers: its elements if they are few; asked for now, because under torch.export a tensor tells no numbers.
    """

    tensor: Tensor
    path: str
    is_weight: bool
    numbers: Known | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", known_of(self.tensor))


Value = Tensor | Constant | Known | list[Any] | None


def known(items: Any, dtype: torch.dtype = torch.int64) -> Known:
    """Make a Known of one number or of a flat sequence of them."""
    if isinstance(items, (list, tuple, torch.Size)):
        array = np.empty(len(items), dtype=object)
        for index, item in enumerate(items):  # one by one: numpy would ask a symbolic size for its value
            array[index] = item
    else:
        array = np.empty((), dtype=object)
        array[()] = items
    return Known(array, dtype)


def known_of(tensor: Tensor) -> Known | None:
    """Return the numbers of a small real tensor; None if it is too large or of a type Python has no number for."""
    if tensor.numel() > (MAX_KNOWN_FLOATS if tensor.is_floating_point() else MAX_KNOWN) or tensor.dtype.is_complex:
        return None
    array = np.empty(tensor.numel(), dtype=object)
    array[:] = [rounded(item, tensor.dtype) for item in tensor.reshape(-1).tolist()]
    return Known(array.reshape(tuple(tensor.shape)), tensor.dtype)


def as_tensor(value: Known) -> Tensor:
    """Return a tensor of known numbers: a constant, or one stacked from symbolic sizes."""
    if value.is_concrete:
        return torch.tensor(value.array.tolist(), dtype=value.dtype)
    scalars = [torch.scalar_tensor(item, dtype=value.dtype) for item in value.items()]
    if value.array.ndim == 0:
        return scalars[0]
    return torch.stack(scalars).reshape(value.array.shape)


def numbers_of(tensor: Tensor) -> list[Any]:
    """Return the numbers of a tensor that is computed while running; in a trial without numbers this is undecided."""
    if tensor.is_meta:
        raise UndecidedError
    items: list[Any] = tensor.reshape(-1).tolist()
    return items


def rounded(number: Any, dtype: torch.dtype) -> Any:
    """Round a Python float to what a tensor of the dtype would hold, so that shapes computed in float32 come out alike."""
    return shortest(number) if isinstance(number, float) and dtype == torch.float32 else number


def shortest(number: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 as the user wrote it, not 9.999999747378752e-06."""
    if not math.isfinite(number):
        return number
    with np.errstate(over="ignore"):
        return float(str(np.float32(number)))

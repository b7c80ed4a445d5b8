"""Arithmetic on sizes that may be symbolic, with types: torch's own functions for it have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

larger: Callable[[Any, Any], Any] = torch.sym_max
smaller: Callable[[Any, Any], Any] = torch.sym_min
to_float: Callable[[Any], Any] = torch.sym_float
to_integer: Callable[[Any], Any] = torch.sym_int
negated: Callable[[Any], Any] = torch.sym_not

"""What a model factory returns: the module and the example that it is captured with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class ModelSpec(NamedTuple):
    """Name a module, its example input and the dims that vary; `package.module:factory` on the command line returns one.

    model: in eval mode.  args, kwargs: an example call of it.  dynamic: {input name: {axis: dim name}}; equal names mean
    equal sizes, and an axis that is not named stays as it is in the example.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    dynamic: Mapping[str, Mapping[int, str]] = {}

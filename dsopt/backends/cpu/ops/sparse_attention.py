"""dsopt::sparse_attention as a call of a function that the model defines, with one function for each distinct attention.

B batch, H heads, T queries, S keys, D head size, E value size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.functions import DSOPT
from dsopt.backends.cpu.portable import Bias, Form, write
from dsopt.backends.cpu.registry import RefusalError, converter

NAME = "SparseAttention"


@converter("dsopt.sparse_attention.default")
def convert_sparse_attention(
    cx: Emitter,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    bias: fx.Node | None,
    causal: str,
    scale: float | None,
    budget: Sequence[float],
    unit: str,
    tile: int,
    window: int,
) -> Value:
    """Write (B, H, T, D), (B, K, S, D), (B, K, S, E) -> (B, H, T, E) for fixed lengths. Raises RefusalError for others."""
    heads, queries, head = (_fixed(cx, query, axis) for axis in (1, 2, 3))
    key_heads, keys, value_head = _fixed(cx, key, 1), _fixed(cx, key, 2), _fixed(cx, value, 3)
    form = Form(
        cx.dtype, heads, key_heads, queries, keys, head, value_head,
        None if bias is None else Bias(cx.value(bias).dtype, _fixed(cx, bias, 1), _fixed(cx, bias, 3)),
        causal, 1 / math.sqrt(max(head, 1)) if scale is None else float(scale), tuple(map(float, budget)), unit, tile, window,
    )  # fmt: skip
    function = cx.once((NAME, form), lambda: _written(cx, form))
    inputs = [cx.value(each) for each in (query, key, value, bias) if each is not None]
    return cx.op(function, *inputs, dtype=cx.dtype, domain=DSOPT)


def _written(cx: Emitter, form: Form) -> str:
    """Add a function to the model and return its name: numbered, because the shapes of a name would say too little."""
    name = f"{NAME}{len(cx.functions)}"
    cx.functions[name] = replace(write(form, name), meaning=form)
    return name


def _fixed(cx: Emitter, x: fx.Node, axis: int) -> int:
    size = cx.shape(x)[axis]
    if isinstance(size, torch.SymInt):
        what = ("the batch", "the number of heads", "the length", "the head size")[axis]
        raise RefusalError(
            f"{what} of a sparse attention varies ({cx.program.size(size)}), and what it looks at depends on it",
            "compile once for each length, with this size fixed when capturing or by --dim NAME=VALUE; the batch may vary",
        )
    return size

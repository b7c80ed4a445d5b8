"""Keep a state as integers where every run quantizes what it reads and dequantizes what it leaves: a quarter of the memory."""

from __future__ import annotations

import torch
from torch import fx

from dsopt.ir import Program, Rewriter

_DSOPT = torch.ops.dsopt


def store_states(program: Program, rewriter: Rewriter) -> None:
    """Give such states the dtype of their integers.

    state -> quantize(state, s, z) ... next state = dequantize(q, s, z)   becomes   state ... next state = q
    """
    for state in program.states:
        update = state.update
        readers = list(state.placeholder.users)
        if update.target is not _DSOPT.dequantize.default or len(readers) != 1:
            continue
        (reader,) = readers
        if reader.target is not _DSOPT.quantize.default or reader.args[1:3] != update.args[1:3]:
            continue
        integers = update.args[0]
        if not isinstance(integers, fx.Node) or program.dtype(integers) != program.dtype(reader):
            continue
        first = _DSOPT.quantize(program.weights[state.name].detach(), *reader.args[1:])
        rewriter.store_state(state.name, first, integers)
        rewriter.replace(reader, state.placeholder)

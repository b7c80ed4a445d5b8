"""Penalties that push whole channels towards zero while a program trains, so that pruning them afterwards loses little."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.torch_private import is_operator, named_arguments
from dsopt.ir.trainable import ProgramModule
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.rules.base import packet_name
from dsopt.passes.prune.sums import by_index, float_parameters

Kind = Literal["group", "scales"]


class ChannelSparsity:
    """A term for the loss of the user's own loop: `loss = task_loss + 1e-4 * penalty(module)`.

    kind "group": the group lasso (Yuan & Lin 2006; Wen et al. 2016), the length of all that goes with a channel, on both of its sides and
    in all coupled layers, times the root of how many numbers those are.  kind "scales": the sum of the magnitudes of the scales of batch
    normalisation (Liu et al. 2017), for `prune{score=bn}`.  Channels that cannot be pruned are not pushed.
    """

    def __init__(self, program: Program, kind: Kind = "group") -> None:
        """Find the channels of a program. Raises UsageError for an unknown kind, and where there is nothing to push."""
        if kind not in ("group", "scales"):
            raise UsageError("DS0374", f"kind is {kind!r}", fix="choose group or scales")
        self.kind = kind
        self._channels = channels = Channels(AxisInference(program))
        names = frozenset(float_parameters(program) if kind == "group" else _scales(program))
        self._uses = [use for use in channels.uses if use.weight in names]
        self._columns = [
            [torch.from_numpy(column).long() for column in channels.cells[channels.rows[use.row]].T]
            for use in self._uses
        ]
        self._sizes = self._sums({name: torch.ones_like(program.weights[name]) for name in names})
        if not bool((self._sizes > 0).any()):
            raise UsageError(
                "DS0374", f"the program has no channels that kind={kind!r} can push",
                fix="choose kind='group'" if kind == "scales" else "dsopt inspect MODEL --groups shows what keeps them",
            )  # fmt: skip

    def __call__(self, module: ProgramModule) -> Tensor:
        """Return the penalty of the weights that a module of the program has now, with its gradient."""
        weights = module.weights_by_name()
        if self.kind == "scales":
            return torch.stack([weights[name].abs().sum() for name in sorted({use.weight for use in self._uses})]).sum()
        squares = self._sums({use.weight: weights[use.weight].square() for use in self._uses})
        pushed = self._sizes > 0
        sizes = self._sizes.to(squares)
        return (sizes[pushed] * (squares[pushed] + torch.finfo(squares.dtype).tiny)).sqrt().sum()

    def _sums(self, values: dict[str, Tensor]) -> Tensor:
        """Return for each channel the sum of all values that go with it."""
        first = next(iter(values.values()), torch.zeros(1))
        result = first.new_zeros(self._channels.count + 1)
        for use, columns in zip(self._uses, self._columns, strict=True):
            along = by_index(values[use.weight], use).sum(1)
            for column in columns:
                result = result.index_add(0, column.to(along.device), along)
        return result[:-1]


def _scales(program: Program) -> list[str]:
    found = []
    for node in program.graph.nodes:
        if is_operator(node.target) and packet_name(node) == "batch_norm":
            name = program.weight_name(named_arguments(node)["weight"])
            found += [] if name is None else [name]
    return found

"""Several processes, one training: what `torchrun` starts finds its peers, its part of the data, and the common statistics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """rank: of this process, 0 to count - 1."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def join(device: torch.device) -> Processes:
        """Join the process group that the environment names, as torchrun sets it; one process where it names none."""
        if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return Processes()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Processes(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that writes and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average gradients over all processes."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=True)

    def share(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield this process's batches: every count-th, as many in each process; all of a loader that divides its samples itself."""
        sampler = getattr(loader, "sampler", None)
        if self.count == 1 or isinstance(sampler, torch.utils.data.distributed.DistributedSampler):
            yield from loader
            return
        group: list[Any] = []
        for batch in loader:
            group.append(batch)
            if len(group) == self.count:
                yield group[self.rank]
                group = []

    def lowest(self, values: Tensor) -> Tensor:
        """Return the least of each element over all processes."""
        if self.count > 1:
            dist.all_reduce(values, dist.ReduceOp.MIN)
        return values

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.count

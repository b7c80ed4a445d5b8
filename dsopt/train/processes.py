"""Several processes, one training: what `torchrun` starts finds its peers, its part of the data, and the common statistics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler


@dataclass(frozen=True)
class Processes:
    """rank: of this process, 0 to count - 1.  device: where the tensors are that processes exchange."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def join(device: torch.device) -> Processes:
        """Join the process group that the environment names, as torchrun sets it; one process where it names none."""
        if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return Processes()
        if device.type == "cuda" and device.index is None:  # one GPU a process
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Processes(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Tell whether this process is the one that writes and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average gradients over all processes; parameters and buffers become those of the first."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=True)  # a loss may leave out an output

    # ---- data ----

    def share(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield this process's batches: every count-th, as many in each process; all of a loader that divides its samples itself."""
        if self.count == 1 or _divider(loader) is not None:
            yield from loader
            return
        group: list[Any] = []
        for batch in loader:
            group.append(batch)
            if len(group) == self.count:
                yield group[self.rank]
                group = []

    def share_length(self, loader: Iterable[Any]) -> int:
        """Return the number of batches that `share` yields; counts those of a loader that does not know."""
        try:
            length = len(loader)  # type: ignore[arg-type]
        except TypeError:
            length = sum(1 for _ in loader)
        return length if _divider(loader) is not None else length // self.count

    def begin_epoch(self, loader: Iterable[Any], number: int) -> None:
        """Let a loader that divides its samples itself shuffle them anew."""
        divider = _divider(loader)
        if divider is not None:
            divider.set_epoch(number)

    # ---- what all have in common ----

    def lowest(self, values: Tensor) -> Tensor:
        """Return the least of each element over all processes."""
        if self.count > 1:
            dist.all_reduce(values, dist.ReduceOp.MIN)
        return values

    def gather(self, value: float) -> list[float]:
        """Return the number that each process has, by rank."""
        if self.count == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        found = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(found, own)
        return [float(each) for each in found]

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        return sum(self.gather(value)) / self.count

    def of_first(self, value: Any) -> Any:
        """Return the value that the first process has: plain numbers, and tensors on the CPU, nested."""
        if self.count == 1:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def align(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first: each has its own batch's statistics after a step."""
        if self.count == 1:
            return
        with torch.no_grad():
            for value in module.state_dict().values():
                dist.broadcast(value, src=0)


def _divider(loader: Iterable[Any]) -> DistributedSampler[Any] | None:
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    samplers = (getattr(loader, "sampler", None), inner)
    return next((each for each in samplers if isinstance(each, DistributedSampler)), None)

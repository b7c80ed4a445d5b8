"""What a loader gives, and the seeds that make it give the same again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def mixed_seed(*numbers: int) -> int:
    """Return one seed, 0 to 2^63 - 1, for a combination of whole numbers."""
    result = 0
    for number in numbers:
        result = (result * 1_000_003 + number + 1) % (1 << 63)
    return result


@contextmanager
def seeded(seed: int, loader: Iterable[Any] = ()) -> Iterator[None]:
    """Seed torch's generator and those that a loader has of its own, from which come order and noise; put them back afterwards."""
    generators = _generators(loader)
    states = [each.get_state() for each in generators]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for each in generators:
            each.manual_seed(seed)
        try:
            yield
        finally:
            for each, state in zip(generators, states, strict=True):
                each.set_state(state)


def _generators(loader: Iterable[Any]) -> list[torch.Generator]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(each, "generator", None) for each in holders]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch

"""What a loader gives, how modules are called with it, and the seeds that make it give the same again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.trainable import flatten_call


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


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the target of a batch. Raises UsageError for what is no pair."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise UsageError("DS0366", f"the loader gave a {type(batch).__name__}", fix="let it give (inputs, target)")
    return batch[0], batch[1]


def call(module: nn.Module, inputs: Any) -> Any:
    """Call a module with a tensor, a tuple of arguments, or {argument: tensor}."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def named_inputs(program: Program, inputs: Any) -> dict[str, Tensor]:
    """Return inputs as {flat name: tensor}. Raises UsageError where they do not fit the program."""
    args: Sequence[Any] = (
        () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    )
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    signature = program.signature
    try:
        return flatten_call(signature.input_tree, signature.argument_names, tuple(args), kwargs)
    except TypeError as problem:
        raise UsageError(
            "DS0366", "the loader's inputs do not fit the program", why=str(problem), fix="let it give (inputs, target)"
        ) from problem

"""How an operator is registered: by a reference that torch can differentiate, or by one that it cannot look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("dsopt", "DEF")  # type: ignore[no-untyped-call]
_ON_DEVICE: dict[tuple[str, str], Callable[..., Any]] = {}


def register_composite(schema: str, reference: Callable[..., Any]) -> None:
    """Register an operator made of differentiable torch calls: its shape rule and its gradient are those of the reference."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name(schema), reference, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def register_opaque(schema: str, reference: Callable[..., Any], shape_rule: Callable[..., Any]) -> None:
    """Register an operator whose reference torch cannot trace. shape_rule: the same on tensors without data."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name(schema), reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dsopt::{_name(schema)}", shape_rule, lib=_LIBRARY)


def register_gradient(name: str, gradient: Callable[..., Any], keep: Callable[..., None]) -> None:
    """Give an opaque operator a gradient. keep(ctx, inputs, output) stores what gradient(ctx, *grads) needs."""
    torch.library.register_autograd(f"dsopt::{name}", gradient, setup_context=keep, lib=_LIBRARY)


def register_recomputed(schema: str, reference: Callable[..., Any], shape_rule: Callable[..., Any]) -> None:
    """Register an operator made of differentiable torch calls whose types are known without running it.

    For references that loop over a size that may vary. The gradient runs the reference again (Chen et al. 2016, "Training deep
    nets with sublinear memory cost"), so that only the inputs are kept.
    """
    register_opaque(schema, reference, shape_rule)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(each for each in inputs if isinstance(each, Tensor)))
        ctx.arguments = [None if isinstance(each, Tensor) else each for each in inputs]
        ctx.is_tensor = [isinstance(each, Tensor) for each in inputs]

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        arguments = [
            next(saved).detach() if is_tensor else plain
            for plain, is_tensor in zip(ctx.arguments, ctx.is_tensor, strict=True)
        ]
        wanted = [
            number for number, each in enumerate(arguments) if isinstance(each, Tensor) and ctx.needs_input_grad[number]
        ]
        for number in wanted:
            arguments[number].requires_grad_()
        with torch.enable_grad():
            results = _ON_DEVICE.get((_name(schema), _device(arguments)), reference)(*arguments)
        outputs: Sequence[Tensor] = results if isinstance(results, tuple) else (results,)
        pairs = [
            (out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad
        ]
        found = torch.autograd.grad(
            [out for out, _ in pairs], [arguments[n] for n in wanted], [grad for _, grad in pairs], allow_unused=True
        )  # fmt: skip
        by_number = dict(zip(wanted, found, strict=True))
        return tuple(by_number.get(number) for number in range(len(arguments)))

    register_gradient(_name(schema), gradient, keep)


def register_on_device(name: str, device: str, function: Callable[..., Any]) -> None:
    """Use another implementation of a recomputed operator on one kind of device ("cuda"), for its results and its gradient.

    function: takes what the reference takes, is differentiable by torch, and gives the same up to rounding.
    """
    if (name, device) not in _ON_DEVICE:
        _LIBRARY.impl(name, function, device.upper())  # type: ignore[no-untyped-call]
    _ON_DEVICE[name, device] = function


def _device(arguments: Sequence[Any]) -> str:
    return next(each.device.type for each in arguments if isinstance(each, Tensor))


def _name(schema: str) -> str:
    return schema.partition("(")[0]

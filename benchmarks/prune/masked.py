"""The judge of pruned programs: the original, in float64, with all that was removed set to zero.

What was removed is read off the weights: all of them are random and different, so an index is kept if the pruned weight holds its values.
Nothing of the pass under test is asked. A norm or a mean over channels that are gone is taken over the ones that are left, in the masked
original too: it finds them by the zeros in its scale, or, without one, in its operand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from dsopt.ir.torch_private import is_operator, named_arguments

ATEN = torch.ops.aten


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module in float64 and inference mode whose weights are random and different, and keep signals alive.

    Constants keep their values but for a thousandth, so that no two are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            fan_in = max(1, value[0].numel()) if value.dim() > 1 else 1
            if not isinstance(value, nn.Parameter) and not name.endswith(("running_mean", "running_var")):
                value.add_(torch.where(value.isfinite(), (noise - 0.5) * 1e-3 * (value.abs() + 1e-3), 0.0))
            else:
                value.copy_(noise + 0.5 if value.dim() <= 1 else (noise - 0.5) * (6 / fan_in) ** 0.5)
    return model


def masked_difference(program: Program, result: Program, inputs: tuple[Tensor, ...]) -> float:
    """Return the largest difference of an output of `result` from the masked original, relative to the largest value of the output.

    Raises ValueError where outputs differ in shape, or are all zero and so judge nothing.
    """
    original = program.clone()
    bound = original.bind(inputs)
    for node, value in bound.items():
        name = original.weight_name(node)
        if name is not None:
            bound[node] = _masked(value, result.weights.get(name, value))
    with torch.no_grad():
        wanted = evaluate(original.graph, bound, substitutes=_statistics(original, result))
    got = result.run(*inputs)
    worst = 0.0
    for want, have in zip(wanted[len(program.signature.states) :], got, strict=True):
        if want.shape != have.shape:
            raise ValueError(f"an output is {tuple(have.shape)} and the original's {tuple(want.shape)}")
        if not want.is_floating_point():
            continue
        largest = want.abs().max()
        if not 0 < largest < float("inf"):
            raise ValueError("an output is zero everywhere, or not finite")
        worst = max(worst, float((want - have).abs().max() / largest))
    return worst


def kept_indices(before: Tensor, after: Tensor) -> list[Tensor]:
    """Return for each dim the indices of `before` that are left in `after`; their values must be the same, in the same order."""
    if before.shape == after.shape:
        return [torch.arange(size) for size in before.shape]
    values = torch.isin(before, after)
    found = []
    for dim, size in enumerate(after.shape):
        others = [other for other in range(before.dim()) if other != dim]
        counts = values.sum(others) if others else values.long()
        found.append(torch.topk(counts, size).indices.sort().values)
    if not torch.equal(before[torch.meshgrid(*found, indexing="ij")], after):
        raise ValueError("a pruned weight is no part of the original one")
    return found


def _masked(before: Tensor, after: Tensor) -> Tensor:
    if before.shape == after.shape:
        return before
    result = torch.zeros_like(before)
    index = torch.meshgrid(*kept_indices(before, after), indexing="ij")
    result[index] = before[index]
    return result


def _statistics(original: Program, result: Program) -> dict[Any, Callable[..., Any]]:
    """Return what to call in the place of norms and means whose channels are fewer in `result`.

    They are told the sizes of their operand there, None for those that are the same.
    """
    after = {node.name: node for node in result.graph.nodes}
    found: dict[Any, Callable[..., Any]] = {}
    for node in original.graph.nodes:
        judge = _JUDGES.get(node.target)
        if judge is None or not is_operator(node.target) or node.name not in after:
            continue
        x, pruned = (_operand(each) for each in (node, after[node.name]))
        if x.shape != pruned.shape:
            sizes = zip(x.shape, pruned.shape, strict=True)
            found[node] = partial(judge, tuple(None if str(a) == str(b) else int(b) for a, b in sizes))
    return found


def _operand(node: fx.Node) -> Tensor:
    named = named_arguments(node)
    value: Tensor = (named.get("input") or named.get("self") or named["v"]).meta["val"]
    return value


def _layer_norm(
    pruned: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *rest: Any
) -> Tensor:  # fmt: skip
    dims = tuple(range(-len(shape), 0))
    return _normalised(x, dims, _kept(x, weight, len(shape)), eps) * _or(weight, 1) + _or(bias, 0)


def _group_norm(
    pruned: Any, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *rest: Any
) -> Tensor:  # fmt: skip
    column = (-1, *[1] * (x.dim() - 2))
    scale, shift = (None if each is None else each.view(column) for each in (weight, bias))
    if groups > 1:
        return torch.group_norm(x, groups, weight, bias, eps)
    kept = torch.ones_like(x[0]) if scale is None else (scale != 0).double().expand(x.shape[1:])
    return _normalised(x, tuple(range(1, x.dim())), kept, eps) * _or(scale, 1) + _or(shift, 0)


def _batch_norm(
    pruned: Any, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Tensor:
    """Statistics of the operand, as weights have that are standardised by this operator."""
    if not training:
        return torch.batch_norm(x, weight, bias, mean, var, False, *rest)
    column = (-1, *[1] * (x.dim() - 2))
    scale, shift = (None if each is None else each.view(column) for each in (weight, bias))
    kept = (x != 0).any(dim=1, keepdim=True).double()
    return _normalised(x, (0, *range(2, x.dim())), kept, rest[1]) * _or(scale, 1) + _or(shift, 0)


def _weight_norm(pruned: Any, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A row that is gone has no length."""
    others = [index for index in range(v.dim()) if index != dim % v.dim()]
    lengths = v.square().sum(others, keepdim=True).sqrt()
    return torch.where(lengths > 0, v * g / lengths.clamp_min(torch.finfo(v.dtype).tiny), 0.0)


def _rms_norm(pruned: Any, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    kept = _kept(x, weight, len(shape))
    square = (x.square() * kept).sum(-1, keepdim=True) / kept.sum()
    return x / torch.sqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps)) * _or(weight, 1)


def _mean(pruned: Any, x: Tensor, dims: Any = None, keepdim: bool = False, **rest: Any) -> Tensor:
    """What is gone is zero, so only the count differs."""
    places = [dim % x.dim() for dim in (dims or range(x.dim()))]
    lost = 1.0
    for place in places:
        lost *= 1.0 if pruned[place] is None else x.shape[place] / pruned[place]
    return torch.mean(x, places, keepdim) * lost


def _kept(x: Tensor, weight: Tensor | None, dims: int) -> Tensor:
    return ((weight if weight is not None else x.abs().flatten(0, -dims - 1).sum(0)) != 0).double()


def _normalised(x: Tensor, dims: tuple[int, ...], kept: Tensor, eps: float) -> Tensor:
    mean = (x * kept).sum(dims, keepdim=True) / kept.sum()
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / kept.sum()
    return (x - mean) / torch.sqrt(variance + eps) * kept


def _or(value: Tensor | None, default: float) -> Any:
    return default if value is None else value


_JUDGES: dict[Any, Callable[..., Any]] = {
    ATEN.batch_norm.default: _batch_norm,
    ATEN._weight_norm.default: _weight_norm,
    ATEN.layer_norm.default: _layer_norm,
    ATEN.rms_norm.default: _rms_norm,
    ATEN.group_norm.default: _group_norm,
    ATEN.mean.dim: _mean,
    ATEN.mean.default: _mean,
}

"""The judge of pruned programs: the original, in float64, with all that was removed set to zero.

What was removed is read off the weights: all of them are random and different, so an index is kept if the pruned weight holds its values.
Nothing of the pass under test is asked. Where statistics are taken over channels, the original takes them over the kept ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program, example_inputs
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import PassManager, PassRecord, parse_pipeline

ATEN = torch.ops.aten


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module in float64 and inference mode whose weights are random and different, and keep signals alive."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or "mask" in name:
                continue
            fan_in = max(1, value[0].numel()) if value.dim() > 1 else 1
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise + 0.5 if value.dim() <= 1 else (noise - 0.5) * (6 / fan_in) ** 0.5)
    return model


def program_of(model: nn.Module, *args: Tensor, dynamic: Any = None, seed: int = 0) -> Program:
    """Capture a randomized module in float64."""
    doubles = tuple(arg.double() if arg.is_floating_point() else arg for arg in args)
    return export_module(randomized(model, seed), doubles, {}, dynamic)


def pruned(program: Program, pipeline: str) -> tuple[Program, PassRecord]:
    """Return the program after a pass, verified, and what the pass recorded."""
    result, records = PassManager(parse_pipeline(pipeline)).run(program)
    return result, records[0]


def masked_difference(program: Program, result: Program, inputs: tuple[Tensor, ...] | None = None) -> float:
    """Return the largest difference of an output of `result` from the masked original, relative to the largest output."""
    given = example_inputs(program, seed=1) if inputs is None else inputs
    original = program.clone()
    bound = original.bind(given)
    for node, value in bound.items():
        name = original.weight_name(node)
        if name is not None:
            bound[node] = _masked(value, result.weights.get(name, value))
    with torch.no_grad():
        wanted = evaluate(original.graph, bound, substitutes=STATISTICS)
    got = result.run(*given)
    worst = 0.0
    for want, have in zip(wanted[len(program.signature.states) :], got, strict=True):
        assert want.shape == have.shape
        assert want.abs().max() > 0
        worst = max(worst, float((want - have).abs().max() / want.abs().max()))
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
    assert torch.equal(before[torch.meshgrid(*found, indexing="ij")], after)
    return found


def _masked(before: Tensor, after: Tensor) -> Tensor:
    result = torch.zeros_like(before)
    index = torch.meshgrid(*kept_indices(before, after), indexing="ij")
    result[index] = before[index]
    return result


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *rest: Any
) -> Tensor:
    kept = (weight != 0).double()
    dims = tuple(range(-weight.dim(), 0))
    mean = (x * kept).sum(dims, keepdim=True) / kept.sum()
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / kept.sum()
    return (x - mean) / torch.sqrt(variance + eps) * weight + (0 if bias is None else bias)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    kept = (weight != 0).double()
    square = (x.square() * kept).sum(-1, keepdim=True) / kept.sum()
    return x / torch.sqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps)) * weight


STATISTICS: dict[Any, Any] = {ATEN.layer_norm.default: _layer_norm, ATEN.rms_norm.default: _rms_norm}

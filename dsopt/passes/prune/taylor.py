"""Taylor scores: how far the outputs move, to first order, when a channel is set to zero.

Molchanov et al. 2019, "Importance estimation for neural network pruning", take the square of
sum(w * dL/dw) over the weights w of a channel.
A pass knows no loss, so L is a random projection of the outputs, drawn anew for every calibration batch: its expected square is the
squared length of the movement (Hutchinson 1990). No labels are needed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import PassContext
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.sums import Sums, float_parameters, summed


def output_changes(channels: Channels, context: PassContext) -> Sums:
    """Return the mean squared movement of the outputs over the calibration batches. Raises UsageError where there are none."""
    program = channels.inference.program
    if not context.calibration:
        raise UsageError(
            "DS0373", "score=taylor needs data: it measures what each channel does to the outputs",
            fix="give inputs that are typical of use: --data samples.npz, or PassContext(calibration=...); score=l1 needs none",
        )  # fmt: skip
    names, result = float_parameters(program), np.zeros(channels.count)
    generator = torch.Generator().manual_seed(context.seed)
    for number, batch in enumerate(context.calibration):
        context.progress(number, len(context.calibration), "scoring channels")
        missing = [spec.name for spec in program.signature.inputs if spec.name not in batch]
        if missing:
            raise UsageError(
                "DS0373", f"the data lacks the input {missing[0]!r}", fix=f"it has {', '.join(sorted(batch))}"
            )
        inputs = tuple(batch[spec.name] for spec in program.signature.inputs)
        moved = _products(program, names, inputs, generator)
        result += summed(channels, names, lambda name, moved=moved: moved[name]) ** 2  # type: ignore[misc]
    return result / len(context.calibration)


def _products(
    program: Program, names: list[str], inputs: tuple[Tensor, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return w * dL/dw of each parameter for a random projection L of the outputs."""
    bound, watched = program.bind(inputs), dict[str, Tensor]()
    for node in bound:
        name = program.weight_name(node)
        if name in names:
            assert name is not None
            bound[node] = watched[name] = bound[node].detach().clone().requires_grad_()
    with torch.enable_grad():
        results = evaluate(program.graph, bound)[len(program.signature.states) :]
        projected = [
            (each * torch.randn(each.shape, generator=generator).to(each.dtype)).sum()
            for each in results
            if each.is_floating_point() and each.requires_grad
        ]
        gradients = torch.autograd.grad(sum(projected[1:], projected[0]), list(watched.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
        for (name, weight), gradient in zip(watched.items(), gradients, strict=True)
    }

"""The float program beside the rounded one: whatever was changed, it gives what the model gives, batch after batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dsopt import PassContext, PassManager, capture, parse_pipeline
from dsopt.passes.quantize.lockstep import Lockstep


class Sums(nn.Module):
    """Add up what a layer gives, from one batch to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.out = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
        self.register_buffer("sum", torch.zeros(4))

    def forward(self, input: Tensor) -> Tensor:
        self.sum.add_(self.line(input).mean(0))
        return self.out(self.sum)


def test_it_gives_what_the_model_gives_and_the_rounded_one_what_the_program_gives() -> None:
    torch.manual_seed(0)
    model, batches = Sums().eval(), torch.randn(5, 6, 4)
    program = capture(model, (batches[0],))
    context = PassContext(calibration=[{"input": batch} for batch in batches])
    passes = "canonicalize,quantize-prepare{weights=4},adaptive-rounding{iterations=20},bias-correction"
    corrected, _ = PassManager(parse_pipeline(passes)).run(program, context)
    lockstep, found = Lockstep(corrected, context), dict[str, tuple[list[Any], list[Any]]]()

    def see(node: fx.Node) -> None:
        found[node.name] = (lockstep.real(node), lockstep.rounded(node))

    lockstep.walk(see, "looking")
    last: Any = corrected.output_node.args[0]
    real, rounded = found[last[-1].name]
    states = None
    with torch.no_grad():
        for number, batch in enumerate(batches):
            torch.testing.assert_close(real[number], model(batch))
            (wanted,), states = corrected.run_stateful((batch,), states)
            assert torch.equal(rounded[number], wanted)
            assert not torch.equal(rounded[number], real[number])

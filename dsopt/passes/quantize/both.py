"""quantize: prepare and convert in one step, for quantisation without training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.convert import QuantizeConvert
from dsopt.passes.quantize.precision import Precision
from dsopt.passes.quantize.prepare import QuantizePrepare


@dataclass(frozen=True)
class Quantize(Precision, Pass):
    """relu(conv(x, w)) -> dequantize(quantize(relu(conv(dequantize(quantize(x)), dequantize_channel(int8 of w))))).

    The same as quantize-prepare and then quantize-convert, with the options of `Precision`. Run it after fold-batch-norm.
    """

    name: ClassVar[str] = "quantize"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Prepare, then convert."""
        options = {item.name: getattr(self, item.name) for item in fields(Precision)}
        QuantizePrepare(**options).run(program, rewriter, context)
        QuantizeConvert().run(program, rewriter, context)

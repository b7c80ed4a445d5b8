"""Quantisation: `quantize-prepare` inserts fake_quantize, `quantize-convert` writes integers in its place; `quantize` does both."""

from dsopt.passes.quantize.both import Quantize
from dsopt.passes.quantize.convert import QuantizeConvert
from dsopt.passes.quantize.prepare import QuantizePrepare

__all__ = ["Quantize", "QuantizeConvert", "QuantizePrepare"]

"""Quantisation.

quantize-prepare inserts fake_quantize, quantize-convert writes integers in its place, and quantize does both; lower-integer writes
operators on integers in the place of what stands between a dequantize and a quantize. quantize-dynamic needs no calibration.
"""

from dsopt.passes.quantize.both import Quantize
from dsopt.passes.quantize.convert import QuantizeConvert
from dsopt.passes.quantize.dynamic import QuantizeDynamic
from dsopt.passes.quantize.integer import LowerInteger
from dsopt.passes.quantize.prepare import QuantizePrepare

__all__ = ["LowerInteger", "Quantize", "QuantizeConvert", "QuantizeDynamic", "QuantizePrepare"]

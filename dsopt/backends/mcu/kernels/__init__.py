"""Fast int8 code for cores: better lowerings of the operators where the time goes, and the functions in C that they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dsopt.backends.mcu.kernels.channels_last import elementwise, joined, mean, reordered, sliced
from dsopt.backends.mcu.kernels.convolution import convolution, convolution_add
from dsopt.backends.mcu.kernels.copying import COPY_WORDS
from dsopt.backends.mcu.kernels.helium import convolution as helium
from dsopt.backends.mcu.kernels.helium.copy import COPY
from dsopt.backends.mcu.kernels.linear import linear
from dsopt.backends.mcu.kernels.matmul import matmul
from dsopt.backends.mcu.kernels.pooling import average_pool, max_pool
from dsopt.backends.mcu.kernels.style import styles_for
from dsopt.backends.mcu.kernels.ways import Ways
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import LOWERINGS, Context, Lowering, UnsuitedError
from dsopt.target import CORES, McuTarget

_ELEMENTWISE = {"q_add": 2, "q_mul": 2, "q_rescale": 1, "q_lookup": 1, "quantize": 1, "dequantize": 1}
"""Operators over each element, and how many images they take."""

_PERMUTATIONS = (
    "permute.default",
    "transpose.int",
    "movedim.int",
    "movedim.intlist",
    "swapaxes.default",
    "swapdims.default",
)
_OF_IMAGES = ("q_conv", "q_conv_add", "q_max_pool", "q_avg_pool")
"""Operators that read an image with channels last as it is."""

_ALWAYS: Mapping[str, Lowering] = {
    **{f"aten.{name}": reordered([f"dsopt.{each}.default" for each in _OF_IMAGES]) for name in _PERMUTATIONS},
    "dsopt.q_mean.default": mean,
    "dsopt.q_max_pool.default": max_pool,
    "dsopt.q_avg_pool.default": average_pool,
    **{f"dsopt.{name}.default": elementwise(f"dsopt.{name}.default", count) for name, count in _ELEMENTWISE.items()},
}
"""Lowerings of images with channels last in TIR."""

_Styled = Callable[..., Buffer]
_PAIRS: Mapping[str, _Styled] = {
    "dsopt.q_conv.default": convolution,
    "dsopt.q_conv_add.default": convolution_add,
    "dsopt.q_linear.default": linear,
    "dsopt.q_matmul.default": matmul,
}
"""Lowerings over pairs of int16, for cores with the DSP extension; their portable bodies run anywhere."""
_VECTORS: Mapping[str, _Styled] = {
    "dsopt.q_conv.default": helium.convolution,
    "dsopt.q_conv_add.default": helium.convolution_add,
    "dsopt.q_linear.default": helium.linear,
}
"""Lowerings over vectors of 16 bytes, for cores with MVE."""


def special_lowerings(
    target: McuTarget, optimize: str = "balanced", ways: Ways | None = None
) -> Mapping[str, Lowering]:
    """Return the lowerings that are tried before the generic ones for a core.

    optimize: the name of a style.  ways: which of the ways of a layer are taken; without, the first of each, that of the style.
    """
    ways = ways or Ways({})
    copy = COPY if CORES[target.core].has_mve else COPY_WORDS
    moves: dict[str, Lowering] = {"aten.cat.default": partial(joined, copy), "aten.slice.Tensor": partial(sliced, copy)}
    return {**_ALWAYS, **moves, **{name: ways.lowering(each) for name, each in _ways_of(target, optimize).items()}}


def _ways_of(target: McuTarget, optimize: str) -> dict[str, list[Lowering]]:
    """Return, by operator, how a core may run it, in the usual way of a style first."""
    core = CORES[target.core]
    styles = styles_for(optimize, core.has_dsp)
    found: dict[str, list[Lowering]] = {name: [partial(way, s) for s in styles] for name, way in _PAIRS.items()}
    if not core.has_dsp:
        return {name: [*each, _generic(name)] for name, each in found.items()}
    if core.has_mve:
        for name, way in _VECTORS.items():
            vectors: list[Lowering] = [partial(way, style) for style in styles]
            found[name] = [_first(vectors[0], found[name][0]), *vectors[1:], found[name][0]]
    return found


def _first(better: Lowering, other: Lowering) -> Lowering:
    """Return a lowering that takes the other where the better is not suited."""

    def lower(context: Context, *arguments: Any) -> Any:
        try:
            return better(context, *arguments)
        except UnsuitedError:
            return other(context, *arguments)

    return lower


def _generic(operator: str) -> Lowering:
    """Return the loops that any core runs, for operands in the order of their shape."""

    def lower(context: Context, *arguments: Any) -> Any:
        if any(isinstance(each, Buffer) and each.channels_last for each in arguments):
            raise UnsuitedError("its operand is an image")
        return LOWERINGS[operator](context, *arguments)

    return lower

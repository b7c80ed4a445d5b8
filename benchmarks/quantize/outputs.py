"""The outputs of one quantised program wherever it runs: simulated in float, with exact sums too, as generated C, by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dsopt
import dsopt.runtime
from benchmarks.quantize.layers import LayerDifferences, compare_layers
from dsopt import Program
from dsopt.accuracy.judge import run_code, run_program
from dsopt.backends.base import load_backend
from dsopt.feeds import Feed
from dsopt.ir.interpret import evaluate
from dsopt.passes.quantize.semantics import kind_of

CHIP = "mcu:cortex-m4"
AT_ONCE = 100

SUMMING = ("convolution", "linear", "matmul")
"""Kinds of operators whose results are sums of products."""


@dataclass(frozen=True)
class Built:
    """A quantised program that was compiled for the CPU and for a chip. layers: their differences; mismatches: samples in which the
    generated C and the oracle do not give the same bits."""

    rounded: Program
    cpu: dsopt.Artifact
    chip: dsopt.Artifact
    layers: LayerDifferences
    mismatches: int


def build(rounded: Program, x: Tensor) -> Built:
    """Compile a quantised program, and compare its layers on the samples `x`."""
    one = rounded.specialize({"batch": 1}) if rounded.dims else rounded
    cpu, chip = dsopt.compile(rounded, "cpu", passes=()), dsopt.compile(one, CHIP, passes=())
    target = dsopt.parse_target(CHIP)
    # fused into a sum, a convolution has the same integers, but nobody sees them
    lowering = [each for each in load_backend(target).lowering(target) if each.name != "fuse-residual"]
    layers = compare_layers(rounded, lowering, cpu, (x,))
    same = code_outputs(rounded, chip, x) == layers.oracle_output
    return Built(rounded, cpu, chip, layers, int(np.sum(~same.reshape(len(x), -1).all(1))))


def program_outputs(program: Program, x: Tensor) -> np.ndarray:
    """Run a program in torch, float or simulated."""
    return run_program(program, _feeds(program, x, AT_ONCE))


def exact_outputs(program: Program, x: Tensor) -> np.ndarray:
    """Run a simulated program with sums of products in float64, where those of integers times scales are as good as exact.

    All else is as in `program_outputs`: recurrent layers, whose sums are within one operator, too.
    """
    substitutes = {node: _in_float64(node.target) for node in program.graph.nodes if kind_of(node) in SUMMING}
    first = len(program.signature.states)
    outputs = []
    with torch.no_grad():
        for part in x.split(AT_ONCE):
            outputs.append(evaluate(program.graph, program.bind((part,)), None, substitutes)[first].numpy())
    return np.concatenate(outputs)


def _in_float64(operator: Any) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        wide = [each.double() if isinstance(each, Tensor) else each for each in args]
        result: Tensor = operator(*wide)
        return result.float()

    return run


def code_outputs(program: Program, chip: dsopt.Artifact, x: Tensor) -> np.ndarray:
    """Run the generated C, built for this computer."""
    executor, where = load_backend(dsopt.parse_target(CHIP)).judge_executor(chip)
    assert executor is not None, where
    try:
        return run_code(executor, program, _feeds(program, x, 1))
    finally:
        executor.close()


def onnx_outputs(artifact: dsopt.Artifact, x: Tensor) -> np.ndarray:
    """Run ONNX Runtime on the artifact for the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(Path(folder) / "cpu")
        with dsopt.runtime.load(Path(folder) / "cpu", threads=1) as session:
            return np.concatenate([np.asarray(session.run(part.numpy())) for part in x.split(AT_ONCE)])


def _feeds(program: Program, x: Tensor, at_once: int) -> Sequence[Feed]:
    (spec,) = program.signature.inputs
    return [{spec.name: part.numpy()} for part in x.split(at_once)]


def disagreements(left: np.ndarray, right: np.ndarray, step: float) -> int:
    """Count the samples whose largest output is another; of a single output, those more than a step apart."""
    if left.shape[-1] > 1:
        return int(np.sum(left.argmax(-1) != right.argmax(-1)))
    return int(np.sum(np.abs(left - right) > 1.001 * step))


def output_step(rounded: Program) -> float:
    """Return the step of the grid that the first output is on."""
    node = rounded.outputs[0]
    while node.target is not torch.ops.dsopt.dequantize.default:
        node = node.args[0]  # type: ignore[assignment]
    return float(node.args[1])  # type: ignore[arg-type]

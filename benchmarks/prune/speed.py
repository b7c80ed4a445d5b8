"""How much faster the cpu artifact of a pruned ResNet-50 is than that of the whole one: one thread, interleaved."""

from __future__ import annotations

import numpy as np

import dsopt
from benchmarks.harness import Ratio, Row, interleave, paired_ratio, progress
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.runtime import Session
from models.resnet import resnet50

PASSES = "prune{ratio=0.6,scope=local,align=16}"
OPENINGS = 3


def speed(seconds: float = 20.0) -> Row:
    """Return the ratio of the two times, whole over pruned, its lower 95 % bound, and what was removed.

    seconds: of timing in each of three openings of both artifacts.
    """
    progress("resnet50, cpu artifacts")
    program = dsopt.capture(resnet50())
    pruned, _ = PassManager(parse_pipeline(PASSES)).run(program)
    artifacts = {"pruned": dsopt.compile(pruned, "cpu"), "whole": dsopt.compile(program, "cpu")}
    spec = program.signature.inputs[0].name
    image = np.random.default_rng(0).standard_normal((1, *program.inputs[0].meta["val"].shape[1:]), dtype=np.float32)
    rounds: dict[str, list[list[float]]] = {"pruned": [], "whole": []}
    for _ in range(OPENINGS):
        sessions = {name: Session(artifact, threads=1) for name, artifact in artifacts.items()}
        calls = {name: (lambda session=session: session.run_flat({spec: image})) for name, session in sessions.items()}
        for name, taken in interleave(calls, budget_seconds=seconds).items():
            rounds[name].append(taken)
        for session in sessions.values():
            session.close()
    ratio: Ratio = paired_ratio(rounds["pruned"], rounds["whole"])
    products = [sum(multiply_adds(node) for node in each.graph.nodes) for each in (program, pruned)]
    sizes = [sum(value.numel() for value in each.weights.values()) for each in (program, pruned)]
    return {
        "network": "resnet50", "passes": PASSES, "weights_removed": 1 - sizes[1] / sizes[0],
        "multiply_adds_removed": 1 - products[1] / products[0], "pruned_seconds": float(np.median(np.concatenate(rounds["pruned"]))),
        "speedup": 1 / ratio.median, "speedup_lower95": 1 / ratio.upper95,
    }  # fmt: skip

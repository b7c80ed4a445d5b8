"""What passes are told a program takes on a core, against the artifact that is made of it; and pruning by it."""

from __future__ import annotations

import numpy as np
import pytest

import dsopt
from dsopt import api
from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.backend import McuBackend
from dsopt.measure.verify import verify
from dsopt.target import parse_target

pytestmark = pytest.mark.mcu

CORE = "mcu:cortex-m4"


def digits() -> dsopt.Program:
    return dsopt.load_model("models.digits:digits").specialize({"batch": 1})


def samples() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((12, 1, 8, 8), dtype=np.float32)}


def test_the_cost_of_a_program_is_that_of_its_artifact() -> None:
    build = api.build(digits(), CORE, "...,quantize", samples())
    cost = McuBackend().cost(build.program, parse_target(CORE), EmitOptions())
    manifest = build.artifact.manifest
    assert cost["ram_bytes"] == manifest["memory"]["arena_bytes"]
    assert cost["seconds"] == pytest.approx(sum(row["estimated_cycles"] for row in manifest["layers"]) / 100e6)
    assert api.cost_model(CORE, "...,quantize", samples())(digits()) == dict(cost)
    assert (
        McuBackend().cost(build.program, parse_target("mcu:nucleo-l4r5zi"), EmitOptions())["seconds"] < cost["seconds"]
    )


@pytest.mark.parametrize(("of", "key"), [("ram", "arena_bytes"), ("latency", "cycles")])
def test_pruning_cuts_what_the_integer_code_takes(of: str, key: str) -> None:
    def taken(artifact: Artifact) -> int:
        cycles = sum(row["estimated_cycles"] for row in artifact.manifest["layers"])
        return int({"cycles": cycles, **artifact.manifest["memory"]}[key])

    whole = dsopt.compile(digits(), CORE, "...,quantize", samples())
    pruned = dsopt.compile(digits(), CORE, f"prune{{ratio=0.25,of={of},align=4}},...,quantize", samples())
    assert 1 - taken(pruned) / taken(whole) == pytest.approx(0.25, abs=0.06)
    found = verify(pruned, digits(), data=samples())  # makes the pruned program again
    assert all(each.agrees(0) for each in found.outputs)

"""ONNX Runtime's own times are given under the names of the model's layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import dsopt
from dsopt.ir import Program
from dsopt.runtime import load
from dsopt.runtime.onnx_profile import read_profile

LAYERS = [
    {"name": "features.0/conv2d", "node": "conv2d", "layer": "features.0"},
    {"name": "flatten", "node": "flatten", "layer": ""},
    {"name": "flatten", "node": "dropout", "layer": "dropout"},
    {"name": "a/linear", "node": "linear", "layer": "a"},
]


def _event(name: str, microseconds: int, op: str = "Conv") -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": op}}


def test_nodes_are_summed_by_layer_over_the_runs_that_count(tmp_path: Path) -> None:
    runs = [
        [_event("features.0/conv2d_nchwc", first), _event("ReorderOutput_token_3", 5, "ReorderOutput"), _event("flatten", 1),
         _event("a/linear/MatMul", 10), _event("fused a/linear", 4)]
        for first in (1000, 20, 30, 90)
    ]  # fmt: skip
    path = tmp_path / "profile.json"
    path.write_text(
        json.dumps([{"cat": "Session", "name": "session", "dur": 1}, *(event for run in runs for event in run)])
    )
    costs = read_profile(path, LAYERS, skipped_runs=1)
    assert [(cost.node, cost.layer, round((cost.seconds or 0) * 1e6)) for cost in costs] == [
        ("conv2d", "features.0", 30), ("ReorderOutput_token_3", "ReorderOutput", 5), ("flatten", "flatten", 1), ("linear", "a", 14),
    ]  # fmt: skip


def test_a_real_model_says_what_its_layers_take(conv_program: Program) -> None:
    with load(dsopt.compile(conv_program, "cpu"), threads=1) as session:
        profile = session.profile({"x": np.ones((1, 3, 8, 8), np.float32)})
    assert profile.instructions is None
    assert {"head"} <= {cost.layer for cost in profile.layers}
    assert all((cost.seconds or 0) > 0 for cost in profile.layers)

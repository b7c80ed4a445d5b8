"""bench times an artifact and its peers on the same inputs, and counts the instructions of an emulated core."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import dsopt
from dsopt.artifact import Artifact
from dsopt.errors import UsageError
from dsopt.ir import Program, example_inputs
from dsopt.measure.bench import bench
from dsopt.measure.peers import GraphModule, open_peer
from dsopt.runtime.session import EXECUTORS
from tests.artifact.samples import manifest

ONE = {"batch": 1}


def test_peers_give_what_the_program_gives(conv_program: Program) -> None:
    program = conv_program.specialize(ONE)
    inputs = example_inputs(program)
    want = program.run(*inputs)[0].numpy()
    for peer in ("torch", "onnxruntime"):
        got = np.asarray(open_peer(peer, program, inputs, 1)()[0])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_gives_what_the_program_gives(capture_function: Callable[..., Program]) -> None:
    program = capture_function(lambda x, y: torch.relu(x) * y, torch.ones(8), torch.ones(8))
    inputs = (torch.linspace(-1, 1, 8), torch.full((8,), 3.0))
    got = open_peer("inductor", program, inputs, 1)()[0]
    np.testing.assert_allclose(got.numpy(), np.maximum(np.linspace(-1, 1, 8), 0) * 3, rtol=1e-6)


def test_the_graph_module_starts_from_the_first_state_every_time(counter_program: Program) -> None:
    module = GraphModule(counter_program)
    x = torch.ones(2, 3)
    with torch.inference_mode():
        assert module(x)[0].tolist() == module(x)[0].tolist() == [4, 4, 4]


def test_times_ratios_and_layers_come_from_one_bench(conv_program: Program) -> None:
    found = bench(
        dsopt.compile(conv_program, "cpu"), conv_program, ["torch"], sizes={"batch": 2}, layers=True, threads=1, seconds=0
    )  # fmt: skip
    assert found.shapes == {"x": (2, 3, 8, 8)}
    assert [each.name for each in found.timings] == ["dsopt", "torch"]
    assert [each.peer for each in found.ratios] == ["torch"]
    assert found.layers
    assert torch.get_num_threads() >= 1


def test_a_chip_is_measured_in_instructions(monkeypatch: pytest.MonkeyPatch, conv_program: Program) -> None:
    monkeypatch.setitem(EXECUTORS, "mcu", "tests.runtime.doubling")
    artifact = Artifact(manifest(target="mcu:cortex-m4"), {})
    found = bench(artifact, layers=True)
    assert found.instructions == 8
    assert [each.instructions for each in found.layers] == [3]
    assert found.timings == ()
    assert bench(artifact).layers == ()
    with pytest.raises(UsageError, match="measured in instructions"):
        bench(artifact, conv_program, ["torch"])


def test_peers_without_a_model_are_refused(conv_program: Program) -> None:
    with pytest.raises(UsageError, match="DS0455"):
        bench(dsopt.compile(conv_program, "cpu"), None, ["torch"])

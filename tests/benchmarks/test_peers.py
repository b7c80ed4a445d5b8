"""The peers compute what the module computes: ONNX Runtime on the exported model, with its state fed back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from benchmarks.harness import relative_error
from benchmarks.peers import STATES, at_batch_one, eager, export_onnx, flat, onnx_runtime


def test_the_first_row_of_an_example_keeps_the_other_sizes() -> None:
    one = at_batch_one(models.build("bert"))
    assert one.args[0].shape == (1, 32)
    assert one.kwargs["mask"].shape == (1, 32)
    assert at_batch_one(models.build("gpt_decode")).args[0].shape == (1,)


@pytest.mark.parametrize("name", ["kws", "bert", "gpt_decode"])
def test_onnx_runtime_agrees_with_eager_call_after_call(name: str, tmp_path: Path) -> None:
    spec = models.build(name)
    names = [key for key, _ in spec.model.named_buffers() if name in STATES and STATES[name](key)]
    export_onnx(spec, tmp_path / "peer.onnx", names)
    one = at_batch_one(spec)
    ours, reference = onnx_runtime(tmp_path / "peer.onnx", one, threads=1), eager(one)
    for _ in range(3):
        assert relative_error(ours(), reference()) < 1e-5


def test_eager_keeps_its_state_from_the_module_it_was_given() -> None:
    spec = models.build("gpt_decode")
    eager(spec)()
    assert all(not buffer.any() for buffer in spec.model.buffers())


def test_nested_results_become_arrays_in_order() -> None:
    result = flat({"a": torch.ones(1), "b": (torch.zeros(2), torch.ones(3))})
    assert [array.shape for array in result] == [(1,), (2,), (3,)]

"""dsopt export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.cli.conftest import Run
from tests.cli.models import Tiny


def test_a_model_becomes_an_onnx_file_that_other_runtimes_open(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("export", "tests.cli.models:tiny", "--format", "onnx", "-o", "tiny.onnx")
    assert list(found["files"]) == ["tiny.onnx"]
    session = ort.InferenceSession("tiny.onnx", providers=["CPUExecutionProvider"])
    x = np.ones((3, 4), np.float32)
    with torch.no_grad():
        want = Tiny(0)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5)
    assert "tiny.onnx" in run("export", "tests.cli.models:tiny", "-o", "tiny.onnx").stdout


def test_an_unwritable_place_is_a_sentence(run: Run) -> None:
    Path("file").write_text("")
    assert "DS0807" in run("export", "tests.cli.models:tiny", "-o", "file/tiny.onnx", code=2).stderr
    assert Path("file").read_text() == ""


def test_what_passes_quantise_is_written_as_integers(run: Run) -> None:
    x = np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)
    np.savez("d.npz", x=x)
    run("export", "tests.cli.models:tiny", "--passes", "quantize", "--data", "d.npz", "-o", "q.onnx")
    model = onnx.load("q.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    found = []
    for node in model.graph.node:
        integers = stored.get(node.input[0])
        if node.op_type == "DequantizeLinear" and integers is not None and integers.dtype == np.int8:
            steps = stored[node.input[1]]
            real = next(
                each.detach().numpy()
                for each in Tiny(0).parameters()
                if each.shape in {integers.shape, integers.T.shape}
            )
            real, steps = (real, steps[:, None]) if real.shape == integers.shape else (real.T, steps[None])
            # without a search for the least error the steps hold the largest weight, so none is off by more than half a step
            assert np.all(np.abs(integers * steps - real) <= steps * (0.5 + 1e-5))
            found.append(integers.shape)
    assert len(found) == 2
    assert "--data" in run("export", "tests.cli.models:tiny", "--passes", "quantize", "-o", "q.onnx", code=2).stderr


@pytest.mark.mcu
def test_an_artifact_becomes_a_project(run: Run, run_json: Callable[..., Any]) -> None:
    run("compile", "tests.cli.models:tiny", "--dim", "batch=1", "-t", "mcu:cortex-m4", "--name", "net", "-o", "net")
    found = run_json("export", "net", "--project", "make", "-o", "firmware")
    assert found["project"] == "make"
    assert found["files"]["src/net.h"] == Path("firmware/src/net.h").stat().st_size
    assert "DS0808" in run("export", "net", "--project", "make", "-o", "firmware", code=2).stderr
    text = run("export", "net", "--project", "zephyr", "-o", "z").stdout
    assert "zephyr/module.yml" in text
    text = run("export", "net", "--project", "make", "--passes", "quantize", "-o", "other", code=2).stderr
    assert "DS0909: --passes is about a model, and --project takes an artifact as it is" in text
    assert "DS0801" in run("export", "nowhere", "--project", "make", "-o", "other", code=2).stderr
    assert not Path("other").exists()


def test_every_kind_of_project_can_be_named() -> None:
    from dsopt.cli import export
    from dsopt.projects import PROJECTS

    assert tuple(PROJECTS) == export._KINDS

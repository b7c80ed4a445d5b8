"""dsopt export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
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

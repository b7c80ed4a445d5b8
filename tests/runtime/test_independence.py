"""What runs artifacts loads nothing of the compiler: neither torch nor tvm nor onnx, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsopt
from dsopt.ir import Program

CODE = """
import json, sys
import numpy as np
import dsopt.runtime
from dsopt.runtime.examples import example_feeds
with dsopt.runtime.load(sys.argv[1]) as session:
    feeds = {name: np.load(sys.argv[2])[name] for name in ("x",)}
    result = session.run_flat(feeds)["output"]
heavy = ["torch", "tvm", "tvm_ffi", "onnx", "dsopt.ir", "dsopt.api", "dsopt.passes", "dsopt.backends", "dsopt.frontend"]
print(json.dumps({"loaded": [name for name in heavy if name in sys.modules], "result": result.tolist()}))
"""


@pytest.mark.parametrize("target", ["cpu", pytest.param("mcu:cortex-m4", marks=pytest.mark.mcu)])
def test_running_an_artifact_loads_nothing_of_the_compiler(target: str, conv_program: Program, tmp_path: Path) -> None:
    program = conv_program.specialize({"batch": 1})
    dsopt.compile(program, target).save(tmp_path / "a.dsopt")
    x = np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    np.savez(tmp_path / "x.npz", x=x)
    done = _run("-c", CODE, str(tmp_path / "a.dsopt"), str(tmp_path / "x.npz"))
    assert done["loaded"] == []
    import torch

    want = program.run(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(np.array(done["result"], np.float32), want, rtol=1e-4, atol=1e-5)


def test_importing_dsopt_loads_neither_torch_nor_numpy() -> None:
    code = "import json, sys, dsopt; print(json.dumps([n for n in ('torch', 'numpy', 'click', 'onnx') if n in sys.modules]))"
    assert _run("-c", code) == []


def _run(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)

"""A microcontroller artifact runs through the session as any other: by name, with state, traced and counted."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, CheckError, ReadError
from dsopt.runtime import Session
from dsopt.runtime.simulated import SimulatedExecutor, open_executor
from tests.simulate.images import image, needs_qemu

pytestmark = pytest.mark.mcu

F32, U8 = np.float32, np.uint8

# y = 2 x + total, and total += sum(x): a layer each; "count" counts the runs since init in one byte.
MODEL = """
#include <stdint.h>
extern float x[6], y[6], total[1];
extern uint8_t count[1];
float x[6], y[6], total[1];
uint8_t count[1];
void layer_scale(void);
void layer_sum(void);
__attribute__((noinline)) void layer_scale(void) { for (int i = 0; i < 6; ++i) y[i] = 2.0f * x[i]; }
__attribute__((noinline)) void layer_sum(void) {
  for (int i = 0; i < 6; ++i) y[i] += total[0];
  for (int i = 0; i < 6; ++i) total[0] += x[i];
}
"""
TABLES = """
extern float x[6], y[6], total[1];
extern uint8_t count[1];
void layer_scale(void);
void layer_sum(void);
const harness_span harness_inputs[] = {{x, sizeof x}, {total, sizeof total}};
const uint32_t harness_input_count = 2;
const harness_span harness_outputs[] = {{y, sizeof y}, {count, 1}, {total, sizeof total}};
const uint32_t harness_output_count = 3;
void harness_init(void) { count[0] = 0; }
int harness_run(void) { layer_scale(); layer_sum(); ++count[0]; return CODE; }
"""


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def artifact(core: str = "cortex-m4", code: int = 0, **changes: Any) -> Artifact:
    manifest = {
        "schema": 1,
        "kind": "dsopt artifact",
        "target": f"mcu:{core}",
        "inputs": [{"name": "x", "shape": [2, 3], "dtype": "float32"}],
        "outputs": [
            {"name": "y", "shape": [2, 3], "dtype": "float32"},
            {"name": "count", "shape": [], "dtype": "uint8"},
        ],
        "states": [
            {"name": "total", "shape": [1], "dtype": "float32", "input": "state.total", "output": "next.total", "file": "states/0.npy"}
        ],
        "dims": {},
        "input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": []}]},
        "output_tree": {"dict": [["y", "y"], ["count", "count"]]},
        "argument_names": ["x"],
        "layers": [
            {"node": "scale", "layer": "body.0", "function": "layer_scale",
             "trace": {"symbol": "y", "offset": 0, "shape": [2, 3], "dtype": "float32"}},
            {"node": "sum", "layer": "body.1", "function": "layer_sum"},
        ],
        **changes,
    }  # fmt: skip
    elf = image(MODEL, TABLES.replace("CODE", str(code)), core)
    return Artifact(manifest, {"image.elf": elf, "states/0.npy": npy(np.array([10], F32))})


X = np.arange(6, dtype=F32).reshape(2, 3)


def test_a_session_runs_an_image_and_keeps_its_state() -> None:
    with Session(artifact()) as session:
        assert np.array_equal(session.run(X)["y"], 2 * X + 10)
        assert np.array_equal(session.run(X)["y"], 2 * X + 10 + X.sum())
        session.reset()
        result = session.run(x=X)
    assert np.array_equal(result["y"], 2 * X + 10)
    assert (result["count"].shape, result["count"].dtype, int(result["count"])) == ((), U8, 1)


def test_many_runs_start_the_emulator_once(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = open_executor(artifact())
    feeds = [{"x": X * i, "state.total": np.array([i], F32)} for i in range(50)]
    results = executor.run_many(feeds)
    for i, result in enumerate(results):
        assert np.array_equal(result["y"], 2 * X * i + i)
        assert result["next.total"] == X.sum() * i + i
        assert int(result["count"]) == i + 1  # one image, started once
    assert executor.last_simulation is not None
    assert len(executor.last_simulation.run_instructions) == 50
    assert executor.run_many([]) == []
    executor.close()


def test_results_are_arrays_of_their_own() -> None:
    executor = open_executor(artifact())
    first = executor.run({"x": X, "state.total": np.zeros(1, F32)})
    first["y"][:] = 0
    assert first["y"].flags.writeable
    assert np.array_equal(executor.run({"x": X, "state.total": np.zeros(1, F32)})["y"], 2 * X)


def test_a_trace_gives_what_layers_leave() -> None:
    with Session(artifact()) as session:
        traced = session.trace({"x": X})
        assert list(traced) == ["scale"]
        assert np.array_equal(traced["scale"], 2 * X)


def test_a_profile_names_layers_as_the_user_does() -> None:
    with Session(artifact()) as session:
        profile = session.profile({"x": X})
    assert [(cost.node, cost.layer) for cost in profile.layers] == [("scale", "body.0"), ("sum", "body.1")]
    counts = [cost.instructions for cost in profile.layers]
    assert profile.instructions is not None
    assert 0 < sum(count or 0 for count in counts) < profile.instructions < sum(count or 0 for count in counts) + 40


@needs_qemu
def test_a_cortex_m55_artifact_runs_in_qemu_with_the_same_numbers() -> None:
    executor = SimulatedExecutor(artifact("cortex-m55"))
    result = executor.run({"x": X, "state.total": np.array([10], F32)})
    assert np.array_equal(result["y"], 2 * X + 10)
    profile = executor.profile({"x": X, "state.total": np.array([10], F32)})
    counts = [layer.instructions for layer in profile.layers]
    assert (profile.layers[0].node, profile.layers[0].layer) == ("scale", "body.0")
    assert 0 < sum(count or 0 for count in counts) < profile.instructions


def test_a_model_that_returns_a_code_is_an_error() -> None:
    with pytest.raises(CheckError, match=r"DS1007: the model returned the code 3"):
        open_executor(artifact(code=3)).run({"x": X, "state.total": np.zeros(1, F32)})


def test_an_artifact_without_an_image_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"DS0861"):
        open_executor(replace(artifact(), files={}))
    with pytest.raises(ReadError, match=r"DS1003"):
        open_executor(replace(artifact(), files={"image.elf": b"\x7fELF"}))


def test_a_manifest_that_differs_from_the_image_is_refused() -> None:
    wider = artifact(inputs=[{"name": "x", "shape": [2, 4], "dtype": "float32"}])
    with pytest.raises(ArtifactError, match=r"the inputs have \[32, 4\] bytes, and the image says \[24, 4\]"):
        open_executor(wider)
    varying = artifact(inputs=[{"name": "x", "shape": ["batch", 3], "dtype": "float32"}])
    with pytest.raises(ArtifactError, match=r"'x' has the shape \['batch', 3\], and a chip needs numbers"):
        open_executor(varying)


@pytest.mark.parametrize(
    "trace",
    [
        {"symbol": "y"},
        {"symbol": "y", "offset": "no", "shape": [1], "dtype": "float32"},
        {"symbol": "y", "offset": 0, "shape": [1], "dtype": "float33"},
        {"symbol": "nothing", "offset": 0, "shape": [1], "dtype": "float32"},
        {"symbol": "y", "offset": 1 << 40, "shape": [1], "dtype": "float32"},
    ],
)
def test_a_damaged_trace_is_refused(trace: dict[str, Any]) -> None:
    executor = open_executor(artifact(layers=[{"node": "scale", "function": "layer_scale", "trace": trace}]))
    with pytest.raises(ReadError, match=r"DS0862|DS1003"):
        executor.trace({"x": X, "state.total": np.zeros(1, F32)})


def test_a_layer_that_the_image_has_not_is_refused() -> None:
    executor = open_executor(artifact(layers=[{"node": "a", "layer": "a", "function": "layer_gone"}]))
    with pytest.raises(ReadError, match=r"no function 'layer_gone'"):
        executor.profile({"x": X, "state.total": np.zeros(1, F32)})


def test_running_an_artifact_loads_neither_torch_nor_tvm_nor_unicorn() -> None:
    code = (
        "import sys, dsopt.runtime.simulated; "
        "print([name for name in ('torch', 'tvm', 'onnx', 'unicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

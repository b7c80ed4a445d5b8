"""The executor of cuda artifacts against a stand-in for the NVIDIA driver that runs the kernels on the host."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, BudgetError, InputError, ToolchainError, UsageError
from dsopt.runtime.cuda import open_executor
from dsopt.runtime.cuda_driver import Image, choose_image
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan
from tests.runtime.stub_driver import build_driver

SOURCE = """
extern "C" __global__ void __launch_bounds__(32) scale(float* x, float* w, float* y) {
  if (blockIdx.x * 32 + threadIdx.x < 40) y[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x] * w[0];
}
extern "C" __global__ void __launch_bounds__(32) add(float* y, float* w, float* total) {
  if (blockIdx.x * 32 + threadIdx.x < 40) total[blockIdx.x * 32 + threadIdx.x] += y[blockIdx.x * 32 + threadIdx.x] + w[1];
}
"""
WEIGHTS = np.array([3.0, 0.5], np.float32)
X = np.arange(40, dtype=np.float32).reshape(4, 10)


def _manifest() -> dict[str, Any]:
    vector = {"shape": [4, 10], "dtype": "float32"}
    buffers = {
        "x": {"space": "workspace", "offset": 0, "bytes": 160},
        "y": {"space": "workspace", "offset": 256, "bytes": 160},
        "total": {"space": "workspace", "offset": 512, "bytes": 160},
        "w": {"space": "weights", "offset": 0, "bytes": 8},
    }
    return {
        "target": "cuda:sm_90",
        "inputs": [{"name": "x", **vector}],
        "outputs": [{"name": "output", **vector}],
        "states": [{"name": "total", **vector, "input": "state.total", "output": "next.total", "file": "states/0.npy"}],
        "input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": []}]},
        "output_tree": "output",
        "argument_names": ["x"],
        "layers": [{"name": "y", "node": "mul", "layer": "a", **vector}, {"name": "total", "node": "add", "layer": "b", **vector}],
        "memory": {"weights_bytes": 8, "workspace_bytes": 672, "buffers": buffers},
        "launches": [
            {"kernel": "scale", "node": "mul", "grid": [2, 1, 1], "block": [32, 1, 1], "args": ["x", "w", "y"], "reads": 2},
            {"kernel": "add", "node": "add", "grid": [2, 1, 1], "block": [32, 1, 1], "args": ["y", "w", "total"], "reads": 2},
        ],
        "cuda": {
            "images": [{"arch": "sm_90", "file": "k.sm_90.cubin"}, {"arch": "compute_90", "file": "k.ptx"}],
            "ports": {"inputs": {"x": "x", "state.total": "total"}, "outputs": {"output": "y", "next.total": "total"}},
        },
    }  # fmt: skip


def _artifact(manifest: dict[str, Any] | None = None) -> Artifact:
    files = {"k.sm_90.cubin": b"sm90", "k.ptx": b"ptx", "weights.bin": WEIGHTS.tobytes()}
    return Artifact(manifest or _manifest(), files)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_driver(tmp_path_factory.mktemp("driver"), SOURCE, ("scale", "add"))


@pytest.fixture
def live(driver: str) -> Iterator[Callable[[], int]]:
    """Count what the driver has given out, and fail if a test leaves any of it."""
    count: Callable[[], int] = ctypes.CDLL(driver).stub_live
    yield count
    assert count() == 0


def _image_loaded(driver: str) -> bytes:
    library = ctypes.CDLL(driver)
    library.stub_image.restype = ctypes.c_char_p
    loaded: bytes = library.stub_image()
    return loaded


def test_a_run_launches_the_plan_and_returns_outputs_and_states(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    got = executor.run({"x": X, "state.total": np.full((4, 10), 100, np.float32)})
    executor.close()
    np.testing.assert_array_equal(got["output"], X * 3)
    np.testing.assert_array_equal(got["next.total"], X * 3 + 100.5)
    got["output"][0] = 0  # the caller may write into it
    assert _image_loaded(driver) == b"sm90"


def test_it_runs_from_any_thread(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    results: list[Any] = []
    feeds = {"x": X, "state.total": np.zeros((4, 10), np.float32)}
    thread = threading.Thread(target=lambda: results.append(executor.run(feeds)["output"]))
    thread.start()
    thread.join()
    executor.close()
    np.testing.assert_array_equal(results[0], X * 3)


def test_a_trace_gives_the_result_of_each_node(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    values = executor.trace({"x": X, "state.total": np.zeros((4, 10), np.float32)})
    executor.close()
    np.testing.assert_array_equal(values["mul"], X * 3)
    np.testing.assert_array_equal(values["add"], X * 3 + 0.5)


def test_a_profile_has_the_seconds_of_each_layer(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    profile = executor.profile({"x": X, "state.total": np.zeros((4, 10), np.float32)})
    executor.close()
    assert [(cost.node, cost.layer) for cost in profile.layers] == [("mul", "a"), ("add", "b")]
    assert all(cost.seconds is not None and cost.seconds >= 0 for cost in profile.layers)


def test_an_input_of_any_layout_is_read_as_it_is_meant(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    got = executor.run({"x": np.asfortranarray(X), "state.total": np.zeros((4, 10), np.float32)})
    executor.close()
    np.testing.assert_array_equal(got["output"], X * 3)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input x is missing"),
        ({"x": X}, "input state.total is missing"),
        ({"x": X.astype(np.float64)}, "float64[4, 10]"),
        ({"x": X[:3]}, "float32[3, 10]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    driver: str, live: Callable[[], int], feeds: dict[str, Any], message: str
) -> None:
    executor = open_executor(_artifact(), driver)
    with pytest.raises(InputError, match="DS0711") as caught:
        executor.run(feeds)
    executor.close()
    assert message in str(caught.value)


def test_closing_twice_is_the_same_as_once_and_a_closed_executor_says_so(driver: str, live: Callable[[], int]) -> None:
    executor = open_executor(_artifact(), driver)
    executor.close()
    executor.close()
    with pytest.raises(UsageError, match="DS0710"):
        executor.run({"x": X})


def test_without_a_driver_the_error_says_that_there_is_no_gpu() -> None:
    with pytest.raises(ToolchainError, match="DS0705: there is no GPU here") as caught:
        open_executor(_artifact(), "libno_such_driver.so.1")
    assert "libno_such_driver.so.1 cannot be loaded" in caught.value.why
    assert caught.value.exit_code == 4


def test_without_a_gpu_the_error_says_so(driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_GPUS", "0")
    with pytest.raises(ToolchainError, match="DS0705") as caught:
        open_executor(_artifact(), driver)
    assert "finds no GPU" in caught.value.why


def test_a_gpu_that_the_artifact_has_no_code_for_is_named(
    driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CAPABILITY", "75")
    with pytest.raises(ToolchainError, match="DS0706") as caught:
        open_executor(_artifact(), driver)
    assert caught.value.what == "this artifact has no code for Stub (sm_75)"
    assert caught.value.why == "it holds sm_90, compute_90"
    assert caught.value.fix == "compile with --target cuda:sm_75"


def test_a_later_gpu_gets_the_ptx(driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_CAPABILITY", "120")
    open_executor(_artifact(), driver).close()
    assert _image_loaded(driver) == b"ptx"


def test_too_little_memory_is_refused_with_both_figures_and_leaves_the_gpu_usable(
    driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_BYTES", "600")
    with pytest.raises(BudgetError, match="DS0707") as caught:
        open_executor(_artifact(), driver)
    assert caught.value.where == "8 bytes of weights and 672 of workspace are needed"
    assert caught.value.why == "672 bytes were asked for, 592 of 600 are free"
    assert live() == 0
    monkeypatch.setenv("STUB_BYTES", "680")
    executor = open_executor(_artifact(), driver)
    got = executor.run({"x": X, "state.total": np.zeros((4, 10), np.float32)})
    executor.close()
    np.testing.assert_array_equal(got["output"], X * 3)


@pytest.mark.parametrize("status", [200, 209, 218, 222])
def test_a_driver_that_refuses_the_code_is_named_with_its_version(
    driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("STUB_IMAGE_STATUS", str(status))
    with pytest.raises(ToolchainError, match="refuses the code for sm_90") as caught:
        open_executor(_artifact(), driver)
    assert caught.value.why == "CUDA_ERROR_OF_THE_STUB: as the test asked; the driver speaks CUDA 12.4"


def test_a_launch_that_fails_names_the_kernel(
    driver: str, live: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = open_executor(_artifact(), driver)
    monkeypatch.setenv("STUB_LAUNCH_STATUS", "700")
    with pytest.raises(ToolchainError, match="DS0708: cuLaunchKernel of scale failed"):
        executor.run({"x": X, "state.total": np.zeros((4, 10), np.float32)})
    executor.close()


@pytest.mark.parametrize(
    ("archs", "capability", "chosen"),
    [
        (["sm_80", "sm_90", "sm_100", "compute_100"], 90, "sm_90"),
        (["sm_80", "sm_90", "compute_90"], 86, "sm_80"),
        (["sm_80", "sm_86", "compute_90"], 89, "sm_86"),
        (["sm_80", "sm_90", "compute_90"], 100, "compute_90"),
        (["sm_90", "compute_90"], 80, None),
        (["sm_86", "compute_90"], 80, None),  # code of a later minor version does not run
        (["sm_90a", "compute_90"], 90, "sm_90a"),
        (["sm_100a", "compute_90"], 103, "compute_90"),  # "a" code runs on its very version only
        (["sm_100", "compute_100"], 103, "sm_100"),
        (["sm_100", "compute_100"], 120, "compute_100"),
    ],
)
def test_the_image_is_the_machine_code_nearest_below_the_gpu(
    archs: list[str], capability: int, chosen: str | None
) -> None:
    image = choose_image([Image(arch, b"") for arch in archs], capability)
    assert (image.arch if image else None) == chosen


# ---- plans from strangers ----


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*prefix, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _paths(item, (*prefix, number))
    yield prefix


PATHS = sorted((path for path in _paths(_manifest()) if path), key=str)
JUNK = st.one_of(
    st.none(), st.integers(-(2**70), 2**70), st.text(max_size=8), st.floats(), st.booleans(),
    st.lists(st.integers(-3, 10**9), max_size=5), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(st.sampled_from(PATHS), JUNK)
def test_an_altered_plan_is_refused_or_stays_inside_its_allocations(path: tuple[Any, ...], junk: Any) -> None:
    manifest = deepcopy(_manifest())
    inner: Any = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    try:
        plan = LaunchPlan.read(manifest)
    except ArtifactError as error:
        assert error.code == "DS0709"
        return
    sizes = {"weights": plan.weights_bytes, "workspace": plan.workspace_bytes}
    for launch in plan.launches:
        for name in launch.arguments:
            place = plan.places[name]
            assert 0 <= place.offset <= place.offset + place.size_bytes <= sizes[place.space]


def test_a_launch_with_too_few_arguments_is_refused_by_the_driver(driver: str, live: Callable[[], int]) -> None:
    manifest = _manifest()
    manifest["launches"][0]["args"] = ["x", "y"]
    executor = open_executor(_artifact(manifest), driver)
    with pytest.raises(ToolchainError, match="cuLaunchKernel of scale failed"):
        executor.run({"x": X, "state.total": np.zeros((4, 10), np.float32)})
    executor.close()


def test_a_dtype_of_python_objects_is_refused() -> None:
    manifest = _manifest()
    manifest["layers"][0] |= {"dtype": "object", "shape": [20]}
    with pytest.raises(ArtifactError, match="DS0709"):
        LaunchPlan.read(manifest)


def test_weights_of_another_length_are_refused(driver: str, live: Callable[[], int]) -> None:
    artifact = _artifact()
    short = Artifact(artifact.manifest, {**artifact.files, "weights.bin": b"1234"})
    with pytest.raises(ArtifactError, match="DS0709"):
        open_executor(short, driver)


def test_an_artifact_without_images_is_refused() -> None:
    manifest = _manifest()
    del manifest["cuda"]["images"]
    with pytest.raises(ArtifactError, match="DS0709"):
        open_executor(_artifact(manifest), "libno_such_driver.so.1")


def test_the_executor_is_what_a_session_expects() -> None:
    from dsopt.runtime.executor import ProfilingExecutor, TracingExecutor

    assert issubclass(PlanExecutor, TracingExecutor)
    assert issubclass(PlanExecutor, ProfilingExecutor)

"""The host device: it runs CUDA C++ with CUDA's meaning, and stops at whatever a GPU would silently get wrong."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dsopt.errors import CheckError, ToolchainError
from dsopt.simulate import cuda_host
from dsopt.simulate.cuda_host import HostDevice, host_compiler

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")

KERNELS = """
extern "C" __global__ void __launch_bounds__(32) copy(float* x, float* y) {
  y[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
}
extern "C" __global__ void write_input(float* x, float* y) { x[1] = y[0]; }
extern "C" __global__ void read_beyond(float* x, float* y) { y[0] = x[64]; }
extern "C" __global__ void write_before(float* x, float* y) { y[-1024] = x[0]; }
extern "C" __global__ void follow_null(float* x, float* y) { y[0] = *(float*)(x[0] == x[0] ? 0 : (void*)y); }
extern "C" __global__ void previous(float* x, float* y) {
  y[threadIdx.x] = threadIdx.x == 0 ? x[0] : y[threadIdx.x - 1];
}
extern "C" __global__ void corners(float* x, float* y) {
  y[0] = rsqrtf(4.0f);
  y[1] = __int_as_float(0x7f800000);
  y[2] = gridDim.x * 1000 + blockDim.x;
}
"""
NAMES = ("copy", "write_input", "read_beyond", "write_before", "follow_null", "previous", "corners")
BYTES = 64 * 4


@pytest.fixture(scope="module")
def shared_device() -> Iterator[HostDevice]:
    device = HostDevice(KERNELS, NAMES)
    yield device
    device.close()


@pytest.fixture
def arrays(shared_device: HostDevice) -> Callable[[np.ndarray], tuple[HostDevice, int, int]]:
    """Put an array into fresh memory beside room for 64 results."""

    def put(x: np.ndarray) -> tuple[HostDevice, int, int]:
        source, target = shared_device.allocate(BYTES), shared_device.allocate(BYTES)
        shared_device.write(source, np.resize(x.astype(np.float32), 64).view(np.uint8))
        return shared_device, source, target

    return put


def test_every_thread_of_every_block_runs(arrays: Callable[[np.ndarray], tuple[HostDevice, int, int]]) -> None:
    x = np.arange(64)
    device, source, target = arrays(x)
    device.launch("copy", 2, 32, [(source, BYTES), (target, BYTES)], 1)
    np.testing.assert_array_equal(device.read(target, BYTES).view(np.float32), x)


def test_fresh_memory_is_full_of_nan(shared_device: HostDevice) -> None:
    pointer = shared_device.allocate(BYTES)
    assert np.isnan(shared_device.read(pointer, BYTES).view(np.float32)).all()


def test_numbers_mean_what_cuda_says(arrays: Callable[[np.ndarray], tuple[HostDevice, int, int]]) -> None:
    device, source, target = arrays(np.zeros(1))
    device.launch("corners", 3, 64, [(source, BYTES), (target, BYTES)], 1)
    assert device.read(target, 12).view(np.float32).tolist() == [0.5, np.inf, 3064.0]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("read_beyond", "kernel read_beyond touches byte 256 of argument 0, which has 256 bytes"),
        ("write_before", "kernel write_before touches byte -4096 of argument 1, which has 256 bytes"),
        ("write_input", "kernel write_input writes byte 4 of argument 0, which has 256 bytes and is only read"),
        ("follow_null", "kernel follow_null died of SIGSEGV outside all of its arguments"),
    ],
)
def test_a_kernel_that_leaves_its_buffers_is_stopped_and_the_device_lives_on(
    arrays: Callable[[np.ndarray], tuple[HostDevice, int, int]], kernel: str, message: str
) -> None:
    device, source, target = arrays(np.zeros(64))
    with pytest.raises(CheckError, match="DS1072") as caught:
        device.launch(kernel, 1, 1, [(source, BYTES), (target, BYTES)], 1)
    assert caught.value.what == message
    device.launch("copy", 2, 32, [(source, BYTES), (target, BYTES)], 1)


def test_launches_that_contradict_the_memory_are_refused(
    arrays: Callable[[np.ndarray], tuple[HostDevice, int, int]],
) -> None:
    device, source, target = arrays(np.zeros(64))
    good = [(source, BYTES), (target, BYTES)]
    wrong: list[tuple[str, tuple[int, int, list[tuple[int, int]], int]]] = [
        ("which no single allocation holds", (1, 32, [(source, BYTES + 1), (target, BYTES)], 1)),
        ("which no single allocation holds", (1, 32, [(0, BYTES), (target, BYTES)], 1)),
        ("starts 4 bytes into its allocation", (1, 32, [(source + 4, BYTES - 4), (target, BYTES)], 1)),
        ("shares bytes with argument 0", (1, 32, [(source, BYTES), (source, BYTES)], 1)),
        ("does not take 3 arguments", (1, 32, [*good[:1], *good], 2)),
        ("launched with 1 blocks of 1025 threads", (1, 1025, good, 1)),
        ("launched with 0 blocks of 32 threads", (0, 32, good, 1)),
    ]
    for message, (blocks, threads, arguments, read_only) in wrong:
        with pytest.raises(CheckError, match=message):
            device.launch("copy", blocks, threads, arguments, read_only)


def test_copies_outside_of_allocations_are_refused(shared_device: HostDevice) -> None:
    pointer = shared_device.allocate(16)
    with pytest.raises(CheckError, match="a copy from the device is 17 bytes"):
        shared_device.read(pointer, 17)
    with pytest.raises(CheckError, match="a copy to the device is 17 bytes"):
        shared_device.write(pointer, np.zeros(17, np.uint8))


def test_the_reverse_order_shows_threads_that_depend_on_each_other() -> None:
    results = []
    for reverse in (False, True):
        device = HostDevice(KERNELS, NAMES, reverse=reverse)
        source, target = device.allocate(BYTES), device.allocate(BYTES)
        device.write(source, np.ones(64, np.float32).view(np.uint8))
        device.launch("previous", 1, 64, [(source, BYTES), (target, BYTES)], 1)
        results.append(device.read(target, BYTES).view(np.float32))
        device.close()
    assert np.all(results[0] == 1)
    assert np.isnan(results[1]).sum() == 63


def test_source_that_does_not_compile_is_refused_with_the_log() -> None:
    with pytest.raises(ToolchainError, match="DS1071") as caught:
        HostDevice("this is no C++", ("copy",))
    assert "kernels.cu:1" in caught.value.why


def test_without_a_host_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cuda_host.shutil, "which", lambda name: None)
    monkeypatch.setattr(cuda_host.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="DS1070"):
        HostDevice(KERNELS, NAMES)


def test_a_wrong_cxx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler -m64")
    assert host_compiler() == ("/no/such/compiler", "-m64")
    with pytest.raises(ToolchainError, match="/no/such/compiler cannot be started"):
        HostDevice(KERNELS, NAMES)


def test_a_device_that_was_killed_says_so_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    device = HostDevice(KERNELS, NAMES)
    device._process.kill()
    with pytest.raises(ToolchainError, match="DS1073"):
        device.allocate(16)
    device.close()
    device.close()


def test_more_memory_than_there_is_raises_memory_error() -> None:
    device = HostDevice(KERNELS, NAMES)
    with pytest.raises(MemoryError):
        device.allocate(1 << 60)
    device.close()


@pytest.mark.slow  # the first use of zig compiles its own C library
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_zig_serves_where_no_other_compiler_is() -> None:
    device = HostDevice(KERNELS, NAMES, compiler=(sys.executable, "-m", "ziglang", "cc"))
    source, target = device.allocate(BYTES), device.allocate(BYTES)
    device.write(source, np.arange(64, dtype=np.float32).view(np.uint8))
    device.launch("copy", 2, 32, [(source, BYTES), (target, BYTES)], 1)
    np.testing.assert_array_equal(device.read(target, BYTES).view(np.float32), np.arange(64))
    device.close()

"""Grids become launches that cover them, once and wholly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.backends.cuda.kernels import write_kernels
from dsopt.backends.cuda.launch import THREADS_PER_BLOCK, launch_shape
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.cuda_source import bind_grid, grid_steps
from dsopt.backends.tir.program import Buffer, Kernel
from dsopt.simulate.cuda_host import HostDevice, host_compiler


@given(st.integers(1, 2**31 - 1))
def test_a_launch_covers_its_grid_in_whole_warps_with_less_than_a_block_to_spare(steps: int) -> None:
    launch = launch_shape(steps)
    assert launch.threads % 32 == 0
    assert 32 <= launch.threads <= THREADS_PER_BLOCK
    assert 0 <= launch.blocks * launch.threads - steps < launch.threads


def test_small_grids_spread_over_many_multiprocessors_and_large_ones_fill_them() -> None:
    assert launch_shape(1).threads == 32
    assert launch_shape(132 * 32).threads == 32
    assert launch_shape(10**6).threads == THREADS_PER_BLOCK


def _counting_kernel(name: str, shape: tuple[int, ...]) -> Kernel:
    """y[index] += 1 + the flat index, over a grid of `shape`."""
    target = Buffer("y", shape, "float32", "output")
    k = KernelBuilder(name)
    y = k.write("y", target)
    with k.grid(**{f"i{axis}": size for axis, size in enumerate(shape)}) as index:
        flat = 0
        for position, size in zip(index, shape, strict=True):
            flat = flat * size + position
        k.store(y, y[index] + 1.0 + flat, *index)
    return Kernel(name, k.build(), (), ("y",), (), "", "", "n")


@pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")
def test_every_step_of_a_grid_runs_exactly_once() -> None:
    shapes = [(1,), (31,), (32,), (33,), (128,), (5, 7), (1, 1, 1), (4, 8, 16), (3, 1, 129), (2, 3, 5, 7, 2), (16897,)]
    kernels = [_counting_kernel(f"count{number}", shape) for number, shape in enumerate(shapes)]
    written = write_kernels(kernels, lambda *_: None)
    device = HostDevice(written.source, sorted(set(written.symbols.values())))
    try:
        for kernel, shape in zip(kernels, shapes, strict=True):
            count = int(np.prod(shape))
            pointer = device.allocate(4 * count)
            device.write(pointer, np.zeros(count, np.float32).view(np.uint8))
            launch = written.launches[kernel.name]
            device.launch(written.symbols[kernel.name], launch.blocks, launch.threads, [(pointer, 4 * count)], 0)
            got = device.read(pointer, 4 * count).view(np.float32)
            np.testing.assert_array_equal(got, 1.0 + np.arange(count))
    finally:
        device.close()


def test_a_scheduled_kernel_has_no_loop_over_its_grid() -> None:
    function = _counting_kernel("count", (40, 50)).func
    assert grid_steps(function) == 2000
    text = bind_grid(function, 64).script()
    assert 'thread="blockIdx.x"' in text
    assert 'thread="threadIdx.x"' in text
    assert "T.serial" not in text
    assert "range(" not in text


def test_loop_nests_that_are_equal_but_for_names_become_one_kernel() -> None:
    kernels = [_counting_kernel(name, shape) for name, shape in (("a", (3, 4)), ("b", (3, 4)), ("c", (5, 3)))]
    written = write_kernels(kernels, lambda *_: None)
    assert written.symbols == {"a": "k0_a", "b": "k0_a", "c": "k1_c"}
    assert written.source.count("__global__") == 2

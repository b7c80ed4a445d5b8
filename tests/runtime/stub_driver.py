"""Builds the stand-in for the NVIDIA driver with the kernels of one artifact inside."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import dsopt.simulate
from dsopt.simulate.cuda_host import host_compiler


def build_driver(folder: Path, source: str, kernels: Sequence[str]) -> str:
    """Compile stub_driver.cu with `source`, which defines `kernels`, and return the library's path; skip without a compiler."""
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no host C++ compiler to build the stand-in driver with")
    (folder / "kernels.cu").write_text(source)
    (folder / "kernels.inc").write_text("".join(f"KERNEL({kernel})\n" for kernel in kernels))
    library = folder / "libstub.so"
    header = Path(str(dsopt.simulate.__file__)).parent
    flags = ["-x", "c++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{folder}", f"-I{header}"]
    stub = Path(__file__).with_name("stub_driver.cu")
    subprocess.run([*compiler, *flags, "-o", str(library), str(stub), "-lm"], check=True)
    return str(library)

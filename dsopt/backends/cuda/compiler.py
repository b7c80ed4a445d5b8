"""CUDA C++ source -> machine code of one architecture, on a machine that needs no GPU: NVRTC of the PyPI wheel, or nvcc.

Both are told the same: IEEE division and square root, denormals kept, fused multiply-add allowed, no fast math.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dsopt.errors import ToolchainError

FLAGS = ("--std=c++17", "--fmad=true", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
"""What both compilers are told about numbers."""

_FILE = "kernels.cu"
_NVRTC_PROCESS = Path(__file__).with_name("nvrtc_process.py")
_NVRTC_SUCCESS, _NVRTC_COMPILATION = 0, 6


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor, as the assembler reports it. Spills are bytes of instructions a thread."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


@dataclass(frozen=True)
class Image:
    """The code of all kernels for one architecture.

    arch: "sm_90" for machine code (an ELF file called cubin), "compute_90" for PTX text.  resources: of each kernel by name;
    empty for PTX, whose registers are given out by the driver.
    """

    arch: str
    code: bytes
    resources: Mapping[str, Resources]

    @property
    def file(self) -> str:
        """Return the name of the file inside an artifact."""
        return f"kernels.{self.arch}." + ("ptx" if self.arch.startswith("compute_") else "cubin")


class CudaCompiler(ABC):
    """A compiler of CUDA C++."""

    name: ClassVar[str]
    version: str

    @abstractmethod
    def archs(self) -> tuple[str, ...]:
        """Return the architectures it knows, oldest first, as "sm_80"."""

    @abstractmethod
    def build(self, source: str, arch: str) -> tuple[bytes, str]:
        """Return the code for `arch` and the compiler's log. Raises ToolchainError where the source does not compile."""

    def compile(self, source: str, arch: str) -> Image:
        """Compile for "sm_90" (a cubin) or "compute_90" (PTX). Raises ToolchainError for an architecture it does not know."""
        known = self.archs()
        if arch.replace("compute_", "sm_").rstrip("af") not in known:
            raise ToolchainError(
                "DS0702", f"{self.name} {self.version} cannot compile for {arch}",
                why="it knows " + ", ".join(known), fix="name one of these in --target cuda:ARCH, or install another CUDA",
            )  # fmt: skip
        code, log = self.build(source, arch)
        return Image(arch, code, {} if arch.startswith("compute_") else read_resources(log))


def find_compiler() -> CudaCompiler:
    """Return NVRTC where its wheel is installed, else nvcc where it is on the path. Raises ToolchainError if there is neither."""
    library = nvrtc_library()
    if library is not None:
        return Nvrtc(library)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        return Nvcc(nvcc)
    raise ToolchainError(
        "DS0701", "there is no CUDA compiler here", why="neither the package nvidia-cuda-nvrtc nor nvcc was found",
        fix='pip install "dsopt[cuda]"',
    )  # fmt: skip


def nvrtc_library() -> Path | None:
    """Return the newest libnvrtc of the installed NVIDIA wheels, None if there is none."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*") if path.suffix[1:].isdigit()]
    return max(found, key=lambda path: (int(path.suffix[1:]), str(path)), default=None)


class Nvrtc(CudaCompiler):
    """NVIDIA's compiler as a library: no headers, no host compiler, no files. Each build has a process of its own."""

    name = "NVRTC"

    def __init__(self, library: Path) -> None:
        self._path = library
        try:
            self._lib = ctypes.CDLL(str(library))
        except OSError as error:
            raise ToolchainError(
                "DS0701", f"{library.name} cannot be loaded", why=str(error), fix="reinstall nvidia-cuda-nvrtc"
            ) from error
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def archs(self) -> tuple[str, ...]:
        """Return the architectures it knows, oldest first, as "sm_80"."""
        count = ctypes.c_int()
        self._check(self._lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._lib.nvrtcGetSupportedArchs(numbers))
        return tuple(f"sm_{number}" for number in sorted(numbers))

    def build(self, source: str, arch: str) -> tuple[bytes, str]:
        """Return the code for `arch` and the compiler's log. Raises ToolchainError where the source does not compile."""
        options = [f"--gpu-architecture={arch}", *FLAGS]
        options += [] if arch.startswith("compute_") else ["--ptxas-options=-v"]
        command = [sys.executable, "-I", str(_NVRTC_PROCESS), str(self._path), arch, *options]
        # An empty environment: what NVRTC makes of arrays on the stack was seen to change with the size of the environment.
        run = subprocess.run(command, input=source.encode(), capture_output=True, check=False, env={})
        head, _, code = run.stdout.partition(b"\n")
        if run.returncode != 0:
            raise self._failed("\n".join(run.stderr.decode(errors="replace").splitlines()[-5:]))
        header = json.loads(head)
        if header["status"] == _NVRTC_COMPILATION:
            raise rejected(self, arch, header["log"])
        if header["status"] != _NVRTC_SUCCESS:
            raise self._failed(header["reason"])
        return code, header["log"]

    def _check(self, status: int) -> None:
        if status != _NVRTC_SUCCESS:
            raise self._failed(self._lib.nvrtcGetErrorString(status).decode())

    def _failed(self, why: str) -> ToolchainError:
        return ToolchainError("DS0703", f"NVRTC {self.version} failed", why=why, fix="reinstall nvidia-cuda-nvrtc")


class Nvcc(CudaCompiler):
    """The compiler driver of an installed CUDA toolkit; needs a host compiler too."""

    name = "nvcc"

    def __init__(self, path: str) -> None:
        self._path = path
        said = self._run(["--version"], Path.cwd()).stdout
        release = re.search(r"release (\d+\.\d+)", said)
        self.version = release.group(1) if release else "of unknown version"

    def archs(self) -> tuple[str, ...]:
        """Return the architectures it knows, oldest first, as "sm_80"."""
        listed = re.findall(r"sm_(\d+)\b", self._run(["--list-gpu-code"], Path.cwd()).stdout)
        return tuple(f"sm_{number}" for number in sorted({int(number) for number in listed}))

    def build(self, source: str, arch: str) -> tuple[bytes, str]:
        """Return the code for `arch` and the compiler's log. Raises ToolchainError where the source does not compile."""
        kind = ["--ptx"] if arch.startswith("compute_") else ["--cubin", "--ptxas-options=-v"]
        with tempfile.TemporaryDirectory(prefix="dsopt-nvcc-") as name:
            folder = Path(name)
            (folder / _FILE).write_text(source)
            run = self._run([*kind, f"-arch={arch}", *FLAGS, "-o", "code", _FILE], folder)
            if run.returncode != 0:
                raise rejected(self, arch, run.stdout + run.stderr)
            return (folder / "code").read_bytes(), run.stdout + run.stderr

    def _run(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run([self._path, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ToolchainError(
                "DS0701", f"{self._path} cannot be started", why=str(error), fix="pip install nvidia-cuda-nvrtc"
            ) from error


def rejected(compiler: CudaCompiler, arch: str, log: str) -> ToolchainError:
    """Return the error for source that does not compile: dsopt wrote it, so the first lines of the log go along."""
    return ToolchainError(
        "DS0704", f"{compiler.name} {compiler.version} rejects the kernels that dsopt wrote for {arch}",
        why="\n".join(log.strip().splitlines()[:12]), fix="this is a fault of dsopt: please report it with the model",
    )  # fmt: skip


def read_resources(log: str) -> dict[str, Resources]:
    """Read registers, stack and spills of each kernel from the assembler's log (`ptxas -v`)."""
    found: dict[str, Resources] = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        if memory and used:
            stack, stores, loads = (int(number) for number in memory.groups())
            found[name] = Resources(int(used.group(1)), stack, stores, loads)
    return found

"""The packages and programs that parts of dsopt need, and how to get them."""

from __future__ import annotations

from dataclasses import dataclass

EXTRAS: dict[str, str] = {
    "": "what runs artifacts",
    "compile": "the compiler",
    "mcu": "the toolchain and the emulator for microcontrollers",
    "cuda": "the CUDA compiler",
    "dev": "the tests and benchmarks",
}
"""Extra of the package -> what it is for; "" is what every installation has."""


@dataclass(frozen=True)
class Package:
    """A Python package: the name it is imported by, the name it is installed by, and the extra that brings it."""

    module: str
    distribution: str
    extra: str


PACKAGES = (
    Package("numpy", "numpy", ""),
    Package("onnxruntime", "onnxruntime", ""),
    Package("click", "click", ""),
    Package("rich", "rich", ""),
    Package("torch", "torch", "compile"),
    Package("onnx", "onnx", "compile"),
    Package("tvm", "apache-tvm", "compile"),
    Package("ziglang", "ziglang", "mcu"),
    Package("unicorn", "unicorn", "mcu"),
    Package("elftools", "pyelftools", "mcu"),
    Package("nvidia.cu13", "nvidia-cuda-nvrtc", "cuda"),
    Package("triton", "triton", "cuda"),
    Package("onnxscript", "onnxscript", "dev"),
)


@dataclass(frozen=True)
class Tool:
    """A program or library outside of Python that some targets use where it is found."""

    name: str
    purpose: str
    install: str


TOOLS = (
    Tool("arm-none-eabi-gcc", "compiles for Cortex-M instead of ziglang", "apt install gcc-arm-none-eabi"),
    Tool("qemu-system-arm", "runs Cortex-M55 images and checks the others", "apt install qemu-system-arm"),
    Tool("nvcc", "compiles CUDA kernels instead of NVRTC", "https://developer.nvidia.com/cuda-downloads"),
    Tool("libcuda", "runs cuda artifacts", "the driver of an NVIDIA GPU"),
    Tool("g++", "compiles the peer of dsopt bench --against inductor", "apt install g++"),
)


def extra_of(module: str) -> str | None:
    """Return the extra that brings a package; None for a package that dsopt does not know."""
    known = {package.module.partition(".")[0]: package.extra for package in PACKAGES}
    return known.get(module.partition(".")[0])

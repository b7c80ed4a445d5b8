"""An NVIDIA GPU through the driver's own library, by ctypes: no CUDA toolkit, no torch. The driver brings all that is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsopt.errors import ToolchainError

Bytes = npt.NDArray[np.uint8]

_SUCCESS, _OUT_OF_MEMORY, _NO_DEVICE = 0, 2, 100
_INVALID_IMAGE, _NO_BINARY, _INVALID_PTX, _UNSUPPORTED_PTX = 200, 209, 218, 222
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1
_PARAM_END, _PARAM_BUFFER_POINTER, _PARAM_BUFFER_SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_*
_NAME_BYTES = 256


DRIVER = "libcuda.so.1"
"""What the NVIDIA driver installs."""


@dataclass(frozen=True)
class Image:
    """Code that a driver can load. arch: "sm_90" for machine code, "compute_90" for PTX."""

    arch: str
    code: bytes

    @property
    def number(self) -> int:
        """Return the compute capability as ten times major plus minor."""
        return int(self.arch.partition("_")[2].rstrip("af"))

    @property
    def is_ptx(self) -> bool:
        """Return whether the driver compiles it while loading."""
        return self.arch.startswith("compute_")

    def runs_on(self, capability: int) -> bool:
        """Return whether a GPU of this compute capability can run the image.

        Machine code runs on its own major version from its minor on, "a" code only on its very version; PTX on all later ones.
        CUDA programming guide, "Binary Compatibility" and "PTX Compatibility".
        """
        if self.is_ptx:
            return capability >= self.number
        if self.arch.endswith("a"):
            return capability == self.number
        return capability // 10 == self.number // 10 and capability >= self.number


def choose_image(images: Sequence[Image], capability: int) -> Image | None:
    """Return the machine code nearest below the GPU's version, else the newest PTX it can compile, else None."""
    usable = [image for image in images if image.runs_on(capability)]
    return max(usable, key=lambda image: (not image.is_ptx, image.number, image.arch), default=None)


class CudaDevice:
    """The first GPU that CUDA shows, with the kernels of one artifact loaded. A Device of `dsopt.runtime.cuda_executor`."""

    def __init__(self, images: Sequence[Image], kernels: Sequence[str], library: str = DRIVER) -> None:
        """Open the GPU and load the fitting image. Raises ToolchainError where there is no driver, GPU or fitting image."""
        self._lib = _load(library)
        self._context = ctypes.c_void_p()
        self._module = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._device = ctypes.c_int()
        self._pointers: list[int] = []
        self._open = False
        status = self._lib.cuInit(0)
        if status == _NO_DEVICE:
            raise no_gpu("the NVIDIA driver is here and finds no GPU")
        self._check(status, "cuInit")
        self._check(self._lib.cuDeviceGet(ctypes.byref(self._device), 0), "cuDeviceGet")
        label = ctypes.create_string_buffer(_NAME_BYTES)
        self._check(self._lib.cuDeviceGetName(label, _NAME_BYTES, self._device), "cuDeviceGetName")
        capability = 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)
        self.name = f"{label.value.decode(errors='replace')} (sm_{capability})"
        image = choose_image(images, capability)
        if image is None:
            raise ToolchainError(
                "DS0706", f"this artifact has no code for {self.name}",
                why="it holds " + ", ".join(image.arch for image in images), fix=f"compile with --target cuda:sm_{capability}",
            )  # fmt: skip
        self._check(
            self._lib.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device), "cuDevicePrimaryCtxRetain"
        )
        self._open = True
        try:
            with self._current():
                self._check(self._lib.cuStreamCreate(ctypes.byref(self._stream), _NON_BLOCKING), "cuStreamCreate")
                self._load_image(image)
                self._functions = {kernel: self._function(kernel) for kernel in kernels}
        except BaseException:
            self.close()
            raise

    # ---- memory ----

    def allocate(self, size_bytes: int) -> int:
        """Return the address of fresh memory, which lives until `close`. Raises MemoryError with what is free."""
        pointer = ctypes.c_uint64()
        with self._current():
            status = self._lib.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
            if status == _OUT_OF_MEMORY:
                free, total = ctypes.c_size_t(), ctypes.c_size_t()
                self._check(self._lib.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
                raise MemoryError(f"{size_bytes:,} bytes were asked for, {free.value:,} of {total.value:,} are free")
            self._check(status, "cuMemAlloc")
        self._pointers.append(pointer.value)
        return pointer.value

    def write(self, pointer: int, content: Bytes) -> None:
        """Copy bytes to the GPU, after what the stream holds already."""
        if content.size == 0:
            return
        with self._current():
            status = self._lib.cuMemcpyHtoDAsync_v2(
                ctypes.c_uint64(pointer),
                ctypes.c_void_p(content.ctypes.data),
                ctypes.c_size_t(content.size),
                self._stream,
            )
            self._check(status, "cuMemcpyHtoDAsync")
            # The driver may still be reading pageable memory when the call returns, and `content` may go away.
            self._check(self._lib.cuStreamSynchronize(self._stream), "cuStreamSynchronize")

    def read(self, pointer: int, size_bytes: int) -> Bytes:
        """Copy bytes from the GPU into a fresh array, after the launches before."""
        content = np.empty(size_bytes, np.uint8)
        with self._current():
            status = self._lib.cuMemcpyDtoHAsync_v2(
                ctypes.c_void_p(content.ctypes.data),
                ctypes.c_uint64(pointer),
                ctypes.c_size_t(size_bytes),
                self._stream,
            )
            self._check(status, "cuMemcpyDtoHAsync")
            self._check(self._lib.cuStreamSynchronize(self._stream), "cuStreamSynchronize")
        return content

    # ---- launches ----

    def launch(
        self, kernel: str, blocks: int, threads: int, arguments: Sequence[tuple[int, int]], read_only: int
    ) -> None:
        """Queue a kernel over blocks x threads; returns before it has run."""
        # One buffer of all parameters, which are all pointers: the driver compares its size with what the kernel takes, where an
        # array of addresses would be read as far as the kernel asks, whatever a plan says.
        values = (ctypes.c_uint64 * len(arguments))(*(pointer for pointer, _ in arguments))
        size = ctypes.c_size_t(ctypes.sizeof(values))
        extra = (ctypes.c_void_p * 5)(
            _PARAM_BUFFER_POINTER, ctypes.addressof(values), _PARAM_BUFFER_SIZE, ctypes.addressof(size), _PARAM_END
        )
        with self._current():
            status = self._lib.cuLaunchKernel(
                self._functions[kernel], blocks, 1, 1, threads, 1, 1, 0, self._stream, None, extra
            )
            self._check(status, f"cuLaunchKernel of {kernel}")

    def synchronize(self) -> None:
        """Wait for the launches before. Raises ToolchainError if one of them failed."""
        with self._current():
            self._check(self._lib.cuStreamSynchronize(self._stream), "cuStreamSynchronize")

    def close(self) -> None:
        """Free the memory, the module, the stream and the context; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        self._lib.cuCtxPushCurrent_v2(
            self._context
        )  # a failure here means that the driver is going: there is nobody to tell
        for pointer in self._pointers:
            self._lib.cuMemFree_v2(ctypes.c_uint64(pointer))
        self._pointers.clear()
        if self._module:
            self._lib.cuModuleUnload(self._module)
        if self._stream:
            self._lib.cuStreamDestroy_v2(self._stream)
        self._lib.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        self._lib.cuDevicePrimaryCtxRelease_v2(self._device)

    # ---- the driver ----

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context current on this thread for a few calls, whatever thread that is."""
        self._check(self._lib.cuCtxPushCurrent_v2(self._context), "cuCtxPushCurrent")
        try:
            yield
        finally:
            self._lib.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _load_image(self, image: Image) -> None:
        status = self._lib.cuModuleLoadData(ctypes.byref(self._module), image.code + b"\0")
        if status in (_INVALID_IMAGE, _NO_BINARY, _INVALID_PTX, _UNSUPPORTED_PTX):
            version = ctypes.c_int()
            self._check(self._lib.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
            raise ToolchainError(
                "DS0708", f"the driver of {self.name} refuses the code for {image.arch}",
                why=f"{self._text(status)}; the driver speaks CUDA {version.value // 1000}.{version.value % 1000 // 10}",
                fix="update the driver, or compile the model with the CUDA version that it speaks",
            )  # fmt: skip
        self._check(status, "cuModuleLoadData")

    def _function(self, kernel: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        status = self._lib.cuModuleGetFunction(ctypes.byref(function), self._module, kernel.encode())
        self._check(status, f"cuModuleGetFunction of {kernel}")
        return function

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._check(self._lib.cuDeviceGetAttribute(ctypes.byref(value), number, self._device), "cuDeviceGetAttribute")
        return value.value

    def _text(self, status: int) -> str:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        self._lib.cuGetErrorName(status, ctypes.byref(name))
        self._lib.cuGetErrorString(status, ctypes.byref(text))
        parts = [part.value.decode(errors="replace") for part in (name, text) if part.value is not None]
        return ": ".join(parts) or f"CUDA error {status}"

    def _check(self, status: int, call: str) -> None:
        if status != _SUCCESS:
            where = getattr(self, "name", "")
            raise ToolchainError(
                "DS0708", f"{call} failed: {self._text(status)}", where=where,
                fix="look at nvidia-smi and the kernel log; a session that failed so cannot be used again",
            )  # fmt: skip


def no_gpu(why: str) -> ToolchainError:
    """Return the error for a machine that cannot run CUDA artifacts."""
    return ToolchainError(
        "DS0705", "there is no GPU here to run a CUDA artifact", why=why,
        fix="run it on a machine with an NVIDIA GPU and its driver, or compile the model with --target cpu",
    )  # fmt: skip


def _load(library: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise no_gpu(f"the NVIDIA driver's {library} cannot be loaded: {error}") from error

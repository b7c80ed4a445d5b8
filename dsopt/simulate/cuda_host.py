"""A device that runs the kernels of a CUDA artifact on the host, and checks every pointer and size that reaches a launch.

It has the methods of a device of `dsopt.runtime.cuda`, so the executor that drives a GPU drives it unchanged. The kernels are compiled
from their CUDA C++ text by a host C++ compiler and run in a process of their own: see cuda_emulator.cu. They are native code: emulate
only what this process has compiled itself.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dsopt.errors import CheckError, ToolchainError

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = 256
"""Every argument must start at a multiple of this in its allocation, as cuMemAlloc's own results do."""

_EMULATOR = Path(__file__).with_name("cuda_emulator.cu")
_FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti")
_MOST_ARGUMENTS, _MOST_THREADS, _MOST_BLOCKS = 64, 1024, 2**31 - 1
_DONE, _NO_MEMORY, _FAULT = 0, 1, 2


def host_compiler() -> tuple[str, ...] | None:
    """Return the command of a host C++ compiler: $CXX, c++, g++, clang++, or ziglang's; None if there is none."""
    if os.environ.get("CXX"):
        return tuple(shlex.split(os.environ["CXX"]))
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")  # the emulator needs no C++ library, so no zig c++
    return None


class HostDevice:
    """Memory and kernels in a child process. While `reverse` is set, the threads of each launch run in the opposite order."""

    name = "host emulation"

    def __init__(
        self, source: str, kernels: Sequence[str], *, reverse: bool = False, compiler: Sequence[str] | None = None
    ) -> None:
        """Compile `source`, which defines `kernels`. Raises ToolchainError if no host compiler is here or it rejects the source."""
        command = compiler or host_compiler()
        if command is None:
            raise ToolchainError(
                "DS1070", "there is no host C++ compiler to emulate CUDA kernels with",
                fix="install g++ or clang++, or pip install ziglang",
            )  # fmt: skip
        self._numbers = {kernel: number for number, kernel in enumerate(kernels)}
        self.reverse = reverse
        self._allocations: dict[int, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="dsopt-cuda-")
        try:
            self._process = subprocess.Popen(
                [str(self._build(command, source))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except BaseException:
            self._folder.cleanup()
            raise

    def _build(self, command: Sequence[str], source: str) -> Path:
        folder = Path(self._folder.name)
        (folder / "kernels.cu").write_text(source)
        (folder / "kernels.inc").write_text("".join(f"KERNEL({kernel})\n" for kernel in self._numbers))
        program = folder / "emulator"
        arguments = [*command, *_FLAGS, f"-I{folder}", "-o", str(program), str(_EMULATOR), "-lm"]
        try:
            built = subprocess.run(arguments, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ToolchainError(
                "DS1070", f"{command[0]} cannot be started", why=str(error), fix="install g++, or correct $CXX"
            ) from error
        if built.returncode != 0:
            raise ToolchainError(
                "DS1071", f"{command[0]} rejects the kernels", why="\n".join(built.stderr.splitlines()[:12]),
                fix="unset $CXX if it names an unusual compiler; otherwise this is a fault of dsopt: please report it",
            )  # fmt: skip
        return program

    # ---- memory ----

    def allocate(self, size_bytes: int) -> int:
        """Return the address of fresh memory, full of NaN, which lives until `close`. Raises MemoryError."""
        pointer = self._ask("A", size_bytes)
        if pointer == 0:
            raise MemoryError(size_bytes)
        self._allocations[pointer] = size_bytes
        return pointer

    def write(self, pointer: int, content: Bytes) -> None:
        """Copy bytes to the device."""
        self._inside(pointer, content.size, "a copy to the device")
        self._ask("W", pointer, content.size, tail=content.data)

    def read(self, pointer: int, size_bytes: int) -> Bytes:
        """Copy bytes from the device into a fresh array."""
        self._inside(pointer, size_bytes, "a copy from the device")
        self._send("R", pointer, size_bytes)
        return np.frombuffer(bytearray(self._receive(size_bytes)), np.uint8)  # a bytearray, so that it can be written

    # ---- launches ----

    def launch(
        self, kernel: str, blocks: int, threads: int, arguments: Sequence[tuple[int, int]], read_only: int
    ) -> None:
        """Run a kernel over blocks x threads. arguments: (pointer, bytes); the first `read_only` must not be written.

        Raises CheckError if an argument is not wholly inside one allocation, is not aligned, is written while another argument
        shares its bytes, or if the kernel touches anything but its arguments.
        """
        if not (1 <= blocks <= _MOST_BLOCKS and 1 <= threads <= _MOST_THREADS):
            raise _wrong(f"kernel {kernel} is launched with {blocks} blocks of {threads} threads")
        if len(arguments) > _MOST_ARGUMENTS:
            raise _wrong(f"kernel {kernel} has {len(arguments)} arguments and the emulator takes {_MOST_ARGUMENTS}")
        for number, (pointer, size_bytes) in enumerate(arguments):
            base = self._inside(pointer, size_bytes, f"argument {number} of kernel {kernel}")
            if (pointer - base) % ALIGNMENT:
                raise _wrong(f"argument {number} of kernel {kernel} starts {pointer - base} bytes into its allocation")
        _no_overlap(kernel, arguments, read_only)
        flat = [word for argument in arguments for word in argument]
        status = self._ask(
            "L", self._numbers[kernel], blocks, threads, read_only, int(self.reverse), len(arguments),
            tail=struct.pack(f"={len(flat)}Q", *flat),
        )  # fmt: skip
        if status == _NO_MEMORY:
            needed = sum(size for _, size in arguments)
            raise ToolchainError(
                "DS1073", f"no memory to emulate kernel {kernel} over {needed:,} bytes", fix="free memory"
            )
        if status == _FAULT:
            raise self._fault(kernel, arguments, read_only)
        if status != _DONE:
            raise _wrong(f"kernel {kernel} does not take {len(arguments)} arguments")

    def synchronize(self) -> None:
        """Return at once: launches have finished when they return."""

    def close(self) -> None:
        """End the process and remove its files; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what was still buffered for a process that has ended
        self._folder.cleanup()

    # ---- the child ----

    def _inside(self, pointer: int, size_bytes: int, what: str) -> int:
        """Return the start of the allocation that holds these bytes."""
        for base, length in self._allocations.items():
            if base <= pointer and pointer + size_bytes <= base + length:
                return base
        raise _wrong(f"{what} is {size_bytes} bytes at {pointer:#x}, which no single allocation holds")

    def _fault(self, kernel: str, arguments: Sequence[tuple[int, int]], read_only: int) -> CheckError:
        number, offset, caught = struct.unpack("=QqQ", self._receive(24))
        if number == len(arguments):
            return _wrong(f"kernel {kernel} died of {signal.Signals(caught).name} outside all of its arguments")
        size_bytes = arguments[number][1]
        where = f"byte {offset} of argument {number}, which has {size_bytes} bytes"
        if 0 <= offset < size_bytes and number < read_only:
            return _wrong(f"kernel {kernel} writes {where} and is only read")
        return _wrong(f"kernel {kernel} touches {where}")

    def _ask(self, command: str, *words: int, tail: bytes | memoryview = b"") -> int:
        self._send(command, *words, tail=tail)
        (answer,) = struct.unpack("=Q", self._receive(8))
        return int(answer)

    def _send(self, command: str, *words: int, tail: bytes | memoryview = b"") -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack(f"={1 + len(words)}Q", ord(command), *words))
            self._process.stdin.write(tail)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def _receive(self, size_bytes: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size_bytes)
        if len(content) != size_bytes:
            raise self._died()
        return content

    def _died(self) -> ToolchainError:
        code = self._process.wait()
        return ToolchainError("DS1073", f"the emulator of CUDA kernels ended with status {code}", fix="run it again")


def _no_overlap(kernel: str, arguments: Sequence[tuple[int, int]], read_only: int) -> None:
    """Refuse a written argument that shares bytes with any other: the kernels are compiled with __restrict__."""
    for number, (start, size_bytes) in enumerate(arguments[read_only:], read_only):
        for other, (low, length) in enumerate(arguments):
            if other != number and start < low + length and low < start + size_bytes:
                raise _wrong(f"kernel {kernel} writes argument {number}, which shares bytes with argument {other}")


def _wrong(what: str) -> CheckError:
    return CheckError("DS1072", what, fix="this is a fault of dsopt: please report it with the model")

"""Compile one CUDA C++ source by NVRTC, in a process of its own: `python nvrtc_process.py LIBRARY ARCH OPTION...`.

NVRTC 13.5 gives other code, as right but other, for the same source once it has compiled other sources: every build starts afresh.
Source comes on stdin. A line of JSON leaves on stdout, {"status", "reason", "log"}, then the code. Runs as a script with nothing but
the standard library, to start fast.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

_SUCCESS = 0


def compile_source(library: str, arch: str, options: list[str], source: bytes) -> tuple[dict[str, object], bytes]:
    """Return the header and the code: a cubin for "sm_90", PTX for "compute_90"; no code where the status is not 0."""
    # NVRTC finds its built-in functions by name alone, in no folder of its own: they must be there before it asks.
    for builtins in sorted(Path(library).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))
    nvrtc = ctypes.CDLL(library)
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()
    argv = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    log = code = b""
    if status == _SUCCESS:
        status = nvrtc.nvrtcCompileProgram(program, len(options), argv)
        log = _take(nvrtc, program, "ProgramLog").rstrip(b"\0")
    if status == _SUCCESS:
        is_text = arch.startswith("compute_")
        code = _take(nvrtc, program, "PTX").rstrip(b"\0") if is_text else _take(nvrtc, program, "CUBIN")
    reason = nvrtc.nvrtcGetErrorString(status).decode()
    return {"status": status, "reason": reason, "log": log.decode(errors="replace")}, code


def _take(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """Fetch one of the results of a compilation: its size first, then its bytes."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    taken = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, taken)
    return taken.raw


def main(arguments: list[str]) -> None:
    """Read the source from stdin and write header and code to stdout."""
    library, arch, *options = arguments
    header, code = compile_source(library, arch, options, sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + code)


if __name__ == "__main__":
    main(sys.argv[1:])

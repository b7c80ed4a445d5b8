"""Undefined behaviour of generated C, counted: GCC's checks, with handlers that note the first line and go on.

GCC's own runtime prints to stderr or ends the process, and a test that dies names no case.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

CHECKS = ["-fsanitize=undefined", "-fsanitize=float-cast-overflow"]

_KINDS = (
    "type_mismatch_v1", "add_overflow", "sub_overflow", "mul_overflow", "negate_overflow", "divrem_overflow", "shift_out_of_bounds",
    "out_of_bounds", "builtin_unreachable", "missing_return", "vla_bound_not_positive", "float_cast_overflow", "load_invalid_value",
    "invalid_builtin", "nonnull_arg", "nonnull_return_v1", "pointer_overflow",
)  # fmt: skip

HANDLERS = """struct place { const char *file; unsigned line, column; };
int undefined_count;
unsigned undefined_line;
const char *undefined_kind = "";
static void note(const struct place *place, const char *kind)
{
    if (undefined_count++ == 0) {
        undefined_line = place->line;
        undefined_kind = kind;
    }
}
""" + "".join(
    f'void __ubsan_handle_{kind}(const struct place *place);\n'
    f'void __ubsan_handle_{kind}(const struct place *place) {{ note(place, "{kind}"); }}\n'
    for kind in _KINDS
)  # fmt: skip
"""The entry points that checked code calls: the first argument of each begins with the place in the source."""


@lru_cache
def has_checks(compiler: str) -> bool:
    """Return whether a compiler knows the checks and our handlers are all that they need."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.c").write_text("int f(int a, float b);\nint f(int a, float b) { return a + (int)b; }\n")
        Path(folder, "undefined.c").write_text(HANDLERS)
        steps = (
            [compiler, *CHECKS, "-fPIC", "-c", "probe.c"],
            [compiler, "-shared", "-fPIC", "-Wl,--no-undefined", "probe.o", "undefined.c", "-o", "probe.so"],
        )
        return all(subprocess.run(step, cwd=folder, capture_output=True, check=False).returncode == 0 for step in steps)


def assert_defined(library: ctypes.CDLL, source: str) -> None:
    """Fail with the first line at which checked code met undefined behaviour."""
    if not hasattr(library, "undefined_count"):
        return
    count = ctypes.c_int.in_dll(library, "undefined_count").value
    line = ctypes.c_uint.in_dll(library, "undefined_line").value
    kind = (ctypes.c_char_p.in_dll(library, "undefined_kind").value or b"").decode()
    lines = source.splitlines()
    shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    assert count == 0, f"{kind} in line {line}, {count} times in all: {shown}"

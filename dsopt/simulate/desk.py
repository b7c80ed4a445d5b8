"""Runs generated C on this computer instead of on its core: the same source, built by a host compiler, some fifty times faster.

The program is native code and runs in a process of its own: build only what this process has generated itself.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsopt.errors import CheckError, ToolchainError
from dsopt.native import host_compilers

_FLAGS = ("-std=c99", "-O2", "-ffp-contract=off", "-fno-strict-aliasing")
_BUILD_SECONDS = 300


class DeskModel:
    """A model built for this computer. inputs, outputs: the bytes of each, states of the model last."""

    def __init__(
        self, sources: Mapping[str, bytes], prefix: str, inputs: Sequence[int], outputs: Sequence[int], states: int
    ) -> None:
        """Build model.c and weights.c of `sources`. Raises ToolchainError if no host compiler is here or each one rejects them."""
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._folder = tempfile.TemporaryDirectory(prefix="dsopt-desk-")
        folder = Path(self._folder.name)
        for name, content in sources.items():
            if name.endswith((".c", ".h")) and "/" not in name and name not in ("run_tests.c", "test_vectors.c"):
                (folder / name).write_bytes(content)
        (folder / "desk_main.c").write_text(_main(prefix, self._inputs, self._outputs, states))
        self._program = folder / "desk"
        try:
            _build(folder, self._program)
        except BaseException:
            self._folder.cleanup()
            raise

    def run_many(self, runs: Sequence[Sequence[bytes]], seconds: float = 3600.0) -> list[list[bytes]]:
        """Run once for each list of input bytes. Raises CheckError if the program fails or hangs."""
        content = b"".join(b"".join(run) for run in runs)
        try:
            done = subprocess.run(
                [str(self._program), str(len(runs))], input=content, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CheckError("DS1080", f"the generated C did not finish {len(runs)} runs in {seconds:.0f} s") from error
        size = sum(self._outputs)
        if done.returncode != 0 or len(done.stdout) != size * len(runs):
            raise CheckError(
                "DS1080", f"the generated C ended with status {done.returncode} on this computer", fix="report this"
            )
        return [self._split(done.stdout[start : start + size]) for start in range(0, size * len(runs), size)]

    def _split(self, content: bytes) -> list[bytes]:
        parts, start = [], 0
        for size in self._outputs:
            parts.append(content[start : start + size])
            start += size
        return parts

    def close(self) -> None:
        """Delete the program; a second call does nothing."""
        self._folder.cleanup()


def _build(folder: Path, program: Path) -> None:
    reasons = []
    for command in host_compilers():
        try:
            done = subprocess.run(
                [*command, *_FLAGS, "desk_main.c", "model.c", "weights.c", "-o", str(program)],
                cwd=folder, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
            continue
        if done.returncode == 0 and program.exists():
            return
        reasons.append(done.stderr[-500:])
    raise ToolchainError(
        "DS1081", "no C compiler of this computer builds the generated C", why="\n".join(reasons) or "there is none",
        fix="install a C compiler, or pip install ziglang",
    )  # fmt: skip


def _main(prefix: str, inputs: Sequence[int], outputs: Sequence[int], states: int) -> str:
    def call(kind: str, number: int, count: int) -> str:
        return (
            f"{prefix}_state({number - (count - states)})" if number >= count - states else f"{prefix}_{kind}({number})"
        )

    reads = [
        f"        if (fread({call('input', n, len(inputs))}, 1, {size}, stdin) != {size}) {{\n            return 1;\n        }}"
        for n, size in enumerate(inputs)
    ]
    writes = [
        f"        if (fwrite({call('output', n, len(outputs))}, 1, {size}, stdout) != {size}) {{\n            return 2;\n        }}"
        for n, size in enumerate(outputs)
    ]
    body = "\n".join([*reads, f"        {prefix}_run();", *writes])
    return f"""#include "model.h"

#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments)
{{
    const long runs = count > 1 ? strtol(arguments[1], 0, 10) : 1;
    {prefix}_init();
    for (long run = 0; run < runs; ++run) {{
{body}
    }}
    return 0;
}}
"""

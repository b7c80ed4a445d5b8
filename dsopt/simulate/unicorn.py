"""Runs images on Unicorn, in a child process (unicorn_child.py) that can crash or hang without harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsopt.errors import CheckError
from dsopt.simulate.block_counter import Block
from dsopt.simulate.boards import TIMER_NONE
from dsopt.simulate.callers import MOST_STACK_BYTES
from dsopt.simulate.host_compiler import block_counter_library
from dsopt.simulate.image import PAGE, Image
from dsopt.target import CORES

MODELS = {
    "cortex-m0": "CORTEX_M0",
    "cortex-m0plus": "CORTEX_M0",  # the same instructions; Unicorn has no model of its own
    "cortex-m3": "CORTEX_M3",
    "cortex-m4": "CORTEX_M4",
    "cortex-m7": "CORTEX_M7",
    "cortex-m33": "CORTEX_M33",
    "rv32imc": "SIFIVE_E31",  # RV32IMAC
    "rv32imafc": "SIFIVE_U34",  # RV32GC
}
"""Core -> Unicorn's name of the model. The RISC-V models have more than their cores: what is legal is settled by the assembler."""

_SYSTEM_CONTROL = 0xE000_E000
_GRACE_SECONDS = 15.0  # for the start of the interpreter, and for a child that does not stop by itself
_PACKAGE_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Emulation:
    """What the child answered. status: "ended" at the exit, "stopped" by the time limit, or "fault". Then `link` and `stack` are what
    the link register, and the stack from its pointer to its top, held.
    """

    status: str
    error: str
    pc: int
    mailbox: bytes
    blocks: tuple[Block, ...]
    run_instructions: tuple[int, ...]
    traced: tuple[bytes, ...]
    link: int = 0
    stack: bytes = b""


@dataclass(frozen=True)
class TraceRead:
    """Memory to keep after the layer that begins at `entry`."""

    entry: int
    address: int
    bytes: int


def emulate(
    image: Image,
    core: str,
    mailbox: bytes,
    entries: Sequence[int],
    traces: Sequence[TraceRead],
    seconds: float,
) -> Emulation:
    """Run an image whose mailbox holds these bytes. entries: addresses of the layers.

    Raises CheckError if the child process ends without an answer.
    """
    job, content = _job(image, core, mailbox, entries, traces, seconds, block_counter_library())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dsopt.simulate.unicorn_child"],
            input=json.dumps(job).encode() + b"\n" + content, capture_output=True, check=False,
            timeout=seconds + _GRACE_SECONDS, cwd=_PACKAGE_ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _died(f"did not stop within {seconds:g} s", error.stderr or b"") from None
    except OSError as error:
        raise _died("cannot be started", (error.strerror or str(error)).encode()) from error
    if done.returncode:
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"failed ({done.returncode})"
        raise _died(how, done.stderr)
    line, _, rest = done.stdout.partition(b"\n")
    answer = json.loads(line)
    traced = []
    for trace in traces:
        traced.append(rest[: trace.bytes])
        rest = rest[trace.bytes :]
    depth = answer["stack_bytes"]
    return Emulation(
        answer["status"], answer["error"], answer["pc"], rest[depth:],
        tuple(Block(*fields) for fields in sorted(answer["blocks"])), tuple(answer["runs"]), tuple(traced), answer["link"], rest[:depth],
    )  # fmt: skip


def _job(
    image: Image, core: str, mailbox: bytes, entries: Sequence[int], traces: Sequence[TraceRead], seconds: float,
    library: Path | None,
) -> tuple[dict[str, Any], bytes]:  # fmt: skip
    memory = image.memory
    content = b"".join(segment.content for segment in image.segments) + mailbox
    writes = [(segment.load_address, len(segment.content)) for segment in image.segments]
    job = {
        "family": image.family,
        "model": MODELS[core],
        "has_fpu": CORES[core].has_fpu,
        "regions": _regions(image, len(mailbox)),
        "writes": [*writes, (memory.mailbox_origin, len(mailbox))],
        "stack": image.symbols["harness_stack_top"],
        "stack_limit": memory.ram_origin,
        "most_stack_bytes": MOST_STACK_BYTES,
        "start": image.symbols["harness_reset"],
        "exit": image.symbols["harness_exit"],
        "run": image.symbols["harness_run"],
        "after": image.symbols["harness_counter_ticks"],
        "layers": list(entries),
        "traces": [(trace.entry, trace.address, trace.bytes) for trace in traces],
        "answer": (memory.mailbox_origin, len(mailbox)),
        "seconds": seconds,
        "counter": str(library) if library else "",
    }
    return job, content


def _regions(image: Image, mailbox_bytes: int) -> list[tuple[int, int, bool]]:
    """Return (address, bytes, is it code) of the memory to give out, in whole pages."""
    memory = image.memory
    flash_end = memory.flash_origin + memory.flash_bytes
    first = min(memory.vectors_origin, memory.flash_origin)
    is_one = memory.flash_origin - first < PAGE
    code = [(first if is_one else memory.flash_origin, flash_end)]
    if not is_one:
        code.append((memory.vectors_origin, memory.vectors_origin + PAGE))
    plain = [
        (memory.ram_origin, memory.ram_origin + memory.ram_bytes),
        (memory.mailbox_origin, memory.mailbox_origin + mailbox_bytes),
        (_SYSTEM_CONTROL, _SYSTEM_CONTROL + PAGE),
    ]
    if memory.timer_kind != TIMER_NONE:
        plain.append((memory.timer_origin, memory.timer_origin + PAGE))
    blocks = [(*block, True) for block in code] + [(*block, False) for block in plain]
    return [
        (start // PAGE * PAGE, -(-end // PAGE) * PAGE - start // PAGE * PAGE, is_code) for start, end, is_code in blocks
    ]


def _died(how: str, errors: bytes) -> CheckError:
    lines = errors.decode(errors="replace").strip().splitlines()
    return CheckError(
        "DS1004", f"the emulator {how}", why=lines[-1][:300] if lines else "", fix="try another simulator"
    )

"""Emulates one image with Unicorn, in a process of its own: `python -m dsopt.simulate.unicorn_child`, started by unicorn.py.

Reads one line of JSON and then bytes from stdin, writes one line of JSON and then bytes to stdout. Whatever the guest does, or the
emulator, the caller lives on. Unicorn is under the GPL, another reason for a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from dsopt.simulate.block_counter import NativeCounter, PythonCounter


@dataclass(frozen=True)
class _Machine:
    """An engine and its registers. start_bit: what an address has in addition that is jumped to, 1 for Thumb code."""

    engine: Any
    stack_pointer: int
    link_register: int
    program_counter: int
    start_bit: int


def main() -> int:
    """Serve one job. Returns the exit status: 0 if the guest ran, however it ended."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answer
    job = json.loads(sys.stdin.buffer.readline())
    answer, content = run(job, sys.stdin.buffer)
    answers.write(json.dumps(answer).encode() + b"\n" + content)
    answers.close()
    return 0


def run(job: dict[str, Any], source: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Emulate. job: as `unicorn.py` makes it; source gives the bytes of its "writes". Returns the answer and the bytes of its reads."""
    import unicorn

    machine = _arm(job) if job["family"] == "arm" else _riscv(job)
    uc = machine.engine
    for address, count, is_code in job["regions"]:
        kind = unicorn.UC_PROT_EXEC if is_code else unicorn.UC_PROT_WRITE
        uc.mem_map(address, count, unicorn.UC_PROT_READ | kind)
    for address, count in job["writes"]:
        uc.mem_write(address, source.read(count))
    uc.reg_write(machine.stack_pointer, job["stack"])
    counter = _counter(job, uc, machine.link_register)
    traced = _trace(job, uc)
    answer: dict[str, Any] = {"status": "ended", "error": ""}
    try:
        uc.emu_start(job["start"] | machine.start_bit, job["exit"], timeout=int(job["seconds"] * 1e6))
    except unicorn.UcError as error:
        answer |= {"status": "fault", "error": str(error)}
    answer["pc"] = uc.reg_read(machine.program_counter)
    answer["link"], pointer = uc.reg_read(machine.link_register), uc.reg_read(machine.stack_pointer)
    lowest, top = job["stack_limit"], job["stack"]
    count = min(top - pointer, job["most_stack_bytes"]) if lowest <= pointer <= top else 0
    stack = bytes(uc.mem_read(pointer, count)) if count else b""
    answer["stack_bytes"] = len(stack)
    if answer["status"] == "ended" and answer["pc"] & ~1 != job["exit"]:
        answer["status"] = "stopped"
    blocks, answer["runs"] = counter.result()
    answer["blocks"] = [list(asdict(block).values()) for block in blocks]
    answer["counter"] = type(counter).__name__
    content = b"".join(traced) + stack + bytes(uc.mem_read(*job["answer"]))
    return answer, content


def _arm(job: dict[str, Any]) -> _Machine:
    import unicorn
    from unicorn import arm_const as arm

    # Never UC_MODE_MCLASS: Unicorn 2.1 then ignores the model and emulates a Cortex-M33.
    uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
    uc.ctl_set_cpu_model(getattr(arm, "UC_CPU_ARM_" + job["model"]))
    if job["has_fpu"]:
        uc.reg_write(arm.UC_ARM_REG_FPEXC, 1 << 30)
    return _Machine(uc, arm.UC_ARM_REG_SP, arm.UC_ARM_REG_LR, arm.UC_ARM_REG_PC, 1)


def _riscv(job: dict[str, Any]) -> _Machine:
    import unicorn
    from unicorn import riscv_const as riscv

    uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
    uc.ctl_set_cpu_model(getattr(riscv, "UC_CPU_RISCV32_" + job["model"]))
    return _Machine(uc, riscv.UC_RISCV_REG_SP, riscv.UC_RISCV_REG_RA, riscv.UC_RISCV_REG_PC, 0)


def _counter(job: dict[str, Any], uc: Any, link_register: int) -> NativeCounter | PythonCounter:
    where = job["family"], link_register, job["run"], job["layers"]
    if job["counter"]:
        try:
            native = NativeCounter(job["counter"], *where)
            native.install(uc)
            return native
        except (OSError, AttributeError, ImportError) as error:
            print(f"the native block counter cannot be used: {error}", file=sys.stderr)
    counter = PythonCounter(*where)
    counter.install(uc)
    return counter


def _trace(job: dict[str, Any], uc: Any) -> list[bytearray]:
    """Keep the bytes that each traced layer leaves: read when the next layer, or what comes after the run, is entered.

    A layer that runs more than once leaves its last result.
    """
    import unicorn

    kept = [bytearray(count) for _, _, count in job["traces"]]
    traces = {entry: (index, address) for index, (entry, address, _) in enumerate(job["traces"])}
    pending: list[tuple[int, int]] = []

    def on_block(uc: Any, address: int, _size: int, _user: object) -> None:
        while pending:
            index, where = pending.pop()
            kept[index][:] = uc.mem_read(where, len(kept[index]))
        if address in traces:
            pending.append(traces[address])

    if traces:
        for entry in {*traces, *job["layers"], job["after"]}:
            uc.hook_add(unicorn.UC_HOOK_BLOCK, on_block, begin=entry, end=entry)
    return kept


if __name__ == "__main__":
    sys.exit(main())

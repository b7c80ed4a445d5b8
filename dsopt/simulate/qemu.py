"""Runs images on the Arm boards of qemu-system-arm. Instructions are counted by a board's timer, by layer with probes.py.

The image has no semihosting and no devices but the board's own: inputs are loaded into memory beside it, and answers are read out of
memory through QEMU's monitor (QMP) after the image has asked for a reset.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from dsopt.errors import CheckError, ToolchainError
from dsopt.simulate.boards import Board
from dsopt.simulate.callers import MOST_STACK_BYTES
from dsopt.simulate.image import Image
from dsopt.simulate.probes import Probes, entries_in

PROGRAM = "qemu-system-arm"

ICOUNT_SHIFT = 7
"""An instruction takes 2^7 ns of the guest's time: more than two ticks of every timer, so that rounding finds the exact count."""

PICOSECONDS = 1000 << ICOUNT_SHIFT
"""The same in picoseconds."""


@dataclass(frozen=True)
class Emulation:
    """What an image left. status: "ended" at the exit, or "stopped" by the time limit, then at `pc`, with the link register and the
    stack from its pointer on.  log: the entries of probes.
    """

    status: str
    pc: int
    mailbox: bytes
    log: bytes = b""
    link: int = 0
    stack: bytes = b""


def instructions_of(ticks: int, empty_ticks: int, board: Board) -> int:
    """Return the instructions of a run from what the timer counted, and what it counted of a run of one instruction."""
    run, empty = ((2 * count * board.picoseconds + PICOSECONDS) // (2 * PICOSECONDS) for count in (ticks, empty_ticks))
    return run - empty + 1


def emulate(
    elf: bytes, image: Image, board: Board, mailbox: bytes, seconds: float, probes: Probes | None = None
) -> Emulation:
    """Run an image whose mailbox holds these bytes, or what `probes` made of it.

    Raises CheckError if QEMU ends early, ToolchainError if it is missing.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise ToolchainError("DS1012", f"{PROGRAM} is not installed", fix="apt-get install qemu-system-arm")
    try:
        with tempfile.TemporaryDirectory(prefix="dsopt-") as name:
            folder = Path(name)
            (folder / "image.elf").write_bytes(probes.elf if probes else elf)
            blocks = [(image.memory.mailbox_origin, mailbox)]
            blocks += [(probes.code_origin, probes.code), (probes.log_origin, probes.log)] if probes else []
            top = image.symbols["harness_stack_top"]
            with _Monitor(program, folder, blocks, board, top, time.monotonic() + seconds) as monitor:
                done = monitor.run(image.memory.mailbox_origin, len(mailbox))
                return replace(done, log=monitor.log(probes)) if probes and done.status == "ended" else done
    except OSError as error:
        raise ToolchainError(
            "DS1011", "QEMU cannot be run", where=tempfile.gettempdir(), why=error.strerror or str(error),
            fix="free some space there, or set TMPDIR to another folder",
        ) from error  # fmt: skip


class _Monitor:
    """A QEMU process and its QMP connection, which is its stdin and stdout."""

    def __init__(
        self,
        program: str,
        folder: Path,
        blocks: Sequence[tuple[int, bytes]],
        board: Board,
        stack_top: int,
        deadline: float,
    ) -> None:
        self._stack_top = stack_top
        self._folder, self._deadline = folder, deadline
        self._pending = b""
        self._errors = (folder / "errors").open("w+b")
        loaders = []
        for number, (address, content) in enumerate(blocks):
            (folder / f"block{number}").write_bytes(content)
            loaders += ["-device", f"loader,file=block{number},addr={address:#x},force-raw=on"]
        self._process = subprocess.Popen(
            [
                program, "-M", board.machine, "-nodefaults", "-nic", "none", "-display", "none", "-serial", "none",
                "-monitor", "none", "-qmp", "stdio", "-icount", f"shift={ICOUNT_SHIFT}",
                # Stopped at first: an event before the handshake would be lost. At the reset: stop, and keep the memory.
                "-S", "-no-reboot", "-no-shutdown",
                "-kernel", "image.elf", *loaders,
            ],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
        )  # fmt: skip

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def run(self, origin: int, count: int) -> Emulation:
        """Let the image run to its end or to the deadline, and read its mailbox."""
        self._command("qmp_capabilities")
        self._command("cont")
        if not self._ended():
            self._deadline = time.monotonic() + 5
            self._command("stop")
            mailbox = self._memory(origin, count)
            pointer, link, pc = self._registers()
            depth = min(self._stack_top - pointer, MOST_STACK_BYTES)
            stack = self._memory(pointer, depth) if depth > 0 else b""
            return Emulation("stopped", pc, mailbox, link=link, stack=stack)
        return Emulation("ended", 0, self._memory(origin, count))

    def log(self, probes: Probes) -> bytes:
        """Return the entries of the log of probes."""
        count = entries_in(probes, self._memory(probes.log_origin, len(probes.log)))
        return self._memory(probes.log_origin + len(probes.log), count * len(probes.log)) if count else b""

    def _memory(self, origin: int, count: int) -> bytes:
        self._command("memsave", val=origin, size=count, filename="answer")
        return (self._folder / "answer").read_bytes()

    def _registers(self) -> list[int]:
        """Return stack pointer, link register and program counter; 0 for what QEMU does not name."""
        text = str(self._command("human-monitor-command", **{"command-line": "info registers"}))
        found = (text.partition(f"R{number}=")[2][:8] for number in (13, 14, 15))
        return [int(digits, 16) if digits else 0 for digits in found]

    def _ended(self) -> bool:
        """Wait for the guest's reset; False at the deadline."""
        while (message := self._message()) is not None:
            if message.get("event") == "SHUTDOWN":
                return True
        return False

    def _command(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise self._failed() from None
        while (message := self._message()) is not None:
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise CheckError("DS1004", f"QEMU refused {command!r}", why=str(message["error"].get("desc"))[:300])
            if message.get("event") == "SHUTDOWN":
                self._pending = json.dumps(message).encode() + b"\n" + self._pending
        raise CheckError("DS1004", f"QEMU did not answer {command!r}")

    def _message(self) -> dict[str, Any] | None:
        """Return the next message of QMP; None at the deadline."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._failed()
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self) -> CheckError:
        self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        # QEMU aborts where a fault cannot even be stacked: "Lockup: can't escalate 3 to HardFault"
        lockup = next((line for line in lines if "Lockup" in line), "")
        if lockup:
            return CheckError("DS1001", "the image faulted, and its stack could not take the fault", why=lockup[:300])
        return CheckError(
            "DS1004", f"QEMU ended with status {self._process.returncode}", why=lines[-1][:300] if lines else ""
        )

"""Emulated microcontroller cores: an image and inputs in, outputs and exact counts out.

    simulate(elf, "cortex-m4", runs=[[x.tobytes()], ...], layers=["model_layer_0", ...]) -> Simulation

Unicorn comes from PyPI, knows the Cortex-M0 to M33 and RISC-V, and counts for each layer and function. QEMU runs where
qemu-system-arm is installed, knows the Cortex-M3 to M55, and counts for each layer. Nothing emulates a Cortex-M85. On the same
image both count the same. firmware/README.md says what an image is.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsopt.errors import CheckError, InputError, ReadError, ToolchainError, UsageError
from dsopt.simulate import mailbox as mailboxes
from dsopt.simulate import qemu, unicorn
from dsopt.simulate.block_counter import Block
from dsopt.simulate.boards import board_of
from dsopt.simulate.callers import callers
from dsopt.simulate.image import Image, read_image
from dsopt.simulate.mailbox import Answer
from dsopt.simulate.probes import instructions_by_layer, with_probes
from dsopt.simulate.profile import function_costs, layer_costs
from dsopt.simulate.simulation import Cost, Simulation, TracePoint
from dsopt.target import CORES

__all__ = ["Cost", "Simulation", "TracePoint", "choose_simulator", "read_image", "simulate"]

_SIMULATORS = ("unicorn", "qemu")
_AGAIN = "compile the model again"
_REPORT = "if dsopt made this image, this is a bug of dsopt: please report it"


@dataclass(frozen=True)
class _Part:
    """What one emulator run gave: as many runs as one mailbox holds."""

    answer: Answer
    run_instructions: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    traced: tuple[bytes, ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)


def simulate(
    image: bytes | Path,
    core: str,
    *,
    runs: Sequence[Sequence[bytes]] = ((),),
    layers: Sequence[str] = (),
    traces: Sequence[TracePoint] = (),
    simulator: str | None = None,
    seconds: float = 60.0,
) -> Simulation:
    """Run an image on an emulated core, as many inferences as there are `runs`, started once.

    image: an ELF file linked with this folder's firmware.  core: such as "cortex-m4".
    runs: for each inference the bytes of each input, in the order of the image's table.
    layers: functions to sum costs for.  traces: memory to keep, as it is when the next of `layers` begins; Unicorn only.
    simulator: "unicorn" or "qemu"; None takes the first that knows the core and is installed.
    seconds: the most that the emulation may take.

    Raises ReadError for what is no such image, InputError for inputs of other lengths, UsageError for an unknown core or simulator,
    ToolchainError without a simulator, CheckError for a fault in the image, or if it takes longer.
    """
    chosen = choose_simulator(core, simulator)
    elf = image if isinstance(image, bytes) else _content(image)
    read = read_image(elf)
    if read.family != CORES[core].family:
        raise ReadError("DS1003", f"the image is for {read.family}, and a {core} is {CORES[core].family}", fix=_AGAIN)
    for name in layers:
        if name not in read.symbols:
            raise ReadError("DS1003", f"the image has no function {name!r}", fix=_AGAIN)
    fitting = mailboxes.runs_that_fit(read)
    if fitting == 0:
        raise InputError("DS1006", "the inputs and outputs of one run are larger than the simulator's mailbox")
    deadline = time.monotonic() + seconds
    parts: list[_Part] = []
    for first in range(0, max(1, len(runs)), fitting):
        content = mailboxes.pack(read, runs[first : first + fitting])
        left = max(0.1, deadline - time.monotonic())
        if chosen == "unicorn":
            parts.append(_on_unicorn(read, core, content, layers, traces, left))
        else:
            parts.append(_on_qemu(elf, read, core, content, layers, traces, left))
        if parts[-1].answer.code:
            break
    return _together(chosen, core, read, layers, traces, parts)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReadError("DS1003", f"{path} cannot be read", why=error.strerror or str(error)) from error


def choose_simulator(core: str, wanted: str | None = None) -> str:
    """Return "unicorn" or "qemu". Raises UsageError if none knows the core, ToolchainError if none is installed."""
    if core not in CORES:
        raise UsageError("DS1013", f"unknown core {core!r}", fix="known cores: " + ", ".join(CORES))
    if wanted is not None and wanted not in _SIMULATORS:
        raise UsageError("DS1013", f"unknown simulator {wanted!r}", fix="known: " + ", ".join(_SIMULATORS))
    known = [name for name in _SIMULATORS if name in CORES[core].simulators]
    if not known:
        raise ToolchainError("DS1014", f"nothing emulates a {core}: code for it is compiled and assembled only")
    if wanted is not None and wanted not in known:
        raise UsageError("DS1013", f"{wanted} does not emulate a {core}", fix="use " + " or ".join(known))
    installed = {
        "unicorn": importlib.util.find_spec("unicorn") is not None,
        "qemu": shutil.which(qemu.PROGRAM) is not None,
    }
    for name in known if wanted is None else [wanted]:
        if installed[name]:
            return name
    ways = {"unicorn": "pip install dsopt[mcu]", "qemu": "apt-get install qemu-system-arm"}
    raise ToolchainError(
        "DS1012", f"nothing that emulates a {core} is installed",
        fix=" or ".join(ways[name] for name in (known if wanted is None else [wanted])),
    )  # fmt: skip


def _on_unicorn(
    image: Image, core: str, content: bytes, layers: Sequence[str], traces: Sequence[TracePoint], seconds: float
) -> _Part:
    reads = []
    for trace in traces:
        for name in (trace.function, trace.symbol):
            if name not in image.symbols:
                raise ReadError("DS1003", f"the image has no symbol {name!r}", fix=_AGAIN)
        read = unicorn.TraceRead(image.symbols[trace.function], image.symbols[trace.symbol] + trace.offset, trace.bytes)
        end = image.memory.ram_origin + image.memory.ram_bytes
        if not image.memory.ram_origin <= read.address <= read.address + read.bytes <= end:
            raise ReadError(
                "DS1003", f"{trace.function} leaves no {trace.bytes} bytes in RAM at {trace.symbol}+{trace.offset}"
            )
        reads.append(read)
    entries = [image.symbols[name] for name in layers]
    done = unicorn.emulate(image, core, content, entries, reads, seconds)
    answer = mailboxes.unpack(image, done.mailbox)
    if done.status == "fault":
        raise _fault(image, done.pc, f"{len(answer.outputs)} runs done{_called_by(image, done)}", done.error)
    if done.status == "stopped":
        raise _too_slow(image, done, seconds)
    _check(image, answer)
    return _Part(answer, done.run_instructions[: len(answer.outputs)], done.blocks, done.traced)


def _on_qemu(
    elf: bytes,
    image: Image,
    core: str,
    content: bytes,
    layers: Sequence[str],
    traces: Sequence[TracePoint],
    seconds: float,
) -> _Part:
    if traces:
        raise UsageError("DS1013", "QEMU cannot give the values between layers", fix="use unicorn")
    board = board_of(core, image.memory)
    if board is None:
        raise UsageError(
            "DS1013", f"QEMU has no {core} board with as much memory as this image needs", fix="use unicorn"
        )
    done = qemu.emulate(elf, image, board, content, seconds)
    if done.status == "stopped":
        raise _too_slow(image, done, seconds)
    answer = mailboxes.unpack(image, done.mailbox)
    _check(image, answer)
    counts = tuple(qemu.instructions_of(ticks, answer.empty_ticks, board) for ticks in answer.ticks)
    probes = with_probes(elf, image, board, layers) if layers else None
    if probes is None or answer.code:
        return _Part(answer, counts)
    probed = qemu.emulate(elf, image, board, content, seconds, probes)
    if probed.status == "stopped":
        raise _too_slow(image, probed, seconds)
    if mailboxes.unpack(image, probed.mailbox).outputs != answer.outputs:
        raise CheckError("DS1004", "the image gives other outputs while its layers are counted", fix=_REPORT)
    by_layer = instructions_by_layer(probes, probed.log, board, qemu.PICOSECONDS)
    return _Part(answer, counts, layers=by_layer)


def _check(image: Image, answer: Answer) -> None:
    if answer.status == mailboxes.FAULT:
        raise _fault(
            image, answer.fault_pc, f"{len(answer.outputs)} runs done", "called from " + _place(image, answer.fault_lr)
        )
    if answer.status == mailboxes.OVERFLOW:
        raise CheckError("DS1001", "the image faulted: its stack ran out", fix=_REPORT)
    if answer.status == mailboxes.REFUSED:
        raise ReadError("DS1003", "the image and its table of inputs and outputs differ", fix=_AGAIN)
    if answer.status not in (mailboxes.DONE, mailboxes.CODE):
        raise CheckError("DS1004", "the image ended without an answer", fix=_AGAIN)


def _together(
    simulator: str, core: str, image: Image, layers: Sequence[str], traces: Sequence[TracePoint], parts: Sequence[_Part]
) -> Simulation:
    blocks = [block for part in parts for block in part.blocks]
    is_counted = simulator == "unicorn"
    return Simulation(
        simulator=simulator,
        core=core,
        exit_code=parts[-1].answer.code,
        outputs=tuple(values for part in parts for values in part.answer.outputs),
        run_instructions=tuple(count for part in parts for count in part.run_instructions),
        stack_bytes=max((count for part in parts for count in part.answer.stack_bytes), default=0),
        layers=layer_costs(image, blocks, layers) if is_counted else _counted(parts),
        functions=function_costs(image, blocks) if is_counted else {},
        traces={trace.function: content for trace, content in zip(traces, parts[-1].traced, strict=True)},
    )


def _counted(parts: Sequence[_Part]) -> dict[str, Cost]:
    names = dict.fromkeys(name for part in parts for name in part.layers)
    return {name: Cost(sum(part.layers.get(name, 0) for part in parts), None) for name in names}


def _place(image: Image, address: int) -> str:
    return f"{image.function_at(address & ~1) or 'nowhere'} ({address & ~1:#010x})"


def _fault(image: Image, pc: int, when: str, why: str) -> CheckError:
    return CheckError(
        "DS1001", f"the image faulted in {_place(image, pc)}", where=when, why=why,
        fix=_REPORT,
    )  # fmt: skip


def _called_by(image: Image, done: qemu.Emulation | unicorn.Emulation) -> str:
    """Say which functions led to where an emulator was stopped: one of them is the layer."""
    here = image.function_at(done.pc & ~1)
    names = [name for name in callers(image, done.pc, done.link, done.stack) if name != here]
    return ", called by " + ", ".join(names) if names else ""


def _too_slow(image: Image, done: qemu.Emulation | unicorn.Emulation, seconds: float) -> CheckError:
    return CheckError(
        "DS1002", f"the image did not finish within {seconds:.3g} s", where=f"it was in {_place(image, done.pc)}{_called_by(image, done)}",
        fix="give fewer inputs at a time, or more seconds if the model is large",
    )  # fmt: skip

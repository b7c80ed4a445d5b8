"""Counts executed blocks by layer: the same as block_counter.c, which is 100 times as fast, for machines without a C compiler.

Imported by the child process only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dsopt.simulate.encoding import instruction_count

NO_LAYER = -1


@dataclass
class Block:
    """How often a block of code ran while `layer` was active, and how often something else than what follows it ran next."""

    layer: int
    address: int
    size: int
    hits: int = 0
    taken: int = 0
    instructions: int = 0


@dataclass
class PythonCounter:
    """A block hook in Python. family: of the core, "arm" or "riscv".  entries: addresses of the layers."""

    family: str
    link_register: int
    run_entry: int
    entries: Sequence[int]
    blocks: dict[tuple[int, int, int], Block] = field(default_factory=dict)
    runs: list[int] = field(default_factory=list)
    _frames: list[tuple[int, int]] = field(default_factory=list)  # return address, layer
    _last: Block | None = None
    _run_instructions: int = 0

    def __post_init__(self) -> None:
        self._layers = {address: index for index, address in reversed(list(enumerate(self.entries)))}

    def install(self, uc: Any) -> None:
        """Add the hook to an engine."""
        import unicorn

        uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block)

    def result(self) -> tuple[list[Block], list[int]]:
        """Return the blocks that ran, and the instructions of each finished run."""
        return list(self.blocks.values()), self.runs

    def _on_block(self, uc: Any, address: int, size: int, _user: object) -> None:
        frames = self._frames
        if size == 0 or (not frames and address != self.run_entry):
            return
        last, self._last = self._last, None
        if last is not None and address != last.address + last.size:
            last.taken += 1
        if frames and address == frames[-1][0]:
            while frames and address == frames[-1][0]:
                frames.pop()
            if not frames:
                self.runs.append(self._run_instructions)
                self._run_instructions = 0
                return
        if not frames:
            self._enter(uc, NO_LAYER)
        if address in self._layers:
            self._enter(uc, self._layers[address])
        key = (frames[-1][1], address, size)
        block = self.blocks.get(key)
        if block is None:
            count = instruction_count(bytes(uc.mem_read(address, size)), self.family)
            block = self.blocks[key] = Block(*key, instructions=count)
        block.hits += 1
        self._run_instructions += block.instructions
        self._last = block

    def _enter(self, uc: Any, layer: int) -> None:
        frame = (uc.reg_read(self.link_register) & ~1, layer)
        if not self._frames or self._frames[-1] != frame:  # a leaf function may begin with a loop
            self._frames.append(frame)


class _Slot(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("taken", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("instructions", ctypes.c_uint32),
        ("layer", ctypes.c_int32),
        ("enters", ctypes.c_int32),
    )


class NativeCounter:
    """The block hook of block_counter.c. Raises OSError or AttributeError if the library is not what it should be."""

    def __init__(self, library: str, family: str, link_register: int, run_entry: int, entries: Sequence[int]) -> None:
        from unicorn.unicorn_py3 import unicorn as binding

        self._engine = binding.uclib
        self._code = ctypes.CDLL(library)
        self._code.counter_slots.restype = ctypes.POINTER(_Slot)
        self._code.counter_runs.restype = ctypes.POINTER(ctypes.c_uint64)
        self._code.counter_slot_capacity.restype = self._code.counter_run_count.restype = ctypes.c_uint32
        self._entries = (ctypes.c_uint64 * max(1, len(entries)))(*entries)
        readers = self._engine.uc_mem_read, self._engine.uc_reg_read
        pointers = [ctypes.cast(function, ctypes.c_void_p) for function in readers]
        if self._code.counter_start(
            *pointers,
            link_register,
            ctypes.c_uint64(run_entry),
            self._entries,
            ctypes.c_uint32(len(entries)),
            int(family == "riscv"),
        ):
            raise MemoryError("the block counter has no memory")

    def install(self, uc: Any) -> None:
        """Add the hook to an engine."""
        import unicorn

        handle = ctypes.c_size_t()
        status = self._engine.uc_hook_add(
            uc._uch, ctypes.byref(handle), unicorn.UC_HOOK_BLOCK,
            ctypes.cast(self._code.counter_block, ctypes.c_void_p), None, ctypes.c_uint64(1), ctypes.c_uint64(0),
        )  # fmt: skip
        if status:
            raise OSError(f"uc_hook_add gave {status}")

    def result(self) -> tuple[list[Block], list[int]]:
        """Return the blocks that ran, and the instructions of each finished run."""
        if self._code.counter_failed():
            raise MemoryError("the block counter ran out of memory or of layers")
        slots = self._code.counter_slots()
        blocks = [
            Block(slot.layer, slot.address, slot.size, slot.hits, slot.taken, slot.instructions)
            for slot in (slots[i] for i in range(self._code.counter_slot_capacity()))
            if slot.hits
        ]
        return blocks, [self._code.counter_runs()[i] for i in range(self._code.counter_run_count())]

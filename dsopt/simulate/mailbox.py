"""What host and image exchange: the memory block of `harness_mailbox` and `harness_result` in firmware/harness.h."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from dsopt.errors import InputError
from dsopt.simulate.image import MAGIC, VERSION, Image, Span

_HEAD = struct.Struct("<16I")
_RESULT = struct.Struct("<QII")

STARTED, DONE, REFUSED, CODE, FAULT, OVERFLOW = 1, 2, 3, 4, 5, 6
"""The states of a run, HARNESS_STARTED to HARNESS_OVERFLOW."""


@dataclass(frozen=True)
class Answer:
    """What an image left in its mailbox. ticks and stack_bytes: one for each run that was done;
    empty_ticks: of a run of one instruction."""

    status: int
    code: int
    fault_pc: int
    fault_lr: int
    outputs: tuple[tuple[bytes, ...], ...]
    empty_ticks: int
    ticks: tuple[int, ...]
    stack_bytes: tuple[int, ...]


def padded(count: int) -> int:
    """Return a length with the padding that follows each span."""
    return count + 7 & ~7


def run_bytes(spans: Sequence[Span]) -> int:
    """Return the length of one run's inputs or outputs."""
    return sum(padded(span.bytes) for span in spans)


def runs_that_fit(image: Image) -> int:
    """Return how many runs one mailbox holds; 0 if not one."""
    each = run_bytes(image.inputs) + run_bytes(image.outputs) + _RESULT.size
    return (image.memory.mailbox_bytes - _HEAD.size) // each


def pack(image: Image, runs: Sequence[Sequence[bytes]]) -> bytes:
    """Return the mailbox for these runs, each the inputs in the order of the image's table. Raises InputError."""
    inputs = bytearray()
    for number, run in enumerate(runs):
        given, wanted = [len(value) for value in run], [span.bytes for span in image.inputs]
        if given != wanted:
            raise InputError("DS1005", f"run {number} has inputs of {given} bytes, and the image takes {wanted}")
        for value in run:
            inputs += value
            inputs += bytes(padded(len(value)) - len(value))
    each, output_bytes = run_bytes(image.inputs), run_bytes(image.outputs)
    outputs_offset = _HEAD.size + len(runs) * each
    results_offset = outputs_offset + len(runs) * output_bytes
    head = _HEAD.pack(
        MAGIC, VERSION, len(runs), each, output_bytes, _HEAD.size, outputs_offset, results_offset, *[0] * 8
    )
    return head + bytes(inputs) + bytes(len(runs) * (output_bytes + _RESULT.size))


def unpack(image: Image, content: bytes) -> Answer:
    """Read a mailbox that `pack` made and the image has answered in. What it says of itself is not believed."""
    words = _HEAD.unpack_from(content)
    total = run_bytes(image.inputs) + run_bytes(image.outputs) + _RESULT.size
    run_count = (len(content) - _HEAD.size) // total
    done = min(words[9], run_count)
    offset = _HEAD.size + run_count * run_bytes(image.inputs)
    outputs = []
    for _ in range(done):
        values = []
        for span in image.outputs:
            values.append(content[offset : offset + span.bytes])
            offset += padded(span.bytes)
        outputs.append(tuple(values))
    results_offset = len(content) - run_count * _RESULT.size
    results = [_RESULT.unpack_from(content, results_offset + i * _RESULT.size) for i in range(done)]
    return Answer(
        words[8], words[10], words[11], words[12], tuple(outputs), words[13],
        tuple(result[0] for result in results), tuple(result[1] for result in results),
    )  # fmt: skip

"""The estimate of cycles, against sums by hand from the tables of the Cortex-M4's manual; the codes come from Arm's encodings."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.simulate import simulate
from dsopt.simulate.cycles import block_cycles, instructions
from dsopt.simulate.encoding import instruction_count
from tests.simulate.images import run_image

CODES: list[tuple[str, tuple[int, ...], int]] = [
    ("adds r0, #1", (0x3001,), 1),
    ("ldr r0, [pc, #4]", (0x4801,), 2),
    ("ldr r0, [r1, r2]", (0x5888,), 2),
    ("str r0, [r1, r2]", (0x5088,), 1),
    ("ldrsh r0, [r1, r2]", (0x5E88,), 2),
    ("ldr r0, [r1]", (0x6808,), 2),
    ("strb r0, [r1]", (0x7008,), 1),
    ("ldrh r0, [r1]", (0x8808,), 2),
    ("ldr r0, [sp]", (0x9800,), 2),
    ("push {r4, lr}", (0xB510,), 3),
    ("pop {r4-r7, pc}", (0xBDF0,), 6),
    ("sxtb r0, r1", (0xB248,), 1),
    ("ldmia r0!, {r1, r2, r3}", (0xC80E,), 4),
    ("stmia r0!, {r1, r2}", (0xC006,), 3),
    ("push.w {r4-r11, lr}", (0xE92D, 0x4FF0), 10),
    ("ldrd r0, r1, [r2]", (0xE9D2, 0x0100), 3),
    ("strd r0, r1, [r2]", (0xE9C2, 0x0100), 3),
    ("ldrex r0, [r1]", (0xE851, 0x0F00), 2),
    ("ldr.w r0, [r1, #1000]", (0xF8D1, 0x03E8), 2),
    ("str.w r0, [r1, #1000]", (0xF8C1, 0x03E8), 1),
    ("ldrsb.w r0, [r1], #1", (0xF911, 0x0B01), 2),
    ("sdiv r0, r1, r2", (0xFB91, 0xF0F2), 6),
    ("udiv r0, r1, r2", (0xFBB1, 0xF0F2), 6),
    ("smlad r0, r1, r2, r3", (0xFB21, 0x3002), 1),
    ("smull r0, r1, r2, r3", (0xFB82, 0x0103), 1),
    ("vldr s0, [r0]", (0xED90, 0x0A00), 2),
    ("vstr s0, [r0]", (0xED80, 0x0A00), 1),
    ("vldmia r0!, {s0-s3}", (0xECB0, 0x0A04), 5),
    ("vpush {d8}", (0xED2D, 0x8B02), 3),
    ("vmov s0, r0", (0xEE00, 0x0A10), 1),
    ("vmov r0, r1, s0, s1", (0xEC51, 0x0A10), 2),
    ("vmul.f32 s0, s1, s2", (0xEE20, 0x0A81), 1),
    ("vadd.f32 s0, s1, s2", (0xEE30, 0x0A81), 1),
    ("vmla.f32 s0, s1, s2", (0xEE00, 0x0A81), 3),
    ("vfma.f32 s0, s1, s2", (0xEEA0, 0x0A81), 3),
    ("vdiv.f32 s0, s1, s2", (0xEE80, 0x0A81), 14),
    ("vsqrt.f32 s0, s1", (0xEEB1, 0x0AE0), 14),
    ("vneg.f32 s0, s1", (0xEEB1, 0x0A60), 1),
    ("vcvt.f32.s32 s0, s1", (0xEEB8, 0x0AE0), 1),
]


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}H", *words)


@pytest.mark.parametrize(("text", "words", "cycles"), CODES, ids=[row[0] for row in CODES])
def test_an_instruction_costs_what_the_manual_says(text: str, words: tuple[int, ...], cycles: int) -> None:
    assert instruction_count(code(*words), "arm") == 1
    assert block_cycles(code(*words)) == cycles


def test_the_second_of_two_loads_is_pipelined() -> None:
    assert block_cycles(code(0x6808, 0x6849, 0x3001, 0x6808)) == 2 + 1 + 1 + 2


@given(st.binary(max_size=64))
def test_any_bytes_are_divided_into_instructions(content: bytes) -> None:
    found = list(instructions(content))
    assert sum(2 if second < 0 else 4 for _, second in found) == len(content) // 2 * 2
    assert block_cycles(content) >= len(found)


@pytest.mark.mcu
def test_taken_branches_cost_two_more() -> None:
    done = simulate(run_image("movs r0, #5; 1: subs r0, #1; bne 1b; bx lr"), "cortex-m4", simulator="unicorn")
    # 12 instructions, of which the branch is taken 4 of 5 times, and then the return
    assert done.instructions == 12
    assert done.estimated_cycles == 12 + 2 * (4 + 1)

"""How a micro-kernel is written: portable C, and one block of assembly for cores that have the instructions.

An assembly body is the whole of a naked function, called as the procedure call standard says (AAPCS32, section 6): the same code
under every compiler, where statements of inline assembly lead to spills that differ from release to release.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.tir.program import MicroKernel
from dsopt.backends.tir.registry import UnsuitedError

DSP = "defined(__ARM_FEATURE_DSP)"
MVE = "defined(__ARM_FEATURE_MVE)"

MOST_DISTANCE, MOST_OFFSET = 4095, 127
"""Bytes that an address may be moved by in `add` or `sub`, and in a load or store of a vector."""

SUPPORT = MicroKernel(
    "dsopt_requantize",
    """#if defined(__clang__)
#define DSOPT_NAKED __attribute__((naked, noinline)) static
#elif defined(__GNUC__)
#define DSOPT_NAKED __attribute__((naked, noinline, noclone, noipa)) static
#endif

/* Portable bodies are not made part of layers: what GCC 12 for x86-64 makes of them there at -O3 gives wrong results. */
#if defined(__GNUC__)
#define DSOPT_UNUSED __attribute__((unused))
#define DSOPT_PORTABLE __attribute__((noinline)) static
#else
#define DSOPT_UNUSED
#define DSOPT_PORTABLE static
#endif

DSOPT_UNUSED static inline int32_t dsopt_clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* The sum times the multiplier in the upper bits of `scale`, divided by two to the power of 32 and of the last five bits, rounded
   once, ties upwards. */
DSOPT_UNUSED static inline int32_t dsopt_requantize(int32_t sum, int32_t scale, int32_t zero, int32_t low, int32_t high)
{
    const int32_t shift = scale & 31;
    const int64_t product = (int64_t)sum * (scale - shift);
    return dsopt_clamp((((int32_t)(product >> 32) + (1 << (shift - 1))) >> shift) + zero, low, high);
}

/* 16 times one of the eight values of 4 bits in a word: of those in the upper halves of its bytes, or of the others. */
DSOPT_UNUSED static inline int32_t dsopt_nibble(int32_t word, uint32_t number, int32_t is_lower)
{
    const uint32_t moved = is_lower ? (uint32_t)word << 4 : (uint32_t)word;
    return (int8_t)(uint8_t)((moved >> (8u * number)) & 0xF0u);
}

/* A word of four bytes, the first in the lowest. */
DSOPT_UNUSED static inline int32_t dsopt_word(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return (int32_t)(((uint32_t)a & 255u) | ((uint32_t)b & 255u) << 8 | ((uint32_t)c & 255u) << 16 | ((uint32_t)d & 255u) << 24);
}

/* One of the four int8 values in a word, as it lies in the memory of a little-endian core. */
DSOPT_UNUSED static inline int32_t dsopt_byte(int32_t word, uint32_t number)
{
    return (int8_t)(uint8_t)(((uint32_t)word >> (8u * number)) & 255u);
}
""",
)
"""What portable bodies share."""


def micro_kernel(
    name: str, parameters: str, portable: str, assembly: Sequence[str], condition: str = DSP
) -> MicroKernel:
    """Put both bodies of a function into one text. portable: statements of C, indented by four."""
    lines = "".join(f'        "{line}\\n"\n' for line in assembly).rstrip("\n")
    unused = ", ".join(f"{parameter} DSOPT_UNUSED" for parameter in parameters.split(", "))
    return MicroKernel(
        name,
        f"""#if {condition}
DSOPT_NAKED void {name}({unused})
{{
    __asm__(
{lines});
}}
#else
DSOPT_PORTABLE void {name}({parameters})
{{
{portable.rstrip()}
}}
#endif
""",
    )


def clamp_lines(register: str, low: int, high: int, bits: int = 8) -> list[str]:
    """Return the instructions that clamp a register to low..high, which lie inside of `bits`: of 16, they are all that there is."""
    least, largest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if bits > 8 and (low, high) != (least, largest):
        raise UnsuitedError("its values of 16 bits are clamped")
    lines = [f"ssat {register}, #{bits}, {register}"] if low == least or high == largest else []
    if low > least:
        lines += [f"cmp {register}, #{low}", "it lt", f"movlt {register}, #{low}"]
    if high < largest:
        lines += [f"cmp {register}, #{high}", "it gt", f"movgt {register}, #{high}"]
    return lines


def to_word(register: str, number: int) -> list[str]:
    """Return the instructions that put a number into a register."""
    bits = number & 0xFFFFFFFF
    if -256 <= number < 0:
        return [f"mvn {register}, #{~number}"]
    return [f"movw {register}, #{bits & 0xFFFF}"] + ([f"movt {register}, #{bits >> 16}"] if bits >> 16 else [])


def unpack_scale(scale: str, rounding: str, shift: str, zero: int) -> list[str]:
    """Return the instructions that take a packed scale apart, and make what rounding and the zero point add before the shift."""
    return [
        f"and {shift}, {scale}, #31",
        f"bic {scale}, {scale}, #31",
        *to_word(rounding, 2 * zero + 1),
        f"lsl {rounding}, {rounding}, {shift}",
        f"asr {rounding}, {rounding}, #1",
    ]


def requantize_lines(value: str, scale: str, rounding: str, shift: str, store: Store) -> list[str]:
    """Return the instructions of `dsopt_requantize` for a register, with the constants in three others."""
    return [
        *([f"lsl {value}, {value}, #{store.lift}"] if store.lift else []),
        f"smmla {value}, {value}, {scale}, {rounding}",
        f"asr {value}, {value}, {shift}",
        *clamp_lines(value, store.low, store.high, store.bits),
    ]

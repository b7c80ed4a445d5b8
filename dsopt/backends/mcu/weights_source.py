"""Generate weights.c: the numbers that live in flash."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.backends.mcu.c_text import Names, array_definition, array_type, comment
from dsopt.backends.tir.program import LoopProgram

_SPECIAL_NUMBERS = """#if defined(__GNUC__)
#define WEIGHT_INFINITY __builtin_inff()
#define WEIGHT_NAN __builtin_nanf("")
#else
#include <math.h>
#define WEIGHT_INFINITY INFINITY
#define WEIGHT_NAN NAN
#endif

"""


def special_numbers(arrays: Sequence[str]) -> str:
    """Return the macros for infinities and NaN if some array uses them: no literal of C99 without a library is one."""
    return _SPECIAL_NUMBERS if any("WEIGHT_" in text.partition("= {")[2] for text in arrays) else ""


def starts_at_zero(program: LoopProgram, name: str) -> bool:
    """Return whether a buffer is a state whose first value is all zeros: it is cleared, and takes no flash."""
    return program.buffers[name].kind == "state" and not program.constants[name].any()


def weights_source(names: Names, program: LoopProgram, target: str) -> str:
    """Return the text of weights.c: a const array for every weight, and the first value of every state."""
    arrays = []
    for name, values in program.constants.items():
        buffer = program.buffers[name]
        if starts_at_zero(program, name):
            continue
        what = "first value of a state" if buffer.kind == "state" else "weight"
        declaration = f"const {array_type(values)} {names.weight(name)}[{values.size}]"
        head = f"/* {what}: {buffer.dtype} {list(buffer.shape)} */\nextern {declaration};\n"
        arrays.append(head + array_definition(declaration, values))
    return "".join(
        [
            f"/* The weights of the network for {comment(target)}. Generated: do not edit. */\n",
            "#include <stdbool.h>\n#include <stdint.h>\n\n",
            special_numbers(arrays),
            "\n".join(arrays or [f"typedef int {names.prefix}_has_no_weights;\n"]),
        ]
    )

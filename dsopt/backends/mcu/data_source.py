"""Generate the files that hold numbers: weights.c, and test_vectors.c with run_tests.c, the same test on desk and board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsopt.backends.mcu.c_text import Names, array_definition, array_type, comment
from dsopt.backends.mcu.header import Interface
from dsopt.backends.tir.program import LoopProgram

Array = np.ndarray[Any, Any]

_SPECIAL = """#if defined(__GNUC__)
#define WEIGHT_INFINITY __builtin_inff()
#define WEIGHT_NAN __builtin_nanf("")
#else
#include <math.h>
#define WEIGHT_INFINITY INFINITY
#define WEIGHT_NAN NAN
#endif

"""


def _special(texts: Sequence[str]) -> str:
    return _SPECIAL if any("WEIGHT_" in text.partition("=")[2] for text in texts) else ""


def weights_source(names: Names, program: LoopProgram, target: str) -> str:
    """Return the text of weights.c: a const array for every weight, and the first value of every state."""
    arrays = []
    for name, values in program.constants.items():
        buffer = program.buffers[name]
        what = "first value of a state" if buffer.kind == "state" else "weight"
        declaration = f"const {array_type(values)} {names.weight(name)}[{max(values.size, 1)}]"
        arrays.append(
            f"/* {what}: {buffer.dtype} {list(buffer.shape)} */\nextern {declaration};\n"
            + array_definition(declaration, values)
        )
    head = f"/* The weights of the network for {comment(target)}. Generated: do not edit. */\n#include <stdbool.h>\n#include <stdint.h>\n\n"
    return head + _special(arrays) + "\n".join(arrays or [f"typedef int {names.prefix}_has_no_weights;\n"])


@dataclass(frozen=True)
class TestVector:
    """One run from the first values of the states: the inputs, and the outputs of the model as it was trained."""

    __test__ = False

    inputs: Sequence[Array]
    outputs: Sequence[Array]


def test_vectors_source(names: Names, vector: TestVector) -> str:
    """Return the text of test_vectors.c."""
    arrays = []
    for kind, group in (("input", vector.inputs), ("expected", vector.outputs)):
        for number, values in enumerate(group):
            declaration = f"const {array_type(values)} {names.prefix}_test_{kind}_{number}[{values.size}]"
            arrays.append(f"extern {declaration};\n" + array_definition(declaration, values))
    head = "/* Inputs, and the outputs that the trained model gave for them. Generated: do not edit. */\n"
    return head + "#include <stdbool.h>\n#include <stdint.h>\n\n" + _special(arrays) + "\n".join(arrays)


def run_tests_source(names: Names, ports: Interface, tolerance: float) -> str:
    """Return the text of run_tests.c: model_run_tests() gives the number of outputs that differ, main() makes it the exit status."""
    p, m = names.prefix, names.macro
    groups = (("input", ports.inputs), ("expected", ports.outputs))
    externs = "\n".join(
        f"extern const {m}_{'INPUT' if kind == 'input' else 'OUTPUT'}_{number}_TYPE {p}_test_{kind}_{number}[];"
        for kind, group in groups
        for number, _ in enumerate(group)
    )
    writes = "".join(
        f"    copy_input({p}_test_input_{number}, {p}_input({number}), {m}_INPUT_{number}_BYTES);\n"
        for number, _ in enumerate(ports.inputs)
    )
    checks = "".join(
        f"    failures += {'differs' if port.buffer.dtype == 'float32' else 'bytes_differ'}(({_cast(port.buffer.dtype)}){p}_output({number}), "
        f"{_argument(port.buffer.dtype)}{p}_test_expected_{number}, {m}_OUTPUT_{number}_{'ELEMENTS' if port.buffer.dtype == 'float32' else 'BYTES'});\n"
        for number, port in enumerate(ports.outputs)
    )
    return f"""/* Compare the generated code with the trained model, on a desk, an emulator or a board. Generated: do not edit.

   Call {
        p
    }_run_tests(): it returns how many outputs differ, 0 if all is well. Where no other main exists, the main below
   makes that the exit status; leave it out with -D{m}_NO_MAIN. */
#include "model.h"

{externs}

int {p}_run_tests(void);

{_HELPERS_INPUT if ports.inputs else ""}{
        _differs(tolerance) if any(o.buffer.dtype == "float32" for o in ports.outputs) else ""
    }{_HELPERS_BYTES if any(o.buffer.dtype != "float32" for o in ports.outputs) else ""}int {p}_run_tests(void)
{{
    int failures = 0;
    {p}_init();
{writes}    {p}_run();
{checks}    return failures;
}}

#ifndef {m}_NO_MAIN
int main(void)
{{
    return {p}_run_tests();
}}
#endif
"""


def _cast(dtype: str) -> str:
    return "const float *" if dtype == "float32" else "const uint8_t *"


def _argument(dtype: str) -> str:
    return "" if dtype == "float32" else "(const uint8_t *)"


_HELPERS_INPUT = """static void copy_input(const void *from, void *to, uint32_t count)
{
    const uint8_t *source = (const uint8_t *)from;
    uint8_t *target = (uint8_t *)to;
    for (uint32_t i = 0; i < count; ++i) {
        target[i] = source[i];
    }
}

"""

_HELPERS_BYTES = """static int bytes_differ(const uint8_t *got, const uint8_t *expected, uint32_t count)
{
    for (uint32_t i = 0; i < count; ++i) {
        if (got[i] != expected[i]) {
            return 1;
        }
    }
    return 0;
}

"""


def _differs(tolerance: float) -> str:
    return f"""/* Whether some element differs by more than {tolerance:g} of the largest expected magnitude, or is no number where one is expected. */
static int differs(const float *got, const float *expected, uint32_t count)
{{
    float largest = 0.0f;
    for (uint32_t i = 0; i < count; ++i) {{
        const float magnitude = expected[i] < 0.0f ? -expected[i] : expected[i];
        largest = magnitude > largest && magnitude < 3.0e38f ? magnitude : largest;
    }}
    for (uint32_t i = 0; i < count; ++i) {{
        const float distance = got[i] < expected[i] ? expected[i] - got[i] : got[i] - expected[i];
        const int same = got[i] == expected[i] || (got[i] != got[i] && expected[i] != expected[i]);
        if (!same && !(distance <= largest * {tolerance:g}f)) {{
            return 1;
        }}
    }}
    return 0;
}}

"""

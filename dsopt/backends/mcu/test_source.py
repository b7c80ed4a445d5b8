"""Generate test_vectors.c and run_tests.c: the same test on a desk, an emulator and a board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsopt.backends.mcu.c_text import Names, array_definition, array_type
from dsopt.backends.mcu.header import Interface
from dsopt.backends.mcu.weights_source import special_numbers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """One run from the first values of the states: the inputs, and the outputs of the model as it was trained."""

    inputs: Sequence[Array]
    outputs: Sequence[Array]


def test_vectors_source(names: Names, sample: Sample) -> str:
    """Return the text of test_vectors.c."""
    arrays = []
    for kind, group in (("input", sample.inputs), ("expected", sample.outputs)):
        for number, values in enumerate(group):
            declaration = f"const {array_type(values)} {names.prefix}_test_{kind}_{number}[{values.size}]"
            arrays.append(f"extern {declaration};\n" + array_definition(declaration, values))
    head = "/* Inputs, and the outputs that the trained model gave for them. Generated: do not edit. */\n"
    return head + "#include <stdbool.h>\n#include <stdint.h>\n\n" + special_numbers(arrays) + "\n".join(arrays)


test_vectors_source.__test__ = False  # type: ignore[attr-defined]


def run_tests_source(names: Names, ports: Interface, tolerance: float) -> str:
    """Return the text of run_tests.c: model_run_tests() counts the outputs that differ; main() makes that the exit status."""
    p, m = names.prefix, names.macro
    is_float = [port.buffer.dtype == "float32" for port in ports.outputs]
    helpers = [_COPY] if ports.inputs else []
    helpers += [_FLOATS_DIFFER.replace("TOLERANCE", f"{tolerance:g}f")] if any(is_float) else []
    helpers += [_BYTES_DIFFER] if not all(is_float) else []
    declarations = [f"extern const {m}_INPUT_{n}_TYPE {p}_test_input_{n}[];" for n, _ in enumerate(ports.inputs)]
    declarations += [f"extern const {m}_OUTPUT_{n}_TYPE {p}_test_expected_{n}[];" for n, _ in enumerate(ports.outputs)]
    body = [f"copy({p}_test_input_{n}, {p}_input({n}), {m}_INPUT_{n}_BYTES);" for n, _ in enumerate(ports.inputs)]
    body.append(f"{p}_run();")
    body += [_check(names, number, each) for number, each in enumerate(is_float)]
    text = _RUN_TESTS.replace("MODEL", m).replace("model_", f"{p}_")
    text = text.replace("DECLARATIONS", "\n".join(declarations)).replace("HELPERS", "\n".join(helpers))
    return text.replace("BODY", "\n    ".join(body))


def _check(names: Names, number: int, is_float: bool) -> str:
    p, m = names.prefix, names.macro
    if is_float:
        got = f"(const float *){p}_output({number})"
        return f"failures += floats_differ({got}, {p}_test_expected_{number}, {m}_OUTPUT_{number}_ELEMENTS);"
    return f"failures += bytes_differ({p}_output({number}), {p}_test_expected_{number}, {m}_OUTPUT_{number}_BYTES);"


_RUN_TESTS = """/* Compare the generated code with the trained network, on a desk, an emulator or a board. Generated: do not edit.

   Call model_run_tests(): it returns how many outputs differ, 0 if all is well. Where no other main exists, the main below
   makes that the exit status; leave it out with -DMODEL_NO_MAIN. */
#include "model.h"

DECLARATIONS

int model_run_tests(void);

HELPERS
int model_run_tests(void)
{
    int failures = 0;
    model_init();
    BODY
    return failures;
}

#ifndef MODEL_NO_MAIN
int main(void)
{
    return model_run_tests();
}
#endif
"""

_COPY = """static void copy(const void *from, void *to, uint32_t count)
{
    const uint8_t *source = (const uint8_t *)from;
    uint8_t *target = (uint8_t *)to;
    for (uint32_t i = 0; i < count; ++i) {
        target[i] = source[i];
    }
}
"""

_BYTES_DIFFER = """static int bytes_differ(const void *got, const void *expected, uint32_t count)
{
    for (uint32_t i = 0; i < count; ++i) {
        if (((const uint8_t *)got)[i] != ((const uint8_t *)expected)[i]) {
            return 1;
        }
    }
    return 0;
}
"""

_FLOATS_DIFFER = """/* Whether some element differs by more than TOLERANCE times the largest expected magnitude. */
static int floats_differ(const float *got, const float *expected, uint32_t count)
{
    float largest = 0.0f;
    for (uint32_t i = 0; i < count; ++i) {
        const float magnitude = expected[i] < 0.0f ? -expected[i] : expected[i];
        largest = magnitude > largest && magnitude < 3.0e38f ? magnitude : largest;
    }
    for (uint32_t i = 0; i < count; ++i) {
        const float distance = got[i] < expected[i] ? expected[i] - got[i] : got[i] - expected[i];
        const int same = got[i] == expected[i] || (got[i] != got[i] && expected[i] != expected[i]);
        if (!same && !(distance <= largest * TOLERANCE)) {
            return 1;
        }
    }
    return 0;
}
"""

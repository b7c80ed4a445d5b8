"""The C printer: literals, parentheses, declarations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.c_source import c_functions, float_literal
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.tvm_adapter import constant, tirx


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_literal_reads_back_as_the_same_float(value: float) -> None:
    text = float_literal(value)
    assert text.endswith("f")
    assert "." in text or "e" in text
    assert np.float32(text[:-1]) == np.float32(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("inf"), "DSOPT_INFINITY"), (float("-inf"), "(-DSOPT_INFINITY)"), (float("nan"), "DSOPT_NAN")],
)
def test_what_is_no_number_is_a_macro(value: float, text: str) -> None:
    assert float_literal(value) == text


def printed(write: object) -> str:
    """Print a kernel that reads x and z and writes y, four floats each."""
    k = KernelBuilder("kernel")
    x, z = (k.read(name, Buffer(name, (4,), "float32", "input")) for name in "xz")
    y = k.write("y", Buffer("y", (4,), "float32", "temp"))
    with k.grid(i=4) as (i,):
        write(k, x, z, y, i)  # type: ignore[operator]
    return c_functions({"kernel": k.build()})["kernel"].text("kernel")


EXPRESSIONS = {
    "x[i] - (z[i] - 1.0f)": lambda a, b: a - (b - constant(1, "float32")),
    "x[i] - z[i] - 1.0f": lambda a, b: a - b - constant(1, "float32"),
    "x[i] * (z[i] + 2.0f)": lambda a, b: a * (b + constant(2, "float32")),
    "x[i] / (z[i] * 2.0f)": lambda a, b: a / (b * constant(2, "float32")),
    "x[i] < z[i] ? x[i] : 0.5f": lambda a, b: tirx.Select(a < b, a, constant(0.5, "float32")),
    "dsopt_max_float32(x[i], 0.0f)": lambda a, b: tirx.max(a, constant(0, "float32")),
    "dsopt_expf(0.0f - x[i])": lambda a, b: tirx.exp(constant(0, "float32") - a),
    "(float)(x[i] < z[i] && z[i] < 1.0f)": lambda a, b: tirx.Cast("float32", tirx.all(a < b, b < constant(1, "float32"))),
    "(float)((x[i] < z[i]) != (z[i] < 1.0f))": lambda a, b: tirx.Cast("float32", tirx.NE(a < b, b < constant(1, "float32"))),
    "(float)(int32_t)x[i]": lambda a, b: tirx.Cast("float32", tirx.Cast("int32", a)),
}  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_have_the_parentheses_they_need_and_no_more(text: str) -> None:
    function = EXPRESSIONS[text]
    assert f"y[i] = {text};" in printed(lambda k, x, z, y, i: k.store(y, function(x[i], z[i]), i))


def test_a_local_is_declared_where_it_gets_its_first_value() -> None:
    def write(k: KernelBuilder, x: object, z: object, y: object, i: object) -> None:
        total = k.local("total", 0.0, "float32")
        with k.loop("j", 0, 4) as j:
            k.store(total, total[0] + x[j])  # type: ignore[index]
        k.store(y, total[0], i)

    text = printed(write)
    assert "        float total = 0.0f;\n" in text
    assert "            total += x[j];\n" in text
    assert "(void)z;" in text
    assert text.startswith(
        "static void kernel(const float *restrict x, const float *restrict z, float *restrict y)\n{\n"
    )


def test_names_in_disjoint_blocks_are_reused_and_nested_ones_are_not() -> None:
    def write(k: KernelBuilder, x: object, z: object, y: object, i: object) -> None:
        for _ in range(2):
            with k.loop("j", 0, 4) as j, k.loop("j", 0, 2):
                k.store(y, x[j], i)  # type: ignore[index]

    text = printed(write)
    assert text.count("for (int32_t j = 0; j < 4; ++j)") == 2
    assert text.count("for (int32_t j2 = 0; j2 < 2; ++j2)") == 2

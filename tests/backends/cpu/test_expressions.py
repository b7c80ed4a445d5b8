"""Sizes computed by ONNX nodes equal the same expression in Python."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import CONVERTERS
from tests.backends.cpu.harness import executor_of, feeds, program_of

atoms = st.sampled_from(["n", "m", "1", "2", "3", "7"])
operators = st.sampled_from(["+", "*", "//", "%", "-"])
expressions = st.recursive(
    atoms, lambda inner: st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})"), max_leaves=5
)


@given(expressions, st.integers(2, 9), st.integers(2, 9))
def test_an_expression_over_dims_is_computed_as_python_does(text: str, n: int, m: int) -> None:
    try:
        expected = eval(text, {"n": n, "m": m})
    except ZeroDivisionError:
        return
    if isinstance(expected, int) and "n" not in text and "m" not in text:
        return
    inputs = (torch.zeros(4), torch.zeros(5))
    program = program_of(
        lambda a, b: (a.sum() + b.sum()).to(torch.int64).reshape(1), inputs, (torch.zeros(6), torch.zeros(7))
    )
    names = {program.signature.inputs[0].name: "n", program.signature.inputs[1].name: "m"}
    dims = dict(zip((shape[0] for shape in map(program.shape, program.inputs)), names.values(), strict=True))
    written = text
    for dim, letter in dims.items():
        written = written.replace(letter, str(dim))

    def instead(cx: Emitter, x: torch.fx.Node, sizes: list[int]) -> object:
        from dsopt.backends.cpu.expressions import SizeTerm, evaluate_text

        terms = {
            str(cx.program.size(s)): SizeTerm(cx, cx.measured(cx.value(i), 0))
            for i in cx.program.inputs
            for s in cx.shape(i)
        }
        return cx.sizes([evaluate_text(written, terms)])

    executor_of(program)
    original = CONVERTERS["aten.reshape.default"]
    CONVERTERS["aten.reshape.default"] = instead
    try:
        result = executor_of(program).run(feeds(program, (torch.zeros(n), torch.zeros(m))))
    finally:
        CONVERTERS["aten.reshape.default"] = original
    assert result["output"].tolist() == [expected]

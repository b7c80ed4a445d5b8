"""Sizes over dim names mean what Python's arithmetic means, and nothing but arithmetic is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.dims import dim_names, evaluate, solve


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (7, 7), ("batch", 5), ("2*batch", 10), ("batch*seq + 1", 36), ("(seq-1)//2+1", 4), ("-batch+8", 3),
        ("seq%4", 3), ("batch**2", 25), ("seq/7", 1), ("Max(batch, seq)", 7), ("Min(batch,seq,3)", 3),
        ("Mod(seq,4)", 3), ("floor(seq/2)", 3), ("ceiling(seq/2)", 4), ("2*((batch+1)//2)", 6), ("-seq//2", -4),
    ],
)  # fmt: skip
def test_sizes_are_evaluated(size: int | str, value: int) -> None:
    assert evaluate(size, {"batch": 5, "seq": 7}) == value


@pytest.mark.parametrize(
    "text",
    ["", "1+", "(1", "a b", "a;b", "a.b", "a[0]", "__import__('os')", "print(1)", "1e9", "'a'", "a==b", "9**9**9", "2**65", "1/0", "1/2",
     "(" * 200 + "1" + ")" * 200, "1" + "+1" * 900, "a" * 3000, "-" * 200 + "1", "2**64*2**64", "λ", "Mod(1)", "lambda:1"],
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        evaluate(text, {"a": 1, "b": 1})


def test_a_dim_that_is_not_given_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        evaluate("batch", {})


def test_names_are_those_of_dims_and_not_of_functions() -> None:
    assert dim_names("Max(batch, 2*seq)") == {"batch", "seq"}
    assert dim_names(4) == frozenset()


@pytest.mark.parametrize(
    ("size", "wanted", "given_dims", "answer"),
    [
        ("batch", 4, {}, {"batch": 4}), ("2*batch+1", 9, {}, {"batch": 4}), ("2*batch", 9, {}, {}),
        ("batch*seq", 12, {"seq": 3}, {"batch": 4}),
        ("batch*seq", 12, {}, {}), ("seq//2", 7, {}, {}),
        ("batch-8", -20, {}, {}), (5, 5, {}, {}), ("batch*0", 0, {}, {}),
    ],
)  # fmt: skip
def test_a_dim_is_solved_only_where_one_value_fits(
    size: int | str, wanted: int, given_dims: dict[str, int], answer: dict[str, int]
) -> None:
    assert solve(size, wanted, given_dims) == answer


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["batch", "seq"]),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(
        lambda each: f"({''.join(each)})"
    ),
    max_leaves=12,
)


@given(EXPRESSIONS, st.integers(1, 50), st.integers(1, 50))
def test_expressions_mean_what_python_says(text: str, batch: int, seq: int) -> None:
    dims = {"batch": batch, "seq": seq}
    try:
        wanted = eval(text, {}, dict(dims))  # the oracle; the text was made above
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            evaluate(text, dims)
    else:
        assert evaluate(text, dims) == wanted


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        dim_names(text)
    except ValueError as error:
        assert str(error)

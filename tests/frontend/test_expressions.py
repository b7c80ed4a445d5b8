from __future__ import annotations

import warnings

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from dsopt.errors import ReadError
from dsopt.frontend.expressions import checked_expression

s0, s77, u1 = (sympy.Symbol(name, integer=True, positive=True) for name in ("s0", "s77", "u1"))
SIZES = [
    s0,
    2 * s0 + 1,
    s0 * s77 - 3,
    s0**2,
    FloorDiv(s0 + 1, 2),
    Mod(s0, 4),
    sympy.Max(1, s0 - u1),
    sympy.Min(s0, 8),
    sympy.Eq(s0, 3),
    sympy.Ne(u1, 0),
    s0 <= 10,
    sympy.And(s0 > 1, u1 < 4),
    sympy.Float(1.5) * s0,
    sympy.Rational(1, 2) * s0,
    sympy.Integer(-7),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spell", [str, sympy.srepr])
def test_sizes_as_sympy_writes_them_are_read_and_keep_their_meaning(size: sympy.Expr, spell: object) -> None:
    text = spell(size)  # type: ignore[operator]
    names = {"FloorDiv": FloorDiv, "Mod": Mod, **{str(s): s for s in (s0, s77, u1)}}
    assert sympy.sympify(checked_expression(text), locals=names) == sympy.sympify(text, locals=names)


ATTACKS = [
    "__import__('os').system('id')",
    "().__class__",
    "s0.__class__.__mro__",
    "eval('1')",
    "lambda: 1",
    "[s0 for s0 in (1,)]",
    "s0 if 1 else s1",
    "s0 and s1",
    "(s0 := 1)",
    "f'{s0}'",
    "'s0'",
    "S(1)",
    "Symbol('__import__')",
    "Symbol('s0', integer=print(1))",
    "Symbol('s0', **{})",
    "Symbol(s0)",
    "Symbol('s0', evil=True)",
    "Float('__import__(1)')",
    "Float('1', precision=10**9)",
    "Integer(Pow(9, 9))",
    "Function('f')(s0)",
    "init_printing()",
    "preview(s0)",
    "sqrt(s0)",
    "Max(*s0)",
    "Max(key=s0)",
    "s0[0]",
    "s0; s1",
    "s0\ns1",
    "#",
    "",
    "   ",
    "batch",
    "s",
    "s1234567",
    "E",
    "N",
    "\x00",
    "١",
    "s0 @ s1",
    "s0 << 2",
    "~s0 ^ s1",
    "s0!",
    "1j",
    "...",
    "None",
    "b'1'",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_what_is_not_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ReadError) as caught:
        checked_expression(text)
    assert caught.value.code == "DS0145"


ENDLESS = [
    "9**9**9**9",
    "9**9999999",
    "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
    "Pow(Pow(s0, 64), 64)",
    "2**s0",
    "LShift(1, 4611686018427387904)",
    "s0**100000",
    "(s0 + s1 + s2 + s3 + s4)**60",
    "*".join(f"(s{i} + s{i + 1})" for i in range(40)),
    "Mul(" + ", ".join(f"Add(s{i}, s{i + 1})" for i in range(40)) + ")",
    "(" * 300 + "s0" + ")" * 300 + "**2" * 2,
    "-" * 500 + "s0",
    "+".join(["s0"] * 9000),
    "Max(" * 100 + "s0" + ")" * 100,
    "99999999999999999999999999999999",
    "1" * 5000,
]


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:30])
def test_what_would_not_end_is_refused_at_once(text: str) -> None:
    with pytest.raises(ReadError):
        checked_expression(text)


def test_the_message_names_the_text_and_the_grammar() -> None:
    with pytest.raises(ReadError) as caught:
        checked_expression("__import__('os').system('id')")
    assert str(caught.value).splitlines()[:2] == [
        "DS0145: the symbolic size \"__import__('os').system('id')\" was refused: call is not part of a size",
        "  why: Sizes may be integers, symbols such as s0, + - * // % ** and functions such as Max, Mod and FloorDiv; "
        "anything else could run code when it is evaluated.",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="s01+-*/%() ,.ax'\"=_[]<>&|~MPowSymbl", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            once = checked_expression(text)
        except ReadError:
            return
        assert checked_expression(once) == once

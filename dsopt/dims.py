"""Sizes as expressions over the names of varying dims: "batch", "2*batch", "(seq-1)//2+1".

    size     := term (("+" | "-") term)*
    term     := factor (("*" | "//" | "/" | "%") factor)*
    factor   := "-" factor | atom ("**" factor)?
    atom     := integer | name | name "(" size ("," size)* ")" | "(" size ")"

The text is parsed and never handed to Python, because artifacts come from strangers. Standard library only: the compiler and the
runtime both use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor, trunc
from typing import Final

Size = int | str
"""A fixed size, or an expression over dim names."""

MAX_CHARACTERS: Final = 2000
MAX_DEPTH: Final = 50
_LARGEST: Final = 1 << 96

_TOKEN = re.compile(r"\s*(?:(\d{1,25})(?![\w.])|([A-Za-z_]\w{0,255})|(//|\*\*|[-+*/%(),]))")

_FUNCTIONS: dict[str, tuple[int, Callable[..., Fraction]]] = {
    "Max": (-1, max),
    "Min": (-1, min),
    "Mod": (2, lambda a, b: a - b * floor(a / b)),
    "PythonMod": (2, lambda a, b: a - b * floor(a / b)),
    "FloorDiv": (2, lambda a, b: Fraction(floor(a / b))),
    "CleanDiv": (2, lambda a, b: a / b),
    "CeilDiv": (2, lambda a, b: Fraction(ceil(a / b))),
    "IntTrueDiv": (2, lambda a, b: a / b),
    "FloatTrueDiv": (2, lambda a, b: a / b),
    "Abs": (1, abs),
    "floor": (1, lambda a: Fraction(floor(a))),
    "FloorToInt": (1, lambda a: Fraction(floor(a))),
    "ceiling": (1, lambda a: Fraction(ceil(a))),
    "CeilToInt": (1, lambda a: Fraction(ceil(a))),
    "TruncToInt": (1, lambda a: Fraction(trunc(a))),
    "ToFloat": (1, lambda a: a),
    "Identity": (1, lambda a: a),
}
"""How torch spells the arithmetic of sizes -> (number of arguments, -1 for any; meaning)."""

_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: Fraction(floor(a / b)),
    "%": lambda a, b: a - b * floor(a / b),
}


@dataclass(frozen=True)
class _Term:
    """A node of a parsed size: a number, a name, or an operator or function on its parts."""

    head: str
    parts: tuple[_Term, ...] = ()
    number: int = 0


def evaluate(size: Size, dims: Mapping[str, int]) -> int:
    """Return a size for given dims. Raises KeyError for a dim not given, ValueError for what is no size."""
    if isinstance(size, int):
        return size
    try:
        value = _value(_parse(size), dims)
    except ZeroDivisionError as error:
        raise ValueError(f"{size!r} divides by zero") from error
    if value.denominator != 1:
        raise ValueError(f"{size!r} is {value}, which is no whole number")
    return int(value)


def dim_names(size: Size) -> frozenset[str]:
    """Return the dims that a size depends on. Raises ValueError for what is no size."""
    return frozenset() if isinstance(size, int) else frozenset(_names(_parse(size)))


def solve(size: Size, wanted: int, dims: Mapping[str, int]) -> dict[str, int]:
    """Return {dim: value} for the one dim not given, where just one value makes `size` equal `wanted`; else nothing."""
    unknown = sorted(dim_names(size) - set(dims))
    if len(unknown) != 1:
        return {}
    try:
        at_large = [evaluate(size, {**dims, unknown[0]: value}) for value in (1 << 20, 1 << 21)]
    except ValueError:
        return {}
    slope = Fraction(at_large[1] - at_large[0], 1 << 20)
    if slope == 0:
        return {}
    guess = (wanted - at_large[0]) / slope + (1 << 20)
    if guess.denominator != 1 or guess < 0:
        return {}
    try:
        # Rounding, as in seq//2, gives one size to several values, and then none of them is known.
        near = [evaluate(size, {**dims, unknown[0]: int(guess) + step}) for step in (-1, 0, 1)]
    except ValueError:
        return {}
    return {unknown[0]: int(guess)} if near[1] == wanted and wanted not in (near[0], near[2]) else {}


def _value(term: _Term, dims: Mapping[str, int]) -> Fraction:
    if term.head == "number":
        return Fraction(term.number)
    if term.head == "name":
        return Fraction(dims[term.parts[0].head])
    parts = [_value(part, dims) for part in term.parts]
    if term.head == "negate":
        value = -parts[0]
    elif term.head == "**":
        value = _power(*parts)
    elif term.head in _BINARY:
        value = _BINARY[term.head](*parts)
    else:
        value = Fraction(_FUNCTIONS[term.head][1](*parts))
    if max(abs(value.numerator), value.denominator) > _LARGEST:
        raise ValueError("a size is too large")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > 64:
        raise ValueError(f"a size has the exponent {exponent}; whole ones of at most 64 are known")
    return base ** int(exponent)


def _names(term: _Term) -> set[str]:
    if term.head == "name":
        return {term.parts[0].head}
    return {name for part in term.parts for name in _names(part)}


@lru_cache(maxsize=4096)
def _parse(text: str) -> _Term:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a size has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[:80]!r} is no size at {text[position : position + 20]!r}")
        kind = "number" if match[1] else "name" if match[2] else "sign"
        tokens.append((kind, match[1] or match[2] or match[3]))
        position = match.end()
    parser = _Parser(text, tokens)
    term = parser.sum(0)
    if parser.peek():
        raise parser.refused()
    return term


class _Parser:
    """Read tokens from the left; each method reads one rule of the grammar above."""

    def __init__(self, text: str, tokens: list[tuple[str, str]]) -> None:
        self._text, self._tokens, self._next = text, tokens, 0

    def peek(self) -> str:
        """Return the next token, "" at the end."""
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def refused(self) -> ValueError:
        """Return the error for a token that does not fit."""
        return ValueError(f"{self._text[:80]!r} is no size: unexpected {self.peek() or 'end'!r}")

    def sum(self, depth: int) -> _Term:
        """Read a sum."""
        return self._chain(("+", "-"), self.product, depth)

    def product(self, depth: int) -> _Term:
        """Read a product."""
        return self._chain(("*", "//", "/", "%"), self.factor, depth)

    def factor(self, depth: int) -> _Term:
        """Read a signed atom or a power."""
        if depth > MAX_DEPTH:
            raise ValueError(f"{self._text[:80]!r} is nested more than {MAX_DEPTH} deep")
        if self._accept("-"):
            return _Term("negate", (self.factor(depth + 1),))
        base = self._atom(depth + 1)
        return _Term("**", (base, self.factor(depth + 1))) if self._accept("**") else base

    def _chain(self, signs: tuple[str, ...], rule: Callable[[int], _Term], depth: int) -> _Term:
        term = rule(depth)
        # A chain leans to the left, so its length is the depth of the tree that is walked later.
        for _ in range(4 * MAX_DEPTH):
            if self.peek() not in signs:
                return term
            sign = self._take()
            term = _Term(sign, (term, rule(depth)))
        raise ValueError(f"{self._text[:80]!r} has too many terms")

    def _atom(self, depth: int) -> _Term:
        kind = self._tokens[self._next][0] if self.peek() else ""
        if kind == "number":
            return _Term("number", number=int(self._take()))
        if kind == "name":
            name = self._take()
            return self._call(name, depth) if self.peek() == "(" else _Term("name", (_Term(name),))
        if self._accept("("):
            inner = self.sum(depth + 1)
            self._expect(")")
            return inner
        raise self.refused()

    def _call(self, name: str, depth: int) -> _Term:
        if name not in _FUNCTIONS:
            raise ValueError(f"{self._text[:80]!r} calls {name[:40]!r}; known: {', '.join(_FUNCTIONS)}")
        self._expect("(")
        parts = [self.sum(depth + 1)]
        while self._accept(","):
            parts.append(self.sum(depth + 1))
        self._expect(")")
        if _FUNCTIONS[name][0] not in (-1, len(parts)):
            raise ValueError(f"{self._text[:80]!r} calls {name} with {len(parts)} arguments")
        return _Term(name, tuple(parts))

    def _take(self) -> str:
        token = self.peek()
        self._next += 1
        return token

    def _accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self._next += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self.refused()

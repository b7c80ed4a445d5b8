"""The grammar of symbolic sizes in an exported program: arithmetic over integers and symbols, and nothing else.

Torch hands these texts to sympy.sympify, which evaluates Python. What passes here holds only literals, symbols and the
arithmetic functions below, and cannot grow without bound when it is evaluated or expanded.
"""

from __future__ import annotations

import ast
import re

from dsopt.errors import ReadError

SYMBOL = re.compile(r"(?:s|u|zf|zuf|ps|tmp|i)\d{1,6}")
_NUMBER = re.compile(r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,4})?")
_CONSTANTS = frozenset({"true", "false", "True", "False", "oo", "int_oo"})
_ASSUMPTIONS = frozenset(
    [
        "integer",
        "positive",
        "nonnegative",
        "negative",
        "nonpositive",
        "real",
        "finite",
        "rational",
        "extended_real",
        "commutative",
        "zero",
        "nonzero",
        "complex",
        "hermitian",
        "imaginary",
        "infinite",
        "extended_positive",
        "extended_nonnegative",
    ]
)
_FUNCTIONS = frozenset(
    [
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "Max",
        "Min",
        "Abs",
        "Rational",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "PythonMod",
        "ModularIndexing",
        "Where",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "RoundToInt",
        "TruncToFloat",
        "RoundDecimal",
        "ToFloat",
        "IntTrueDiv",
        "FloatTrueDiv",
        "PowByNatural",
        "FloatPow",
        "Identity",
        "LShift",
        "RShift",
        "floor",
        "ceiling",
        "Equality",
        "Unequality",
        "GreaterThan",
        "LessThan",
        "StrictGreaterThan",
        "StrictLessThan",
        "Eq",
        "Ne",
        "Ge",
        "Le",
        "Gt",
        "Lt",
        "And",
        "Or",
        "Not",
    ]
)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
_UNARY = (ast.UAdd, ast.USub, ast.Invert)
_COMPARE = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)

MAX_CHARACTERS = 20_000
MAX_DEPTH = 60
MAX_TERMS = 4096
MAX_EXPONENT = 64
_MAX_INTEGER = 2**64


def checked_expression(text: str) -> str:
    """Return the expression `text` in a normal spelling.

    Both spellings torch writes are read: `2*s0 + 1` and `Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(1))`.
    Raises ReadError DS0145 for anything outside of the grammar, before anything is evaluated.
    """
    if len(text) > MAX_CHARACTERS:
        raise _refused(text, f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, "it is not an expression") from error
    _terms(tree.body, text, 0)
    return ast.unparse(tree)


def _refused(text: str, why: str) -> ReadError:
    shown = "".join(char if char.isprintable() else "?" for char in text[:120])
    return ReadError(
        "DS0145",
        f"the symbolic size {shown!r} was refused: {why}",
        why="Sizes may be integers, symbols such as s0, + - * // % ** and functions such as Max, Mod and FloorDiv; "
        "anything else could run code when it is evaluated.",
        fix="Export the model again with torch.export.export and torch.export.save.",
    )


def _terms(node: ast.expr, text: str, depth: int) -> int:
    """Check one node and return how many terms its expansion into a sum would have."""
    if depth > MAX_DEPTH:
        raise _refused(text, f"it is nested more than {MAX_DEPTH} deep")
    count = 1
    if isinstance(node, ast.Constant):
        _check_constant(node, text)
    elif isinstance(node, ast.Name):
        if node.id not in _CONSTANTS and not SYMBOL.fullmatch(node.id):
            raise _refused(text, f"{node.id[:40]!r} is not a symbol")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, _UNARY):
        count = _terms(node.operand, text, depth + 1)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, _BINARY):
        count = _binary_terms(node, text, depth)
    elif isinstance(node, ast.Compare) and all(isinstance(op, _COMPARE) for op in node.ops):
        count = sum(_terms(part, text, depth + 1) for part in [node.left, *node.comparators])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        count = _call_terms(node, node.func.id, text, depth)
    else:
        raise _refused(text, f"{type(node).__name__.lower()} is not part of a size")
    if count > MAX_TERMS:
        raise _refused(text, f"it expands to more than {MAX_TERMS:,} terms")
    return count


def _check_constant(node: ast.Constant, text: str) -> None:
    if isinstance(node.value, (bool, float)):
        return
    if not isinstance(node.value, int) or abs(node.value) > _MAX_INTEGER:
        raise _refused(text, f"{str(node.value)[:40]!r} is not a size")


def _binary_terms(node: ast.BinOp, text: str, depth: int) -> int:
    left, right = _terms(node.left, text, depth + 1), _terms(node.right, text, depth + 1)
    if isinstance(node.op, ast.Pow):
        return _power_terms(node.left, left, node.right, text)
    return left * right if isinstance(node.op, (ast.Mult, ast.BitAnd)) else left + right


def _call_terms(node: ast.Call, name: str, text: str, depth: int) -> int:
    if name in ("Symbol", "Integer", "Float"):
        _check_atom(node, name, text)
        return 1
    if name not in _FUNCTIONS:
        raise _refused(text, f"{name[:40]!r} is not a known function")
    if node.keywords:
        raise _refused(text, f"{name} takes no keywords")
    counts = [_terms(argument, text, depth + 1) for argument in node.args]
    if name in _POWERS and len(node.args) == 2:
        return _power_terms(node.args[0], counts[0], node.args[1], text)
    product = 1
    for count in counts:
        product = min(product * count, MAX_TERMS + 1)
    return product if name in ("Mul", "And") else max(1, sum(counts))


def _power_terms(base: ast.expr, base_terms: int, exponent: ast.expr, text: str) -> int:
    """Return the terms of a power. Its exponent is a literal, and powers of powers are refused: 9**9**9 never ends."""
    value = _literal(exponent)
    if value is None or abs(value) > MAX_EXPONENT:
        raise _refused(text, f"an exponent must be a number of at most {MAX_EXPONENT}")
    if any(_is_power(inner) for inner in ast.walk(base)):
        raise _refused(text, "a power of a power is not a size")
    return base_terms if abs(value) <= 1 else min(base_terms ** int(abs(value) + 1), MAX_TERMS + 1)


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS


def _literal(node: ast.expr) -> float | None:
    """Return the number that a literal, a signed literal, Integer(n), Float(x) or Rational(n, m) stands for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        numbers = [_literal(argument) for argument in node.args]
        if node.func.id == "Rational" and len(numbers) == 2 and None not in numbers and numbers[1]:
            return float(numbers[0] or 0.0) / numbers[1]
        return numbers[0] if node.func.id in ("Integer", "Float") else None
    return None


def _check_atom(node: ast.Call, name: str, text: str) -> None:
    first = node.args[0] if len(node.args) == 1 else None
    if name == "Integer":
        if node.keywords or first is None or _literal(first) is None:
            raise _refused(text, "Integer takes one number")
        _terms(first, text, MAX_DEPTH - 1)
        return
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        raise _refused(text, f"{name} takes one text")
    pattern, keywords = (SYMBOL, _ASSUMPTIONS) if name == "Symbol" else (_NUMBER, frozenset({"precision"}))
    if not pattern.fullmatch(first.value):
        raise _refused(text, f"{first.value[:40]!r} is not a {'symbol' if name == 'Symbol' else 'number'}")
    for keyword in node.keywords:
        is_plain = isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, (bool, int))
        if keyword.arg not in keywords or not is_plain or int(keyword.value.value) > 4096:  # type: ignore[attr-defined]
            raise _refused(text, f"{name} takes no {keyword.arg!r} of that kind")

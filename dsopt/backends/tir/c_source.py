"""Print lowered loop nests as C99: a static function per kernel, raw pointers, indices as written in the nest.

TVM's own C generator targets its packed calling convention, writes floats with seven digits and flattens every index into
sums of products; code that people must debug on a board is printed here instead, from the same lowered functions.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, Stmt, TirBuffer, analyzer, lower_blocks

C_TYPES = {"float32": "float", "int64": "int64_t", "int32": "int32_t", "int16": "int16_t", "int8": "int8_t", "uint8": "uint8_t",
           "bool": "bool"}  # fmt: skip

_INFIX = {
    "Mul": ("*", 12), "Div": ("/", 12), "Mod": ("%", 12), "Add": ("+", 11), "Sub": ("-", 11), "LT": ("<", 9), "LE": ("<=", 9),
    "GT": (">", 9), "GE": (">=", 9), "EQ": ("==", 8), "NE": ("!=", 8), "And": ("&&", 4), "Or": ("||", 3),
    "BitwiseAnd": ("&", 7), "BitwiseOr": ("|", 5), "BitwiseXor": ("^", 6), "LShift": ("<<", 10), "RShift": (">>", 10),
}  # fmt: skip
_INFIX_CALLS = {
    "bitwise_and": ("&", 7), "bitwise_or": ("|", 5), "bitwise_xor": ("^", 6), "shift_left": ("<<", 10), "shift_right": (">>", 10),
}  # fmt: skip
_UNARY, _PRIMARY, _TERNARY = 13, 14, 2

_MATH = {
    "exp": "expf", "log": "logf", "log1p": "log1pf", "tanh": "tanhf", "erf": "erff", "sqrt": "sqrtf", "sin": "sinf", "cos": "cosf",
    "pow": "powf", "floor": "floorf", "ceil": "ceilf", "trunc": "truncf", "nearbyint": "rintf", "fabs": "fabsf", "atan2": "atan2f",
}  # fmt: skip
_EXTERN = ("expm1f", "fmodf", "powf")


@dataclass(frozen=True)
class CFunction:
    """A printed function: its parameters and body, both without its name, and the helpers of dsopt_math.h that it calls."""

    parameters: tuple[str, ...]
    body: str
    helpers: frozenset[str]

    def head(self, name: str, attributes: str = "static") -> str:
        """Return "static void name(...)", broken into a line for each parameter if it is long."""
        start = f"{attributes} void {name}(".lstrip()
        line = start + (", ".join(self.parameters) or "void") + ")"
        return line if len(line) <= 120 else start + "\n    " + ",\n    ".join(self.parameters) + ")"

    def text(self, name: str, attributes: str = "static") -> str:
        """Return the definition under a name."""
        return f"{self.head(name, attributes)}\n{self.body}"


def c_functions(functions: dict[str, PrimFunc], overlapping: Container[str] = ()) -> dict[str, CFunction]:
    """Lower and print S-TIR functions. Names of parameters are those of the buffers; inputs are const.

    All parameters are restrict but those of the functions named in `overlapping`, whose results may lie over their operands.
    """
    lowered = lower_blocks(functions)
    return {name: _Printer(each, name not in overlapping).print() for name, each in lowered.items()}


def float_literal(value: float) -> str:
    """Return the shortest C literal that reads back as the same float32."""
    rounded = np.float32(value)
    if np.isnan(rounded):
        return "DSOPT_NAN"
    if np.isinf(rounded):
        return "DSOPT_INFINITY" if rounded > 0 else "(-DSOPT_INFINITY)"
    text = str(rounded)
    return (text if "." in text or "e" in text else text + ".0") + "f"


@dataclass
class _Scope:
    """One block of C: its statements, the names declared in it, and the scalars that are allocated but not declared yet."""

    lines: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    pending: dict[str, str] = field(default_factory=dict)


class _Printer:
    def __init__(self, function: PrimFunc, is_restrict: bool) -> None:
        self.function = function
        self.qualifier = "restrict " if is_restrict else ""
        self.helpers: set[str] = set()
        self.stored: set[str] = set()
        self.used: set[str] = set()
        self._names: dict[object, str] = {}
        self._scopes: list[_Scope] = [_Scope()]
        self._analyzer = analyzer()
        self._depth = 1

    def print(self) -> CFunction:
        parameters = [(self._name(p), C_TYPES[str(p.dtype)]) for p in self.function.params]
        self._statement(self.function.body)
        body = self._scopes[0].lines
        unused = [f"    (void){name};" for name, _ in parameters if name not in self.used]
        written = self.stored | {str(name) for name in (self.function.attrs or {}).get("dsopt.written", ())}
        declared = [f"{'' if n in written else 'const '}{kind} *{self.qualifier}{n}" for n, kind in parameters]
        return CFunction(tuple(declared), "\n".join(["{", *unused, *body, "}", ""]), frozenset(self.helpers))

    # ---- names ----

    def _name(self, var: object) -> str:
        if var not in self._names:
            base = str(var.name)  # type: ignore[attr-defined]
            name, number = base, 2
            while any(name in scope.names for scope in self._scopes):
                name, number = f"{base}{number}", number + 1
            self._scopes[-1].names.add(name)
            self._names[var] = name
        return self._names[var]

    # ---- statements ----

    def _line(self, text: str) -> None:
        self._scopes[-1].lines.append("    " * self._depth + text)

    def _statement(self, stmt: Stmt) -> None:
        kind = type(stmt).__name__
        handler: Callable[[Stmt], None] | None = getattr(self, f"_{kind.lower()}", None)
        if handler is None:
            raise NotImplementedError(f"no C form of the statement {kind}")
        handler(stmt)

    def _seqstmt(self, stmt: Stmt) -> None:
        for each in stmt.seq:
            self._statement(each)

    @contextmanager
    def _braces(self) -> Iterator[_Scope]:
        """Open a block of C; scalars not declared yet are declared before it, since it may hold their first use."""
        outer = self._scopes[-1]
        self._declare_all(outer)
        inner = _Scope()
        self._scopes.append(inner)
        self._depth += 1
        yield outer
        self._depth -= 1
        self._scopes.pop()
        outer.lines.extend(inner.lines)
        self._line("}")

    def _declare_all(self, scope: _Scope) -> None:
        for name, kind in scope.pending.items():
            scope.lines.append("    " * self._depth + f"{kind} {name};")
        scope.pending.clear()

    def _for(self, stmt: Stmt) -> None:
        kind = C_TYPES[str(stmt.loop_var.ty.dtype)]
        low = self._expression(stmt.min)
        high = self._expression(self._analyzer.simplify(stmt.min + stmt.extent), 10)
        with self._braces() as outer:
            index = self._name(stmt.loop_var)
            head = f"for ({kind} {index} = {low}; {index} < {high}; ++{index}) {{"
            outer.lines.append("    " * (self._depth - 1) + head)
            self._statement(stmt.body)

    def _ifthenelse(self, stmt: Stmt) -> None:
        condition = self._expression(stmt.condition)
        with self._braces() as outer:
            outer.lines.append("    " * (self._depth - 1) + f"if ({condition}) {{")
            self._statement(stmt.then_case)
        if stmt.else_case is not None:
            with self._braces() as outer:
                outer.lines[-1] += " else {"
                self._statement(stmt.else_case)

    def _bind(self, stmt: Stmt) -> None:
        dtype = str(stmt.var.ty.dtype)
        self._line(f"const {C_TYPES[dtype]} {self._name(stmt.var)} = {self._narrow(stmt.value, dtype)};")

    def _allocbuffer(self, stmt: Stmt) -> None:
        name, kind = self._name(stmt.buffer), C_TYPES[str(stmt.buffer.dtype)]
        if _is_scalar(stmt.buffer):
            self._scopes[-1].pending[name] = kind
            return
        extent = " * ".join(str(int(size)) for size in stmt.buffer.shape)
        self._line(f"{kind} {name}[{extent}];")

    def _bufferstore(self, stmt: Stmt) -> None:
        name = self._name(stmt.buffer)
        value = self._narrow(stmt.value, str(stmt.buffer.dtype))
        self.stored.add(name)
        self.used.add(name)
        pending = self._scopes[-1].pending
        if name in pending:
            self._line(f"{pending.pop(name)} {name} = {value};")
            return
        place = self._place(stmt.buffer, stmt.indices)
        if value.startswith(place + " + ") and type(stmt.value).__name__ == "Add":
            self._line(f"{place} += {value[len(place) + 3 :]};")
            return
        self._line(f"{place} = {value};")

    def _narrow(self, expr: Expr, dtype: str) -> str:
        """Return a value to be stored; C computes in int at least, so a narrower result is cast back by name."""
        plain = type(expr).__name__ in ("Cast", "IntImm", "TensorLoad", "BufferLoad", "Var")
        if dtype in ("int8", "int16", "uint8") and not plain:
            return f"({C_TYPES[dtype]}){self._expression(expr, _UNARY)}"
        return self._expression(expr)

    def _evaluate(self, stmt: Stmt) -> None:
        if type(stmt.value).__name__ != "IntImm":
            self._line(f"{self._expression(stmt.value)};")

    # ---- expressions ----

    def _place(self, target: TirBuffer, indices: Sequence[Expr]) -> str:
        """Return `buffer[(i * 3 + j) * 8 + k]`, or the bare name of a scalar."""
        name = self._name(target)
        self.used.add(name)
        if _is_scalar(target):
            return name
        text, level = "", _PRIMARY
        for extent, index in zip(target.shape, indices, strict=True):
            if text and int(extent) > 1:
                text, level = f"{_within(text, level, 12)} * {int(extent)}", 12
            if _is_zero(index):
                continue
            term, term_level = self._with_level(index)
            text, level = (f"{text} + {_within(term, term_level, 12)}", 11) if text else (term, term_level)
        return f"{name}[{text or '0'}]"

    def _expression(self, expr: Expr, at_least: int = 0) -> str:
        return _within(*self._with_level(expr), at_least)

    def _with_level(self, expr: Expr) -> tuple[str, int]:
        """Return the text of an expression and how tightly its outermost operator binds."""
        kind = type(expr).__name__
        if kind in _INFIX:
            return self._infix(*_INFIX[kind], expr.a, expr.b)
        handler: Callable[[Expr], tuple[str, int]] | None = getattr(self, f"_{kind.lower()}_expr", None)
        if handler is None:
            raise NotImplementedError(f"no C form of the expression {kind}: {expr}")
        return handler(expr)

    def _infix(self, operator: str, level: int, a: Expr, b: Expr) -> tuple[str, int]:
        # operands of comparisons and bit operators get parentheses unless they are arithmetic, and those of || and && unless they
        # are comparisons: what -Wparentheses asks for, and what a reader need not look up
        left = {8: 10, 9: 10, 5: 12, 6: 12, 7: 12, 10: 12, 4: 8, 3: 8}.get(level, level)
        first = self._expression(a, left)
        if operator in ("<<", ">>"):  # C shifts in the type of the left operand, whatever the right one's
            if type(a).__name__ == "IntImm" and str(a.ty.dtype) == "int64":
                first = _int64_literal(int(a.value))
            if type(b).__name__ == "Cast" and str(b.ty.dtype) == "int64":
                b = b.value
        return f"{first} {operator} {self._expression(b, max(level + 1, left))}", level

    def _intimm_expr(self, expr: Expr) -> tuple[str, int]:
        value = int(expr.value)
        if str(expr.ty.dtype) == "bool":
            return ("true" if value else "false"), _PRIMARY
        if not -(1 << 31) <= value < 1 << 31:
            return _int64_literal(value), _PRIMARY
        if value == -(1 << 31):
            return f"({value + 1} - 1)", _PRIMARY
        return (str(value), _PRIMARY) if value >= 0 else (f"({value})", _PRIMARY)

    def _floatimm_expr(self, expr: Expr) -> tuple[str, int]:
        text = float_literal(float(expr.value))
        if "DSOPT_" in text:
            self.helpers.add("DSOPT_INFINITY")
        return (f"({text})", _PRIMARY) if text.startswith("-") else (text, _PRIMARY)

    def _var_expr(self, expr: Expr) -> tuple[str, int]:
        return self._name(expr), _PRIMARY

    def _tensorload_expr(self, expr: Expr) -> tuple[str, int]:
        return self._place(expr.source, expr.indices), _PRIMARY

    _bufferload_expr = _tensorload_expr

    def _cast_expr(self, expr: Expr) -> tuple[str, int]:
        return f"({C_TYPES[str(expr.ty.dtype)]}){self._expression(expr.value, _UNARY)}", _UNARY

    def _not_expr(self, expr: Expr) -> tuple[str, int]:
        return f"!{self._expression(expr.a, _UNARY)}", _UNARY

    def _min_expr(self, expr: Expr) -> tuple[str, int]:
        return self._helper(f"min_{expr.ty.dtype}", [expr.a, expr.b])

    def _max_expr(self, expr: Expr) -> tuple[str, int]:
        return self._helper(f"max_{expr.ty.dtype}", [expr.a, expr.b])

    def _floordiv_expr(self, expr: Expr) -> tuple[str, int]:
        assert self._analyzer.can_prove(expr.a >= 0) or int(expr.b) > 0, f"division that may be negative: {expr}"
        return self._infix("/", 12, expr.a, expr.b)

    def _floormod_expr(self, expr: Expr) -> tuple[str, int]:
        return self._infix("%", 12, expr.a, expr.b)

    def _select_expr(self, expr: Expr) -> tuple[str, int]:
        return self._ternary(expr.condition, expr.true_value, expr.false_value)

    def _ternary(self, condition: Expr, yes: Expr, no: Expr) -> tuple[str, int]:
        text = f"{self._expression(condition, 3)} ? {self._expression(yes, 3)} : {self._expression(no, _TERNARY)}"
        return text, _TERNARY

    def _call_expr(self, expr: Expr) -> tuple[str, int]:
        name = str(expr.op.name).rpartition(".")[
            2
        ]  # TVM files an operator under prim, tirx or ir, and moves them about
        if name in _INFIX_CALLS:
            return self._infix(*_INFIX_CALLS[name], *expr.args)
        if name == "address_of":
            return f"&{self._place(expr.args[0].source, expr.args[0].indices)}", _UNARY
        if name == "call_extern":
            arguments = ", ".join(map(self._expression, expr.args[1:]))
            return f"{expr.args[0].value}({arguments})", _PRIMARY
        if name == "isnan":
            return self._infix("!=", 8, expr.args[0], expr.args[0])
        if name == "if_then_else":
            return self._ternary(*expr.args)
        if name == "call_pure_extern":
            assert str(expr.args[0].value) in _EXTERN
            return self._helper(str(expr.args[0].value), list(expr.args[1:]))
        if name not in _MATH:
            raise NotImplementedError(f"no C form of the intrinsic {name}")
        return self._helper(_MATH[name], list(expr.args))

    def _helper(self, name: str, arguments: Sequence[Expr]) -> tuple[str, int]:
        self.helpers.add(f"dsopt_{name}")
        return f"dsopt_{name}({', '.join(self._expression(each) for each in arguments)})", _PRIMARY


def _within(text: str, level: int, at_least: int) -> str:
    return text if level >= at_least else f"({text})"


def _int64_literal(value: int) -> str:
    """Return a literal of 64 bits; the least number has none of its own."""
    if value == -(1 << 63):
        return "(-INT64_C(9223372036854775807) - 1)"
    return f"INT64_C({value})" if value >= 0 else f"(-INT64_C({-value}))"


def _is_zero(expr: Expr) -> bool:
    return (isinstance(expr, int) and expr == 0) or (type(expr).__name__ == "IntImm" and int(expr.value) == 0)


def _is_scalar(target: TirBuffer) -> bool:
    return str(target.scope()) == "local" and len(target.shape) == 1 and int(target.shape[0]) == 1

"""Statements of one C function over raw pointers, written in order: the few words that the kernel of sparse attention is made of.

Indices are int64, memory is flat, and vectors are written out: what stands here is what the machine does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dsopt.backends.tir.tvm_adapter import (
    Expr,
    PrimFunc,
    Stmt,
    TirBuffer,
    Var,
    address,
    buffer,
    constant,
    dtype_of,
    pointed_at,
    pointer,
    raw_function,
    sequence,
    tirx,
    variable,
)

LOWEST = -3.0e38
"""Stands for no score yet: finite, so that a difference from it is no NaN."""

INFINITY = float("inf")


def integer(value: int | Expr) -> Expr:
    """Return an index."""
    return constant(value, "int64") if isinstance(value, int) else value


def wide(value: Expr) -> Expr:
    """Return a stored int32 as an index."""
    return tirx.Cast("int64", value)


def narrow(value: Expr) -> Expr:
    """Return an index as it is stored, in int32."""
    return tirx.Cast("int32", integer(value))


def number(value: float) -> Expr:
    """Return a float32."""
    return constant(value, "float32")


def same(value: Expr, lanes: int) -> Expr:
    """Return a vector that has the value in all lanes."""
    return tirx.Broadcast(value, lanes)


def least(a: Expr, b: Expr) -> Expr:
    """Return the smaller one."""
    return tirx.Min(*_pair(a, b))


def most(a: Expr, b: Expr) -> Expr:
    """Return the larger one."""
    return tirx.Max(*_pair(a, b))


def _pair(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    return integer(a), integer(b)


def halved(value: Expr, times: Expr | int) -> Expr:
    """Return an integer divided by 2^times, rounded down."""
    return tirx.shift_right(value, integer(times))


def doubled(value: Expr | int, times: Expr | int) -> Expr:
    """Return an integer times 2^times."""
    return tirx.shift_left(integer(value), integer(times))


def divided(value: Expr, by: int) -> Expr:
    """Return a count divided by a constant, rounded down."""
    return tirx.truncdiv(value, integer(by))


def rounded_up(value: Expr, step: int) -> Expr:
    """Return the next multiple of a constant."""
    return divided(value + (step - 1), step) * step


def either(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Return one of two values, lane by lane; both are computed."""
    return tirx.Select(condition, yes, no)


def as_integer(value: Expr) -> Expr:
    """Return the bits of float32 lanes as int32."""
    return tirx.reinterpret(dtype_of(value).replace("float", "int"), value)


def as_float(value: Expr) -> Expr:
    """Return int32 bits as float32 lanes."""
    return tirx.reinterpret(dtype_of(value).replace("int", "float"), value)


class Memory:
    """Flat memory behind a pointer, or registers."""

    def __init__(self, held: TirBuffer) -> None:
        self.buffer = held

    def __getitem__(self, index: Expr | int) -> Expr:
        return tirx.BufferLoad(self.buffer, [integer(index)])

    def vector(self, index: Expr | int, lanes: int) -> Expr:
        """Read consecutive elements."""
        return tirx.BufferLoad(self.buffer, [tirx.Ramp(integer(index), integer(1), lanes)])

    def at(self, index: Expr | int) -> Expr:
        """Return a pointer to an element."""
        return address(self.buffer, integer(index))


class Code:
    """A function under construction; statements go where the last opened block is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._params: list[Var] = []
        self._behind: list[tuple[TirBuffer, Var]] = []
        self._frames: list[list[Stmt]] = [[]]

    # ---- parameters ----

    def floats(self, *names: str) -> list[Memory]:
        """Take pointers to float32."""
        return [self._pointer(name, "float32") for name in names]

    def integers(self, *names: str, dtype: str = "int32") -> list[Memory]:
        """Take pointers to integers."""
        return [self._pointer(name, dtype) for name in names]

    def counts(self, *names: str) -> list[Var]:
        """Take int64 values."""
        made = [variable(name, "int64") for name in names]
        self._params += made
        return made

    def _pointer(self, name: str, dtype: str) -> Memory:
        source = pointer(name, dtype)
        memory = pointed_at(source, dtype)
        self._params.append(source)
        self._behind.append((memory, source))
        return Memory(memory)

    # ---- statements ----

    def let(self, value: Expr | int, name: str = "t") -> Expr:
        """Compute a value once."""
        if isinstance(value, int) or type(value).__name__ in ("Var", "IntImm"):
            return integer(value)
        bound = variable(name, dtype_of(value))
        self._frames[-1].append(tirx.Bind(bound, value))
        return bound

    def registers(self, dtype: str, values: Sequence[Expr]) -> Memory:
        """Make variables that change, indexed by constants, with their first values."""
        held = Memory(buffer("r", (len(values),), dtype, scope="local"))
        self._frames[-1].append(tirx.AllocBuffer(held.buffer))
        for place, value in enumerate(values):
            self.set(held, value, place)
        return held

    def counter(self, value: Expr | int = 0) -> Memory:
        """Make one int64 that changes."""
        return self.registers("int64", [integer(value)])

    def set(self, target: Memory, value: Expr | int, index: Expr | int = 0) -> None:
        """Write one element, or consecutive ones if the value is a vector and the memory is not."""
        stored = integer(value) if isinstance(value, int) else value
        lanes, dtype = 1, dtype_of(stored)
        if dtype != str(target.buffer.dtype):
            lanes = int(dtype.partition("x")[2])
        place = integer(index)
        where = place if lanes == 1 else tirx.Ramp(place, integer(1), lanes)
        self._frames[-1].append(tirx.BufferStore(target.buffer, stored, [where]))

    @contextmanager
    def loop(self, high: Expr | int, low: Expr | int = 0) -> Iterator[Expr]:
        """Repeat for low <= index < high."""
        index = variable("i", "int64")
        low = self.let(low)
        self._frames.append([])
        yield index
        body = sequence(self._frames.pop())
        extent = integer(high) - low
        self._frames[-1].append(tirx.For(index, low, extent, tirx.ForKind.SERIAL, body))

    @contextmanager
    def loop_while(self, condition: Expr) -> Iterator[None]:
        """Repeat as long as a condition on registers or memory holds."""
        self._frames.append([])
        yield
        body = sequence(self._frames.pop())
        self._frames[-1].append(tirx.While(condition, body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Do what follows only if a condition holds."""
        self._frames.append([])
        yield
        body = sequence(self._frames.pop())
        self._frames[-1].append(tirx.IfThenElse(condition, body, None))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """Do what follows if the condition of the `when` just before does not hold."""
        before = self._frames[-1].pop()
        self._frames.append([])
        yield
        body = sequence(self._frames.pop())
        self._frames[-1].append(tirx.IfThenElse(before.condition, before.then_case, body))

    def call(self, name: str, *arguments: Expr | int) -> None:
        """Call another function of the same object."""
        given = [integer(each) for each in arguments]
        self._frames[-1].append(tirx.Evaluate(tirx.call_extern("void", name, *given)))

    def build(self) -> PrimFunc:
        """Return the function."""
        assert len(self._frames) == 1
        return raw_function(self.name, self._params, self._behind, self._frames[0])

"""Write one kernel as a loop nest: a grid of independent steps, and a body of serial loops, local scalars and stores.

    k = KernelBuilder("features_0_conv")
    x, w, y = k.read("x", X), k.read("weight", W), k.write("y", Y)
    with k.grid(n=4, c=8) as (n, c):
        total = k.local("total", 0.0, "float32")
        with k.loop("i", 0, 16) as i:
            k.store(total, total[0] + x[n, i] * w[c, i])
        k.store(y, total[0], n, c)
    function = k.build()

The steps of the grid may run in any order or at once: a backend for a GPU binds them to threads. What a step writes to outputs
and scratch, no other step reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dsopt.backends.tir.program import Buffer, MicroKernel, Overlap
from dsopt.backends.tir.tvm_adapter import (
    Expr,
    PrimFunc,
    Stmt,
    TirBuffer,
    Var,
    block_function,
    buffer,
    constant,
    sequence,
    serial,
    tirx,
    variable,
)


class KernelBuilder:
    """Collect parameters and statements of one kernel, then `build` its function."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._names: dict[str, int] = {}
        self._bound: dict[str, TirBuffer] = {}
        self._groups: dict[str, list[tuple[Buffer, TirBuffer]]] = {"input": [], "output": [], "scratch": []}
        self._grid: list[tuple[Var, Var, int]] = []
        self._frames: list[list[Stmt]] = [[]]
        self.micro: list[MicroKernel] = []
        self.overlaps: list[Overlap] = []
        self.choice = ""
        self.is_glue = False

    # ---- parameters ----

    def read(self, name: str, source: Buffer, shape: Sequence[int] | None = None) -> TirBuffer:
        """Take a buffer as an input, seen as `shape` (contiguous, the same number of elements)."""
        return self._parameter("input", name, source, shape)

    def write(self, name: str, target: Buffer, shape: Sequence[int] | None = None) -> TirBuffer:
        """Take a buffer as an output, seen as `shape`. The kernel may also read what it has written."""
        return self._parameter("output", name, target, shape)

    def scratch(self, name: str, target: Buffer) -> TirBuffer:
        """Take a buffer that only this kernel uses."""
        return self._parameter("scratch", name, target, None)

    def _parameter(self, group: str, name: str, target: Buffer, shape: Sequence[int] | None) -> TirBuffer:
        view = tuple(shape if shape is not None else target.shape) or (1,)
        declared = buffer(self._unique(name), view, target.dtype)
        self._groups[group].append((target, declared))
        return declared

    def buffers(self, group: str) -> tuple[Buffer, ...]:
        """Return the buffers of "input", "output" or "scratch" in the order of the function's parameters."""
        return tuple(target for target, _ in self._groups[group])

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}{count + 1}" if count else name

    # ---- statements ----

    @contextmanager
    def grid(self, **extents: int) -> Iterator[tuple[Var, ...]]:
        """Open the grid, once per kernel: one independent step for each index below the extents."""
        assert not self._grid, "a kernel has one grid"
        self._grid = [(variable(n), variable("v_" + n), extent) for n, extent in extents.items()]
        yield tuple(inner for _, inner, _ in self._grid)

    @contextmanager
    def loop(self, name: str, low: Expr, high: Expr) -> Iterator[Var]:
        """Run the statements inside in order for low <= index < high."""
        index = variable(name)
        self._frames.append([])
        yield index
        body = sequence(self._frames.pop())
        self._frames[-1].append(serial(index, low, high - low, body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Run the statements inside only if the condition holds."""
        self._frames.append([])
        yield
        body = sequence(self._frames.pop())
        self._frames[-1].append(tirx.IfThenElse(condition, body, None))

    def local(self, name: str, value: Expr, dtype: str) -> TirBuffer:
        """Make a scalar that can be stored to; read it as `local[0]`."""
        cell = buffer(name, (1,), dtype, scope="local")
        self._frames[-1].append(tirx.AllocBuffer(cell))
        self.store(cell, value)
        return cell

    def let(self, name: str, value: Expr, dtype: str = "int32") -> Expr:
        """Name a value that does not change; Python numbers stay numbers, and what has a name keeps it."""
        if isinstance(value, (int, float)) or type(value).__name__ == "Var":
            return value
        bound = variable(name, dtype)
        self._frames[-1].append(tirx.Bind(bound, value))
        return bound

    def store(self, target: TirBuffer, value: Expr, *indices: Expr) -> None:
        """Write one element; without indices, the first."""
        if isinstance(value, (bool, int, float)):
            value = constant(value, str(target.dtype))
        self._frames[-1].append(tirx.BufferStore(target, value, list(indices) or [0] * len(target.shape)))

    def call(self, function: MicroKernel, *arguments: Expr) -> None:
        """Call a function in C. Pointers are made with `address`; what it writes must be an output or scratch."""
        self.use(function)
        self._frames[-1].append(tirx.Evaluate(tirx.call_extern("int32", function.name, *arguments)))

    def use(self, function: MicroKernel) -> None:
        """Have text that other functions need stand before them."""
        if function not in self.micro:
            self.micro.append(function)

    def may_lie_over(self, output: Buffer, source: Buffer, shift: int, exact: bool = False) -> None:
        """Say that the result may lie over an operand that ends here, if it starts at least `shift` bytes before it.

        exact: only if both start at the same byte.
        """
        self.overlaps.append(Overlap(output.name, source.name, shift, exact))

    # ---- result ----

    def build(self) -> PrimFunc:
        """Return the function: parameters are inputs, outputs, then scratch."""
        assert len(self._frames) == 1
        groups = {group: [declared for _, declared in pairs] for group, pairs in self._groups.items()}
        inputs, outputs, scratch = groups["input"], groups["output"], groups["scratch"]
        return block_function(
            self.name,
            [*inputs, *outputs, *scratch],
            self._grid,
            [*inputs],
            [*outputs, *scratch],
            sequence(self._frames[0]),
        )

"""Tables of operator cases: a function, and inputs for a batch size. An axis that follows the batch size is also exported as varying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.cpu.harness import assert_close, executor_of, flat, program_of, run

Maker = Callable[[int], Tensor]


@dataclass(frozen=True)
class Case:
    """`function` is a callable or a module; `is_static` leaves out the varying batch; `largest` is the error allowed."""

    function: Callable[..., Any]
    makers: tuple[Maker, ...]
    is_static: bool = False
    largest: float = 1e-5

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(_seeded(maker, number, batch) for number, maker in enumerate(self.makers))

    @property
    def varies(self) -> bool:
        """Tell whether some axis follows the batch size, and is to vary."""
        pairs = zip(self.inputs(4), self.inputs(6), strict=True)
        return not self.is_static and any(a.shape != b.shape for a, b in pairs)


class Cases(dict[str, Case]):
    """Cases by name."""

    def add(self, name: str, function: Callable[..., Any], *makers: Maker, **options: Any) -> None:
        assert name not in self, name
        self[name] = Case(function, makers, **options)


def _seeded(maker: Maker, number: int, batch: int) -> Tensor:
    torch.manual_seed(100 + number)
    return maker(batch)


def check(case: Case, is_dynamic: bool) -> None:
    """Compare with eager torch: at the exported size, and where the batch varies at three sizes, 1 among them."""
    example, other = case.inputs(4), case.inputs(6)
    program = program_of(case.function, example, other if is_dynamic else None)
    assert bool(program.dims) == is_dynamic, "torch fixed a dim that the case lets vary"
    executor = executor_of(program)
    for inputs in (example, other, case.inputs(1)) if is_dynamic else (example,):
        expected = flat(case.function(*(tensor.clone() for tensor in inputs)))
        assert_close(run(executor, program, inputs), expected, case.largest)


def floats(*shape: int | str, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Maker:
    """Make normal numbers; "B" in the shape is the batch size, "2B" twice that."""
    return lambda batch: (torch.randn(_shape(shape, batch)) * scale).to(dtype)


def positive(*shape: int | str, dtype: torch.dtype = torch.float32) -> Maker:
    """Make numbers in 0.1..2."""
    return lambda batch: (torch.rand(_shape(shape, batch)) * 1.9 + 0.1).to(dtype)


def units(*shape: int | str, dtype: torch.dtype = torch.float32) -> Maker:
    """Make numbers in -0.95..0.95."""
    return lambda batch: (torch.rand(_shape(shape, batch)) * 1.9 - 0.95).to(dtype)


def ints(*shape: int | str, low: int = 0, high: int = 5, dtype: torch.dtype = torch.int64) -> Maker:
    """Make ints in low..high - 1."""
    return lambda batch: torch.randint(low, high, _shape(shape, batch)).to(dtype)


def bools(*shape: int | str) -> Maker:
    """Make coin flips."""
    return lambda batch: torch.randint(0, 2, _shape(shape, batch)).bool()


def value(data: Any, dtype: torch.dtype | None = None) -> Maker:
    """Give these very numbers."""
    return lambda batch: torch.as_tensor(data, dtype=dtype)


def _shape(shape: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else int(size[:-1] or 1) * batch for size in shape)


def module(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a seeded module for inference, with running statistics that are not the trivial ones."""
    torch.manual_seed(7)
    made = make().eval()
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return made

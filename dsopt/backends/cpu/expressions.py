"""Size expressions over dim names, such as "2*batch", as ONNX nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.registry import RefusalError
from dsopt.ir.build import evaluate_size

if TYPE_CHECKING:
    from dsopt.backends.cpu.emitter import Emitter, Extent


class SizeTerm:
    """A size at run time that `+ - * // %` extend by ONNX nodes; sizes are never negative, so that Div and Mod are exact."""

    def __init__(self, emitter: Emitter, value: Value) -> None:
        self.emitter, self.value = emitter, value

    def _apply(self, op_type: str, left: Any, right: Any) -> SizeTerm:
        return SizeTerm(self.emitter, arithmetic(self.emitter, op_type, _plain(left), _plain(right)))

    def __add__(self, other: Any) -> SizeTerm:
        return self._apply("Add", self, other)

    def __radd__(self, other: Any) -> SizeTerm:
        return self._apply("Add", other, self)

    def __sub__(self, other: Any) -> SizeTerm:
        return self._apply("Sub", self, other)

    def __rsub__(self, other: Any) -> SizeTerm:
        return self._apply("Sub", other, self)

    def __mul__(self, other: Any) -> SizeTerm:
        return self._apply("Mul", self, other)

    def __rmul__(self, other: Any) -> SizeTerm:
        return self._apply("Mul", other, self)

    def __floordiv__(self, other: Any) -> SizeTerm:
        return self._apply("Div", self, other)

    def __rfloordiv__(self, other: Any) -> SizeTerm:
        return self._apply("Div", other, self)

    def __mod__(self, other: Any) -> SizeTerm:
        return self._apply("Mod", self, other)

    def __rmod__(self, other: Any) -> SizeTerm:
        return self._apply("Mod", other, self)

    def __neg__(self) -> SizeTerm:
        return self._apply("Mul", self, -1)


def arithmetic(emitter: Emitter, op_type: str, left: Extent, right: Extent) -> Value:
    """Append one operation on sizes, int64 vectors of one element; Div rounds down where the divisor is positive."""
    first, second = emitter.sizes([left]), emitter.sizes([right])
    if op_type == "Div":  # ONNX truncates: take the remainder off first, which makes the division exact
        first = emitter.op("Sub", first, emitter.op("Mod", first, second))
    return emitter.op(op_type, first, second, dtype=torch.int64)


def evaluate_text(text: str, terms: Mapping[str, SizeTerm]) -> Extent:
    """Evaluate an expression over dim names into ONNX nodes. Raises RefusalError for anything but + - * // % and parentheses."""
    try:
        found: Any = evaluate_size(text, terms)  # type: ignore[arg-type]
    except ValueError as problem:
        raise RefusalError(
            f"the size {text} cannot be computed from the inputs' sizes", "fix one of these dims when capturing"
        ) from problem
    return found.value if isinstance(found, SizeTerm) else int(found)


def _plain(term: Any) -> Any:
    return term.value if isinstance(term, SizeTerm) else term

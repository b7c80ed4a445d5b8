"""What a kernel does with a sum once it is scaled: clamp it, perhaps add a residual first."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from dsopt.backends.tir.registry import UnsuitedError


@dataclass(frozen=True)
class Store:
    """Zero point and clamp of the result, of 8 or 16 `bits`.

    lift: bits by which the sum is shifted to the left first, for scales of a half and more.
    """

    zero: int
    low: int
    high: int
    lift: int = 0
    bits: int = 8

    @property
    def dtype(self) -> str:
        """Return the dtype of the result."""
        return f"int{self.bits}"

    @property
    def limits(self) -> tuple[int, int]:
        """Return the least and the largest number that the result can hold."""
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    @property
    def tag(self) -> str:
        """Return what tells this store from others, for names."""
        numbers = (
            self.zero,
            self.low,
            self.high,
            *([self.lift] if self.lift else []),
            *([self.bits] if self.bits > 8 else []),
        )
        return "_".join(f"m{-number}" if number < 0 else str(number) for number in numbers)

    def portable(self, total: str, scale: str) -> str:
        """Return the expression in C for the result of a sum and its packed scale, each an expression."""
        lifted = f"{total} * {1 << self.lift}" if self.lift else total
        return f"dsopt_requantize({lifted}, {scale}, {self.zero}, {self.low}, {self.high})"


@dataclass(frozen=True)
class Addition:
    """A residual added before the store: clamp((q * factor + residual * residual_factor + constant) >> shift)."""

    factor: int
    residual_factor: int
    constant: int
    shift: int
    low: int
    high: int

    @staticmethod
    def of(zero: int, residual_zero: int, factor: int, residual_factor: int, shift: int, y: Store) -> Addition:
        """Fold zero points and rounding into one constant. Raises UnsuitedError where the sum needs more than 32 bits."""
        rounding = (1 << shift >> 1) + (y.zero << shift)
        constant = rounding - zero * factor - residual_zero * residual_factor
        if abs(constant) + 128 * (abs(factor) + abs(residual_factor)) >= 1 << 31 or shift > 30:
            raise UnsuitedError("the sum with its residual needs more than 32 bits")
        return Addition(factor, residual_factor, constant, shift, y.low, y.high)

    @property
    def tag(self) -> str:
        """Return what tells this addition from others, for names."""
        return "_".join(f"{number & 0xFFFFFFFF:x}" for number in astuple(self))

    def portable(self, value: str, residual: str) -> str:
        """Return the expression in C that adds `residual` to `value`, each an expression."""
        constant = f"({self.constant})" if self.constant < 0 else str(self.constant)
        total = f"{value} * {self.factor} + {residual} * {self.residual_factor} + {constant}"
        return f"dsopt_clamp(({total}) >> {self.shift}, {self.low}, {self.high})"

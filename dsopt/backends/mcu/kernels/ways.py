"""Several ways to write one layer: all lowered one behind the other, to be measured, or the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, Lowering, Session, UnsuitedError


@dataclass(frozen=True)
class Way:
    """One way to write a layer: its number among the ways of its operator, and the names of its kernels in order."""

    number: int
    kernels: tuple[str, ...]


class Ways:
    """The layers of one program that is lowered with them, in order, each with its ways.

    chosen: the way that is taken of a layer, by its number; of all others, the first. None: each layer is lowered in all ways that it
    can be; the result of the first is what the layers after it read, and nothing reads the others.
    """

    def __init__(self, chosen: Mapping[int, int] | None = None) -> None:
        self.layers: list[tuple[Way, ...]] = []
        self._chosen = chosen

    def lowering(self, lowerings: Sequence[Lowering]) -> Lowering:
        """Return the lowering of an operator that has these ways. Where the first is not suited, no other is tried."""

        def lower(context: Context, *arguments: Any) -> Any:
            number = len(self.layers)
            self.layers.append(())  # of a layer for which all are unsuited
            first = 0 if self._chosen is None else self._chosen.get(number, 0)
            result, way = _noted(first, lowerings[first], context, arguments)
            found = [way]
            for other in range(1, len(lowerings)) if self._chosen is None else ():
                try:
                    same, way = _noted(other, lowerings[other], context, arguments)
                except UnsuitedError:
                    continue
                if _looks(same) == _looks(result):
                    found.append(way)
            self.layers[number] = tuple(found)
            return result

        return lower


def _noted(number: int, lowering: Lowering, context: Context, arguments: Sequence[Any]) -> tuple[Any, Way]:
    session = _Noting(context.session)
    inner = Context(cast(Session, session), context.operator, context.label, context.outputs, context.is_tuple)
    result = lowering(inner, *arguments)
    return result, Way(number, tuple(session.kernels))


def _looks(result: Any) -> Any:
    """Return what the readers of a result rely on."""
    return (result.shape, result.dtype, result.channels_last) if isinstance(result, Buffer) else None


class _Noting:
    """The session of a context, which notes the kernels that are added."""

    def __init__(self, session: Session) -> None:
        self.kernels: list[str] = []
        self._session = session

    def add_kernel(self, builder: KernelBuilder, multiply_adds: int) -> None:
        self.kernels.append(builder.name)
        self._session.add_kernel(builder, multiply_adds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

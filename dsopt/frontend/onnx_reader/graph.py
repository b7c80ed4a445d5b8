"""What an ONNX file says, as plain data: resolved, checked and sorted, with no protobuf left in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from dsopt.frontend.onnx_reader.values import Constant


Attribute: TypeAlias = "int | float | str | Constant | Graph | tuple[int | float | str | Graph, ...]"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    value: its unique name inside the reader.  name: what the file calls it.  dtype: None where the file does not say.
    shape: an int, a dim name or None (unnamed, varying) for each axis; None where the file does not say.
    """

    value: str
    name: str
    dtype: dtype | None = None
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """One operator call. Value names are unique over the whole model, so that subgraphs need no scopes.

    op: "Conv", or "com.microsoft.Gelu" for other domains.  version: of the operator's domain.  inputs, outputs: value names,
    "" for those left out.  layer: dotted path of the module that the node comes from.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    version: int
    layer: str = ""

    @property
    def where(self) -> str:
        """Return node and operator for an error message."""
        return f"node {self.name!r} ({self.op.removeprefix('dsopt.')})"

    def graphs(self) -> Iterator[Graph]:
        """Yield the subgraphs that the node holds as attributes."""
        for value in self.attributes.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Graph):
                    yield item

    def reads(self) -> Iterator[str]:
        """Yield the values that the node needs, those that its subgraphs take from outside among them."""
        yield from (name for name in self.inputs if name)
        for graph in self.graphs():
            yield from graph.captured()


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run, with the values that go in and out and the stored tensors."""

    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, Tensor]

    def captured(self) -> Iterator[str]:
        """Yield the values that the graph takes from the graphs around it."""
        known = {port.value for port in self.inputs} | set(self.constants)
        known |= {name for node in self.nodes for name in node.outputs}
        for node in self.nodes:
            yield from (name for name in node.reads() if name not in known)
        yield from (port.value for port in self.outputs if port.value not in known)

    def walk(self) -> Iterator[Node]:
        """Yield every node, those of subgraphs after the node that holds them."""
        for node in self.nodes:
            yield node
            for graph in node.graphs():
                yield from graph.walk()

"""What an operator's function sees of the node that it computes: inputs in the form that it wants, attributes, version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.problems import MalformedError, UnsupportedFormError
from dsopt.frontend.onnx_reader.values import Constant, Known, Value, as_tensor, numbers_of

RunGraph = Callable[[Graph, Sequence[Value]], list[Value]]


class Call:
    """One call of an operator while a model is traced, folded or tried."""

    def __init__(
        self, node: Node, values: Sequence[Value], fetch: Callable[[Constant], Tensor], run_graph: RunGraph
    ) -> None:
        self.node, self.values = node, tuple(values)
        self._fetch, self.run_graph = fetch, run_graph

    @property
    def version(self) -> int:
        """Opset version of the operator's domain."""
        return self.node.version

    @property
    def output_count(self) -> int:
        """Number of outputs up to the last one that is used."""
        return len(self.node.outputs)

    def wants(self, index: int) -> bool:
        """Tell whether output `index` is used."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    # ---- inputs ----

    def has(self, index: int) -> bool:
        """Tell whether input `index` is given."""
        return index < len(self.values) and self.values[index] is not None

    def value(self, index: int) -> Value:
        """Return input `index` as it is; None if it was left out."""
        return self.values[index] if index < len(self.values) else None

    def tensor(self, index: int) -> Tensor:
        """Return input `index` as a tensor. Raises MalformedError if it is missing."""
        if not self.has(index):
            raise MalformedError(f"input {index} is missing")
        return self.as_tensor(self.value(index))

    def as_tensor(self, value: Value) -> Tensor:
        """Return a value as a tensor. Raises MalformedError for a sequence or nothing."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Constant):
            return self._fetch(value)
        if isinstance(value, Known):
            return as_tensor(value)
        raise MalformedError(
            f"a tensor is needed where there is {'a sequence' if isinstance(value, list) else 'nothing'}"
        )

    def rank(self, index: int) -> int:
        """Return the number of axes of input `index`."""
        value = self.value(index)
        return value.array.ndim if isinstance(value, Known) else self.tensor(index).dim()

    def optional(self, index: int) -> Tensor | None:
        """Return input `index` as a tensor, None if it was left out."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self, start: int = 0) -> list[Tensor]:
        """Return the inputs from `start` on as tensors."""
        return [self.tensor(index) for index in range(start, len(self.values))]

    def sequence(self, index: int) -> list[Value]:
        """Return input `index` as a sequence. Raises MalformedError if it is none."""
        value = self.value(index)
        if not isinstance(value, list):
            raise MalformedError(f"input {index} is no sequence")
        return value

    def is_stored(self, index: int) -> bool:
        """Tell whether input `index` is the same in every run."""
        return isinstance(self.value(index), Constant)

    def known(self, index: int) -> Known | None:
        """Return input `index` as numbers if they are known while tracing, else None."""
        value = self.value(index)
        if isinstance(value, Known):
            return value
        return value.numbers if isinstance(value, Constant) else None

    def numbers(self, index: int) -> list[Any]:
        """Return the elements of input `index` as Python or symbolic numbers; a tensor is asked for them while running."""
        found = self.known(index)
        return found.items() if found is not None else numbers_of(self.tensor(index))

    def number(self, index: int, default: Any = None) -> Any:
        """Return the single element of input `index`, `default` if it was left out."""
        if not self.has(index):
            return default
        numbers = self.numbers(index)
        if len(numbers) != 1:
            raise MalformedError(f"input {index} has {len(numbers)} elements; one is expected")
        return numbers[0]

    def operand(self, index: int, rank: int = 0) -> Tensor | Any:
        """Return input `index` for arithmetic with a tensor of `rank`: a Python number where that means the same.

        A scalar that the file computes or writes beside an operator is a number; one with a parameter's name stays a weight.
        """
        value = self.value(index)
        if isinstance(value, Constant) and value.is_weight:
            return self.tensor(index)
        found = self.known(index)
        if found is None or found.array.size != 1 or found.array.ndim > rank:
            return self.tensor(index)
        return found.items()[0]

    # ---- attributes ----

    def integer(self, name: str, default: int) -> int:
        """Return an int attribute. Raises MalformedError if it is something else."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise MalformedError(f"attribute {name!r} is no integer")
        return value

    def real(self, name: str, default: float) -> float:
        """Return a float attribute. Raises MalformedError if it is something else."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, (int, float)):
            raise MalformedError(f"attribute {name!r} is no number")
        return value

    def text(self, name: str, default: str) -> str:
        """Return a string attribute. Raises MalformedError if it is something else."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, str):
            raise MalformedError(f"attribute {name!r} is no text")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """Return an attribute of ints, None if it is absent without a default."""
        value = self.node.attributes.get(name)
        if value is None:
            return None if default is None else list(default)
        if not isinstance(value, tuple):
            raise MalformedError(f"attribute {name!r} is no list of integers")
        return [item for item in value if isinstance(item, int)]

    def texts(self, name: str, default: Sequence[str]) -> list[str]:
        """Return an attribute of strings."""
        value = self.node.attributes.get(name)
        return list(default) if not isinstance(value, tuple) else [str(item) for item in value]

    def reals(self, name: str) -> list[float] | None:
        """Return an attribute of floats, None if it is absent."""
        value = self.node.attributes.get(name)
        return [item for item in value if isinstance(item, (int, float))] if isinstance(value, tuple) else None

    def stored(self, name: str) -> Constant | None:
        """Return a tensor attribute, None if it is absent."""
        value = self.node.attributes.get(name)
        return value if isinstance(value, Constant) else None

    def graph(self, name: str) -> Graph:
        """Return a subgraph. Raises MalformedError if it is absent."""
        value = self.node.attributes.get(name)
        if not isinstance(value, Graph):
            raise MalformedError(f"subgraph {name!r} is missing")
        return value

    def axes(self, index: int, name: str = "axes") -> list[int] | None:
        """Return axes given as input `index` or, in older versions, as an attribute; None if neither is there."""
        if self.has(index):
            return [int(item) for item in self.numbers(index)]
        return self.integers(name)

    def unsupported(self, what: str, nearest: str = "") -> UnsupportedFormError:
        """Return the error for a use of the operator that is not supported."""
        return UnsupportedFormError(what, nearest)


def axis_in(axis: int, rank: int) -> int:
    """Return a non-negative axis. Raises MalformedError if it is outside the rank."""
    if not -rank <= axis < max(rank, 1):
        raise MalformedError(f"axis {axis} is outside a tensor with {rank} axes")
    return axis % rank if rank else 0


def is_floating(tensor: Tensor) -> bool:
    """Tell whether a tensor holds floats."""
    return bool(tensor.dtype.is_floating_point)


def to_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor that has another element type; a conversion to its own would stay in the exported graph."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)

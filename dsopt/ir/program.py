"""Program: one exported model, as an ATen graph with its weights and its signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

import dsopt.ops  # noqa: F401  registers the dsopt:: operators that a graph may hold
from dsopt.ir import torch_private as private
from dsopt.ir.interpret import evaluate, evaluate_all
from dsopt.ir.signature import Dim, Signature
from dsopt.ir.symbols import Size, shape_text, size_text

if TYPE_CHECKING:
    from dsopt.ir.trainable import ProgramModule


@dataclass(frozen=True)
class StateBinding:
    """A state's placeholder and the node that gives its next value."""

    name: str
    placeholder: fx.Node
    update: fx.Node


class Program:
    """One exported model: a functional ATen graph, its weights and its signature. Passes read it; a Rewriter changes it.

    graph: placeholders in the order weights, states, inputs; call_function nodes; one output node of states, then outputs.
    Every node's `meta["val"]` holds its shape and dtype as a fake tensor, `meta["layer"]` and `meta["source"]` say where in the
    user's module it comes from, and `meta["custom"]["dsopt"]` holds what passes have found out.
    weights: tensors by qualified name, never changed in place: programs share them.
    dims: the sizes that vary, by name; `symbols` maps the graph's symbols to them.
    """

    def __init__(
        self,
        graph: fx.Graph,
        weights: Mapping[str, Tensor],
        signature: Signature,
        dims: Mapping[str, Dim],
        symbols: Mapping[str, str],
    ) -> None:
        self.graph = graph
        self._weights = dict(weights)
        self.signature = signature
        self.dims: Mapping[str, Dim] = dict(dims)
        self.symbols: Mapping[str, str] = dict(symbols)

    # ---- reading ----

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Return the stored tensors by name: parameters, buffers, constants and first values of states."""
        return self._weights

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        """Return all placeholders, in order."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def output_node(self) -> fx.Node:
        """Return the output node."""
        return self.graph.output_node()

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """Return the user's input placeholders, in the order of `signature.inputs`."""
        return self.placeholders[len(self.signature.weights) + len(self.signature.states) :]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """Return the nodes of the user's outputs, in the order of `signature.outputs`."""
        return tuple(self.output_node.args[0][len(self.signature.states) :])  # type: ignore[index,arg-type]

    @property
    def states(self) -> tuple[StateBinding, ...]:
        """Return each state's placeholder and the node of its next value."""
        first = len(self.signature.weights)
        placeholders = self.placeholders[first : first + len(self.signature.states)]
        updates: Any = self.output_node.args[0]
        return tuple(
            StateBinding(spec.name, placeholder, update)
            for spec, placeholder, update in zip(self.signature.states, placeholders, updates, strict=False)
        )

    def weight_name(self, node: fx.Node) -> str | None:
        """Return the name of the weight that a placeholder stands for, None for any other node."""
        if node.op != "placeholder":
            return None
        return self._weight_names().get(node)

    def weight(self, node: object) -> Tensor | None:
        """Return the stored tensor that a node stands for, None if it is no weight."""
        name = self.weight_name(node) if isinstance(node, fx.Node) else None
        return None if name is None else self._weights[name]

    def weight_node(self, name: str) -> fx.Node:
        """Return the placeholder of a weight. Raises KeyError."""
        for node, known in self._weight_names().items():
            if known == name:
                return node
        raise KeyError(name)

    def _weight_names(self) -> dict[fx.Node, str]:
        names: dict[fx.Node, str] = {}
        for node, spec in zip(self.placeholders, self.signature.weights, strict=False):
            names[node] = spec.name
        return names

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        """Return a node's shape; a varying size is an expression over dim names, such as "2*batch"."""
        return shape_text(node.meta["val"].shape, self.symbols)

    def size(self, value: int | torch.SymInt) -> Size:
        """Return a size as an int or as an expression over dim names."""
        return size_text(value, self.symbols)

    def dtype(self, node: fx.Node) -> torch.dtype:
        """Return a node's dtype."""
        dtype: torch.dtype = node.meta["val"].dtype
        return dtype

    def layer(self, node: fx.Node) -> str:
        """Return the path of the user's module that a node comes from, such as "features.3"; "" for the root."""
        return str(node.meta.get("layer", ""))

    def source(self, node: fx.Node) -> str:
        """Return the user's line that a node comes from, 'net.py:15: y = self.a(x)', or ""."""
        return str(node.meta.get("source", ""))

    def where(self, node: fx.Node) -> str:
        """Return node, layer and source line for an error message."""
        target = str(node.target) if node.op == "call_function" else node.op
        parts = [f"%{node.name} {target}"]
        if self.layer(node):
            parts.append(f"in {self.layer(node)}")
        if self.source(node):
            parts.append(f"at {self.source(node)}")
        return " ".join(parts)

    def facts(self, node: fx.Node) -> dict[str, Any]:
        """Return the facts that passes have recorded about a node, to read and to extend; `save` keeps them."""
        facts: dict[str, Any] = node.meta.setdefault("custom", {}).setdefault("dsopt", {})
        return facts

    def example_sizes(self) -> dict[str, int]:
        """Return the sizes that the varying dims had in the example that the program was captured with."""
        return {name: private.hint_of(size) for name, size in self._dim_symbols().items()}

    def sizes_of(self, inputs: tuple[Tensor, ...]) -> dict[str, int]:
        """Return the sizes that the varying dims have in flat inputs."""
        sizes: dict[str, int] = {}
        for node, value in zip(self.inputs, inputs, strict=True):
            for size, found in zip(node.meta["val"].shape, value.shape, strict=True):
                name = self.symbols.get(str(size))
                if name is not None:
                    sizes.setdefault(name, int(found))
        return sizes

    def _dim_symbols(self) -> dict[str, torch.SymInt]:
        found: dict[str, torch.SymInt] = {}
        for node in self.inputs:
            for size in node.meta["val"].shape:
                name = self.symbols.get(str(size))
                if name is not None:
                    found.setdefault(name, size)
        return found

    # ---- running ----

    def bind(self, inputs: tuple[Tensor, ...], states: Mapping[str, Tensor] | None = None) -> dict[fx.Node, Tensor]:
        """Return {placeholder: tensor} for flat inputs; a state not given has its stored first value."""
        if len(inputs) != len(self.signature.inputs):
            raise ValueError(f"the program takes {len(self.signature.inputs)} inputs, got {len(inputs)}")
        given = states or {}
        bound: dict[fx.Node, Tensor] = {node: self._weights[name] for node, name in self._weight_names().items()}
        bound |= {state.placeholder: given.get(state.name, self._weights[state.name]) for state in self.states}
        bound |= dict(zip(self.inputs, inputs, strict=True))
        return bound

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run eagerly on flat inputs, from the first values of the states, without gradients. Returns the user's outputs."""
        return self.run_stateful(inputs, None)[0]

    def run_stateful(
        self, inputs: tuple[Tensor, ...], states: Mapping[str, Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Run eagerly on flat inputs from given states. Returns the user's outputs and the next states by name."""
        with torch.no_grad():
            results = evaluate(self.graph, self.bind(inputs, states))
        count = len(self.signature.states)
        names = [state.name for state in self.signature.states]
        return tuple(results[count:]), dict(zip(names, results[:count], strict=True))

    def trace(self, *inputs: Tensor) -> dict[str, Any]:
        """Run eagerly and return the value of every node by node name."""
        with torch.no_grad():
            return {node.name: value for node, value in evaluate_all(self.graph, self.bind(inputs)).items()}

    # ---- making another ----

    def clone(self) -> Program:
        """Copy the graph and share the weights."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(self.graph, copies)
        graph.output(result)
        graph.output_node().meta = dict(self.output_node.meta)
        for old, new in copies.items():
            new.meta = {**old.meta, "custom": {"dsopt": dict(old.meta.get("custom", {}).get("dsopt", {}))}}
        return Program(graph, self._weights, self.signature, self.dims, self.symbols)

    def specialize(self, sizes: Mapping[str, int]) -> Program:
        """Fix varying dims, by name, to sizes. Raises UsageError for an unknown dim or a size outside its range."""
        from dsopt.ir.build import specialize

        return specialize(self, sizes)

    def module(self) -> ProgramModule:
        """Return a module that runs and trains on a copy of the weights; it takes and returns what the user's model did."""
        from dsopt.ir.trainable import ProgramModule

        return ProgramModule(self)

    def with_weights(self, module: nn.Module) -> Program:
        """Return the same graph with the weights that `module`, made by `module()`, has learned."""
        from dsopt.ir.trainable import learned_weights

        result = self.clone()
        result._weights = learned_weights(self, module)
        return result

    # ---- checking, printing, storing ----

    def verify(self) -> None:
        """Re-infer every shape and dtype and compare with what is recorded. Raises VerifyError: node, layer, source."""
        from dsopt.ir.verify import verify

        verify(self)

    def text(self) -> str:
        """Return one line per node, values numbered in order: what `dsopt inspect` prints and golden tests compare."""
        from dsopt.ir.printer import program_text

        return program_text(self)

    def save(self, path: str | Path) -> None:
        """Write the program, with all that passes recorded, as one archive without pickle. Raises WriteError."""
        from dsopt.ir.archive import save_program

        save_program(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read an archive that `save` wrote; the file may be untrusted. Raises ReadError."""
        from dsopt.ir.archive import load_program

        return load_program(Path(path))

    def __repr__(self) -> str:
        count = sum(node.op == "call_function" for node in self.graph.nodes)
        dims = ", ".join(self.dims) or "none"
        return f"<Program: {count} nodes, {len(self._weights)} weights, varying dims: {dims}>"


def set_weights(program: Program, weights: Mapping[str, Tensor], signature: Signature) -> None:
    """Replace the stored weights and the signature together: for `Rewriter` and the builders of this package only."""
    program._weights = dict(weights)
    program.signature = signature


def example_inputs(program: Program, sizes: Mapping[str, int] | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """Return seeded flat inputs: normal floats, ints in 0..min(9, ...), bools true; varying dims take `sizes` or their hint.

    Ints are kept in 0..1 so that they are valid indices and token ids of any embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed = {symbol: (sizes or {}).get(name) for symbol, name in program.symbols.items()}
    tensors: list[Tensor] = []
    for node in program.inputs:
        value = node.meta["val"]
        shape = tuple(_example_size(size, fixed) for size in value.shape)
        if value.dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator, dtype=torch.float32).to(value.dtype))
        elif value.dtype == torch.bool:
            tensors.append(torch.ones(shape, dtype=torch.bool))
        else:
            tensors.append(torch.randint(0, 2, shape, generator=generator).to(value.dtype))
    return tuple(tensors)


def _example_size(size: int | torch.SymInt, fixed: Mapping[str, int | None]) -> int:
    if isinstance(size, int):
        return size
    return private.size_at(size, {symbol: value for symbol, value in fixed.items() if value is not None})

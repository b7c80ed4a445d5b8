"""Convert a whole program: inputs, states and weights first, then every node that something reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dsopt.backends.base import Blocker
from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError
from dsopt.ir import Program
from dsopt.ir.symbols import Size

SUPPORTED_DTYPES = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bool,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    }
)


@dataclass(frozen=True)
class Port:
    """A named input or output of an ONNX graph; shape None if it is not known."""

    name: str
    dtype: torch.dtype
    shape: tuple[Size, ...] | None


@dataclass(frozen=True)
class Converted:
    """A program as an ONNX graph in memory.

    values: the ONNX tensor of each converted program node, by node name.  producers: the ONNX node of each such tensor.
    inner: the types of tensors between the nodes, without which ONNX Runtime cannot tell equal varying sizes and fuses less.
    """

    emitter: Emitter
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    values: dict[str, str]
    producers: dict[str, str]
    inner: tuple[Port, ...]
    blockers: tuple[Blocker, ...]


def convert(program: Program) -> Converted:
    """Convert all nodes; those without an ONNX form become blockers, and the rest is converted all the same."""
    live = _live_nodes(program)
    emitter = Emitter(program, live)
    blockers = [
        Blocker.of(program, node, f"the input is {program.dtype(node)}".replace("torch.", ""), "give it as float32")
        for node in program.inputs
        if program.dtype(node) not in SUPPORTED_DTYPES
    ]
    inputs = _bind_placeholders(program, emitter)
    wanted = _output_names(program, emitter)
    for node, weight in zip(program.placeholders, program.signature.weights, strict=False):
        emitter.bind_weight(node, weight.name)
    for node in program.graph.nodes:
        if node.op != "call_function" or node not in live or not _has_tensor(node) or emitter.has(node):
            continue
        try:
            _check_dtype(node)
            emitter.convert(node)
        except RefusalError as problem:
            blockers.append(Blocker.of(program, node, problem.why, problem.fix))
            emitter.bind(node, _stand_in(emitter, node))
    outputs = _name_outputs(program, emitter, wanted)
    emitter.prune(port.name for port in outputs)
    producers = {name: each.name for each in emitter.nodes for name in each.outputs}
    values = {
        node.name: emitter.value(node).name
        for node in program.graph.nodes
        if node in live
        and node.op == "call_function"
        and isinstance(node.meta["val"], Tensor)
        and emitter.value(node).name in producers
        and emitter.value(node).dtype == program.dtype(node)  # int8 written as uint8 has other numbers
    }
    inner = _inner_ports(program, values, {port.name for port in outputs})
    return Converted(emitter, inputs, outputs, values, producers, inner, tuple(blockers))


def _bind_placeholders(program: Program, emitter: Emitter) -> tuple[Port, ...]:
    """Take the names of inputs, outputs and weights, in this order, and bind all placeholders."""
    named = [
        *((spec.name, node) for spec, node in zip(program.signature.inputs, program.inputs, strict=True)),
        *((f"state.{state.name}", state.placeholder) for state in program.states),
    ]
    ports: list[Port] = []
    for name, node in named:
        value = Value(emitter.unique(name), program.dtype(node))
        emitter.bind(node, value)
        ports.append(Port(name, value.dtype, program.shape(node)))
        for axis, size in enumerate(program.shape(node)):
            if isinstance(size, str) and size in program.dims:
                emitter.bind_symbol(size, value, axis)
    return tuple(ports)


def _inner_ports(program: Program, values: dict[str, str], outputs: set[str]) -> tuple[Port, ...]:
    ports: dict[str, Port] = {}
    for node in program.graph.nodes:
        name = values.get(node.name)
        if name is not None and name not in outputs:
            ports[name] = Port(name, program.dtype(node), program.shape(node))
    return tuple(ports.values())


def _live_nodes(program: Program) -> set[fx.Node]:
    """Return the nodes that some output depends on; asserts on sizes are none of them."""
    live: set[fx.Node] = set()
    stack = list(program.output_node.all_input_nodes)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return live


def _has_tensor(node: fx.Node) -> bool:
    """Sizes are converted when a tensor operator asks for them."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))


def _check_dtype(node: fx.Node) -> None:
    for label, nodes in (("it reads", node.all_input_nodes), ("its result is", [node])):
        for value in (each.meta.get("val") for each in nodes):
            for each in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(each, Tensor) and each.dtype not in SUPPORTED_DTYPES:
                    name = str(each.dtype).removeprefix("torch.")
                    raise RefusalError(f"{label} {name}, which ONNX Runtime does not compute on a CPU", "use float32")


def _stand_in(emitter: Emitter, node: fx.Node) -> Value | tuple[Value, ...]:
    """Return what a refused node might have given, so that the nodes after it can be looked at as well."""
    recorded = node.meta["val"]
    if isinstance(recorded, Tensor):
        return Value(emitter.unique(f"refused.{node.name}"), recorded.dtype)
    return tuple(
        Value(emitter.unique(f"refused.{node.name}"), each.dtype if isinstance(each, Tensor) else torch.int64)
        for each in recorded
    )


def _output_names(program: Program, emitter: Emitter) -> list[tuple[str, fx.Node]]:
    """Take the names of the outputs; one that an input has as well gets a number, because ONNX has one space of names."""
    wanted = [
        *((spec.name, node) for spec, node in zip(program.signature.outputs, program.outputs, strict=True)),
        *((f"next.{state.name}", state.update) for state in program.states),
    ]
    return [(emitter.unique(name), node) for name, node in wanted]


def _name_outputs(program: Program, emitter: Emitter, wanted: list[tuple[str, fx.Node]]) -> tuple[Port, ...]:
    """Give results their names; a result that is an input, a weight or an output already is copied by Identity."""
    emitter.scope = "outputs"
    ports: list[Port] = []
    outputs: set[str] = set()
    for name, node in wanted:
        value = emitter.value(node)
        if value.name not in outputs and emitter.rename(value, name) is not value:
            emitter.rebind(value, Value(name, value.dtype))
        else:
            emitter.rename(emitter.op("Identity", value), name)
        outputs.add(name)
        ports.append(Port(name, value.dtype, program.shape(node)))
    return tuple(ports)

"""Turn the protobuf of a model into a `Graph`: names resolved, functions expanded in place, nodes sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto

from dsopt.errors import ReadError
from dsopt.frontend.onnx_reader.external import ExternalData
from dsopt.frontend.onnx_reader.file import opsets
from dsopt.frontend.onnx_reader.graph import Graph, Node, Port
from dsopt.frontend.onnx_reader.names import layer_path
from dsopt.frontend.onnx_reader.problems import UnsupportedFormError, inconsistent, too_large
from dsopt.frontend.onnx_reader.tensors import DTYPES, HALVES, read_tensor
from dsopt.frontend.onnx_reader.values import Constant, shortest

if TYPE_CHECKING:
    from torch import Tensor

    from dsopt.frontend.onnx_reader.graph import Attribute

MAX_NODES = 200_000
"""Counted after expanding functions, which can double at every level."""
MAX_DEPTH = 32

Imports = Mapping[str, int]


class Scope:
    """What names mean at one place: values of the graphs around it, and of this one."""

    def __init__(self, parser: Parser, outer: Mapping[str, str]) -> None:
        self._parser, self._outer = parser, outer
        self.own: dict[str, str] = {}

    def define(self, name: str, what: str, as_value: str | None = None) -> str:
        """Give a new value a unique name. Raises ReadError DS0193 if this graph has it already."""
        if name in self.own:
            raise inconsistent(f"{name!r} is defined twice", where=what)
        self.own[name] = as_value if as_value is not None else self._parser.unique(name)
        return self.own[name]

    def resolve(self, name: str, what: str) -> str:
        """Return the unique name of a value in sight. Raises ReadError DS0193 if there is none."""
        found = self.own.get(name, self._outer.get(name))
        if found is None:
            raise inconsistent(f"{name!r} is used and never defined", where=what)
        return found

    def visible(self) -> dict[str, str]:
        """Return every name in sight with its unique value name."""
        return {**self._outer, **self.own}


class Parser:
    """Parses one model. `refused` collects attributes and types that are not supported, to report them all at once."""

    def __init__(self, model: onnx.ModelProto, external: ExternalData, label: str) -> None:
        self._external, self._label = external, label
        self._imports = opsets(model.opset_import, label)
        self._functions = {_function_key(function): function for function in model.functions}
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._count = 0
        self.refused: list[tuple[str, str, str]] = []

    def unique(self, name: str) -> str:
        """Return `name`, or a variant of it if another graph of the model has a value of that name."""
        candidate = name
        while candidate in self._taken:
            # Counted for each name: a function called often would otherwise try all numbers at every call.
            self._numbers[name] = self._numbers.get(name, 1) + 1
            candidate = f"{name}#{self._numbers[name]}"
        self._taken.add(candidate)
        return candidate

    def graph(
        self,
        proto: onnx.GraphProto,
        outer: Mapping[str, str],
        imports: Imports,
        depth: int,
        bound: Mapping[str, Attribute],
    ) -> Graph:
        """Return a graph with everything resolved. Raises ReadError."""
        if depth > MAX_DEPTH:
            raise too_large(f"{self._label} nests graphs and functions deeper than {MAX_DEPTH}")
        where = f"graph {proto.name!r}"
        if proto.sparse_initializer:
            self.refused.append((where, "sparse initializer", "dense initializers"))
        scope = Scope(self, outer)
        constants: dict[str, Tensor] = {}
        for initializer in proto.initializer:
            tensor = self._tensor(initializer, where)
            value = scope.define(initializer.name, where)
            if tensor is not None:
                constants[value] = tensor
        # Before IR version 4 initializers were listed as inputs too; they are still no inputs of ours.
        ports = [self._port(item, scope.define(item.name, where)) for item in proto.input if item.name not in scope.own]
        nodes = self._nodes(proto.node, scope, imports, depth, bound, "")
        outputs = tuple(self._port(item, scope.resolve(item.name, where)) for item in proto.output)
        halves = {scope.own[item.name] for item in proto.initializer if item.data_type in HALVES}
        for node in nodes:
            if node.op == "QuantizeLinear" and halves.intersection(node.inputs):
                self.refused.append((node.where, "rounding to 4 bits at run time", "int8, uint8 or int16"))
        return Graph(_sorted(nodes, where), tuple(ports), outputs, constants)

    def main(self, proto: onnx.GraphProto) -> Graph:
        """Return the model's own graph."""
        return self.graph(proto, {}, self._imports, 0, {})

    def _nodes(
        self,
        protos: Sequence[onnx.NodeProto],
        scope: Scope,
        imports: Imports,
        depth: int,
        bound: Mapping[str, Attribute],
        prefix: str,
    ) -> list[Node]:
        """Parse nodes. bound: values of the function's attributes; prefix: name of the call, if inside a function."""
        for index, proto in enumerate(protos):
            for name in proto.output:
                if name and name not in scope.own:
                    scope.define(name, _where(proto, index))
                elif name and not prefix:
                    raise inconsistent(f"{name!r} is defined twice", where=_where(proto, index))
        nodes: list[Node] = []
        for index, proto in enumerate(protos):
            self._count += 1
            if self._count > MAX_NODES:
                raise too_large(f"{self._label} has more than {MAX_NODES:,} nodes", why="Functions were expanded.")
            where = _where(proto, index)
            inputs = tuple(scope.resolve(name, where) if name else "" for name in proto.input)
            outputs = tuple(scope.own[name] if name else "" for name in proto.output)
            attributes = self._attributes(proto, scope, imports, depth, bound, where)
            key = (_domain(proto.domain), proto.op_type, getattr(proto, "overload", ""))
            name = prefix + (proto.name or f"{proto.op_type}_{index}")
            if key in self._functions:
                nodes += self._call(self._functions[key], inputs, outputs, attributes, depth, name)
                continue
            layer = layer_path(name, {entry.key: entry.value for entry in proto.metadata_props})
            nodes.append(Node(_op(proto), name, inputs, outputs, attributes, imports.get(key[0], 1), layer))
        return nodes

    def _call(
        self,
        function: onnx.FunctionProto,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        attributes: Mapping[str, Attribute],
        depth: int,
        name: str,
    ) -> list[Node]:
        """Return the nodes of a function in place of a call of it."""
        if depth > MAX_DEPTH:
            raise too_large(f"{self._label} nests graphs and functions deeper than {MAX_DEPTH}")
        where = f"function {function.name!r}, called by {name!r}"
        scope = Scope(self, {})
        for index, formal in enumerate(function.input):
            scope.define(formal, where, inputs[index] if index < len(inputs) else "")
        passed: list[Node] = []
        for index, formal in enumerate(function.output):
            actual = outputs[index] if index < len(outputs) else ""
            if formal in scope.own and actual:
                passed.append(Node("Identity", f"{name}/Identity_{index}", (scope.own[formal],), (actual,), {}, 14))
            elif formal not in scope.own:
                scope.define(formal, where, actual or self.unique(f"{name}/{formal}"))
        given = {**{item.name: self._attribute(item, where) for item in function.attribute_proto}, **attributes}
        imports = opsets(function.opset_import, where) if function.opset_import else self._imports
        body = self._nodes(function.node, scope, imports, depth + 1, given, f"{name}/")
        return body + passed

    def _attributes(
        self,
        proto: onnx.NodeProto,
        scope: Scope,
        imports: Imports,
        depth: int,
        bound: Mapping[str, Attribute],
        where: str,
    ) -> dict[str, Attribute]:
        attributes: dict[str, Attribute] = {}
        for item in proto.attribute:
            if item.ref_attr_name:
                if item.ref_attr_name in bound:
                    attributes[item.name] = bound[item.ref_attr_name]
            elif item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                graphs = item.graphs if item.type == AttributeProto.GRAPHS else [item.g]
                parsed = tuple(self.graph(graph, scope.visible(), imports, depth + 1, bound) for graph in graphs)
                attributes[item.name] = parsed if item.type == AttributeProto.GRAPHS else parsed[0]
            else:
                try:
                    attributes[item.name] = self._attribute(item, where)
                except UnsupportedFormError as error:
                    self.refused.append((where, error.what, error.nearest))
        return attributes

    def _attribute(self, item: onnx.AttributeProto, where: str) -> Attribute:
        kind = item.type
        if kind == AttributeProto.FLOAT:
            return shortest(item.f)
        if kind == AttributeProto.INT:
            return int(item.i)
        if kind == AttributeProto.STRING:
            return str(item.s, "utf-8", "replace")
        if kind == AttributeProto.TENSOR:
            return Constant(read_tensor(item.t, self._external, f"{item.name} of {where}"), where, False)
        if kind == AttributeProto.FLOATS:
            return tuple(shortest(value) for value in item.floats)
        if kind == AttributeProto.INTS:
            return tuple(int(value) for value in item.ints)
        if kind == AttributeProto.STRINGS:
            return tuple(value.decode("utf-8", "replace") for value in item.strings)
        raise UnsupportedFormError(f"attribute {item.name!r} of type {kind}", "numbers, text, tensors and graphs")

    def _tensor(self, proto: onnx.TensorProto, where: str) -> Tensor | None:
        try:
            return read_tensor(proto, self._external, proto.name)
        except UnsupportedFormError as error:
            self.refused.append((where, error.what, error.nearest))
            return None

    def _port(self, item: onnx.ValueInfoProto, value: str) -> Port:
        if item.type.WhichOneof("value") not in ("tensor_type", None):
            return Port(value, item.name)
        declared = item.type.tensor_type
        if not declared.HasField("shape"):
            return Port(value, item.name, DTYPES.get(declared.elem_type))
        shape = tuple(_size(dim) for dim in declared.shape.dim)
        return Port(value, item.name, DTYPES.get(declared.elem_type), shape)


def parse(model: onnx.ModelProto, external: ExternalData, label: str) -> tuple[Graph, list[tuple[str, str, str]]]:
    """Return the model's graph, and what of it is not supported as (where, what, nearest supported form).

    Raises ReadError DS0191 to DS0195 for a file that contradicts itself or asks for too much.
    """
    parser = Parser(model, external, label)
    try:
        return parser.main(model.graph), parser.refused
    except ReadError:
        raise
    except (
        UnicodeDecodeError,
        OverflowError,
        RecursionError,
    ) as error:  # protobuf decodes text when it is first looked at
        raise inconsistent(f"{label} is truncated or altered", why=str(error)) from error


def _sorted(nodes: Sequence[Node], where: str) -> tuple[Node, ...]:
    """Return the nodes with each after those it reads from, else in the order given. Raises ReadError on a cycle."""
    maker = {name: node for node in nodes for name in node.outputs if name}
    needs = {id(node): {id(maker[name]): maker[name] for name in node.reads() if name in maker} for node in nodes}
    done: set[int] = set()
    result: list[Node] = []
    for first in nodes:
        stack: list[tuple[Node, Any]] = [(first, iter(needs[id(first)].values()))]
        on_path = {id(first)}
        while stack:
            node, pending = stack[-1]
            following = next((item for item in pending if id(item) not in done), None)
            if id(node) in done or following is None:
                stack.pop()
                on_path.discard(id(node))
                if id(node) not in done:
                    done.add(id(node))
                    result.append(node)
            elif id(following) in on_path:
                raise inconsistent(f"{following.where} needs its own result", where=where, why="the graph has a cycle")
            else:
                on_path.add(id(following))
                stack.append((following, iter(needs[id(following)].values())))
    return tuple(result)


def _where(proto: onnx.NodeProto, index: int) -> str:
    return f"node {proto.name or f'number {index}'!r} ({_op(proto)})"


def _op(proto: onnx.NodeProto) -> str:
    domain = _domain(proto.domain)
    return f"{domain}.{proto.op_type}" if domain else str(proto.op_type)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _function_key(function: onnx.FunctionProto) -> tuple[str, str, str]:
    return _domain(function.domain), function.name, getattr(function, "overload", "")


def _size(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None

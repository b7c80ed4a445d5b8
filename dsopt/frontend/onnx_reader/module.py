"""A torch module that computes an ONNX graph, made to be exported: its weights and layers carry the file's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import UnsupportedOpError
from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.interpreter import Environment, Interpreter
from dsopt.frontend.onnx_reader.names import identifier, is_generated, qualified
from dsopt.frontend.onnx_reader.problems import inconsistent
from dsopt.frontend.onnx_reader.sources import computing
from dsopt.frontend.onnx_reader.values import Constant, Known, Value, as_tensor

_ROLES: dict[str, tuple[str, ...]] = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "dsopt.Linear": ("", "weight", "bias"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "InstanceNormalization": ("", "weight", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "GroupNormalization": ("", "weight", "bias"),
    "RMSNormalization": ("", "weight"),
    "PRelu": ("", "weight"),
    "Gather": ("weight",),
}
_STATISTICS = ("running_mean", "running_var")


class Layer(nn.Module):
    """Holds the weights of one part of the user's model, and computes nodes under its name."""

    def forward(self, run: Callable[[], Any]) -> Any:
        """Call a function; torch.export records this module's path with what it computes."""
        return run()


class OnnxModule(Layer):
    """Computes an ONNX graph.

    Its forward takes the graph's inputs by position or by `input_names` and returns a dict of tensors by `output_names`.
    Raises ReadError DS0196 where a node's inputs do not fit it, UnsupportedOpError DS0198 for a use not supported.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, graph: Graph, constants: Mapping[str, Constant], input_names: tuple[str, ...]) -> None:
        super().__init__()
        self._graph = graph
        used = {name for node in graph.walk() for name in node.reads()} | {port.value for port in graph.outputs}
        preferred = _preferred_names(graph, constants)
        statistics = _statistics(graph)
        self._constants: dict[str, Constant] = {}
        for value in (name for name in constants if name in used):
            constant = constants[value]
            path = self._store(preferred.get(value, constant.path), constant, value in statistics)
            self._constants[value] = replace(constant, path=path)
        self._layers = {node.layer: self._make_layer(node.layer) for node in graph.walk() if node.layer}
        self.input_names, self.output_names = input_names, tuple(port.name for port in graph.outputs)
        if len(set(self.output_names)) != len(self.output_names):
            raise inconsistent("two outputs have the same name", where=", ".join(self.output_names))
        self.eval()

    def compute(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name; `forward` is this under the names of the inputs."""
        environment: Environment = dict(self._constants)
        environment.update(zip((port.value for port in self._graph.inputs), inputs, strict=True))
        results = Interpreter(self._fetch, self._enter).run(self._graph, environment)
        return {name: self._output(name, value) for name, value in zip(self.output_names, results, strict=True)}

    def _output(self, name: str, value: Value) -> Tensor:
        if isinstance(value, Known):
            return as_tensor(value)
        if isinstance(value, Constant):
            return self._fetch(value).clone()
        if not isinstance(value, Tensor):
            fix = "Export the model with tensor outputs."
            raise UnsupportedOpError("DS0197", f"output {name!r} is a sequence or left out, not a tensor", fix=fix)
        return value

    def _fetch(self, constant: Constant) -> Tensor:
        owner, _, name = constant.path.rpartition(".")
        # Looked up at each call: export and functional_call put other tensors in the place of the stored ones.
        tensor = getattr(self.get_submodule(owner), name)
        assert isinstance(tensor, Tensor)
        return tensor

    def _enter(self, node: Node, run: Callable[[], Any]) -> Any:
        with computing(node):
            return self.get_submodule(self._layers[node.layer])(run)

    def _store(self, name: str, constant: Constant, is_statistic: bool) -> str:
        """Register a constant as parameter or buffer under a name close to its own and return the name's path."""
        *owners, leaf = qualified(name).split(".")
        path = self._make_layer(".".join(owners))
        owner = self.get_submodule(path)
        names = {*owner._parameters, *owner._buffers, *owner._modules}
        leaf = identifier(leaf, names) if not leaf.isdigit() else qualified(leaf, names)
        if constant.is_weight and not is_statistic:
            owner.register_parameter(leaf, nn.Parameter(constant.tensor))
        else:
            owner.register_buffer(leaf, constant.tensor)
        return f"{path}.{leaf}" if path else leaf

    def _make_layer(self, path: str) -> str:
        """Make the modules of a dotted path where they are missing; return the path, changed where a weight has the name."""
        module: nn.Module = self
        parts: list[str] = []
        for part in path.split(".") if path else ():
            while part in module._parameters or part in module._buffers:
                part += "_"  # noqa: PLW2901
            if part not in module._modules:
                module.add_module(part, Layer())
            module = module.get_submodule(part)
            parts.append(part)
        return ".".join(parts)


def name_layers(graph: Graph, constants: Mapping[str, Constant]) -> Graph:
    """Give every node of a graph a layer: the module its weights belong to, or else its own name."""
    nodes = []
    for node in graph.nodes:
        owner = _owner(node, constants)
        # A convolution that took in a batch norm is recorded as the latter's, but keeps its own weights.
        layer = (owner if node.op in ("Conv", "ConvTranspose") else "") or node.layer or owner or qualified(node.name)
        nodes.append(replace(node, layer=layer))
    return replace(graph, nodes=tuple(nodes))


def _owner(node: Node, constants: Mapping[str, Constant]) -> str:
    """Return the dotted name before ".weight" of a stored tensor that the node reads, "" if there is none."""
    for name in node.inputs[:1] if node.op == "DequantizeLinear" else node.inputs[1:]:
        constant = constants.get(name)
        if constant is not None and "." in constant.path and not is_generated(constant.path):
            return qualified(constant.path.rpartition(".")[0])
    return ""


def _preferred_names(graph: Graph, constants: Mapping[str, Constant]) -> dict[str, str]:
    """Return better names for weights whose names an exporter made up: "onnx::Conv_278" is "features.0.weight"."""
    names: dict[str, str] = {}
    for node in graph.walk():
        layer = _owner(node, constants) or node.layer
        for value, role in zip(node.inputs, _ROLES.get(node.op, ()), strict=False):
            if role and value in constants and layer and value not in names and is_generated(constants[value].path):
                names[value] = f"{layer}.{role}"
    return names


def _statistics(graph: Graph) -> set[str]:
    """Return the values that are running statistics, which are not trained."""
    found = set()
    for node in graph.walk():
        roles = _ROLES.get(node.op, ())
        found |= {value for value, role in zip(node.inputs, roles, strict=False) if role in _STATISTICS}
    return found


def make_module(graph: Graph, constants: Mapping[str, Constant]) -> OnnxModule:
    """Return a module for a graph; it has a class of its own, whose forward takes the graph's inputs by name."""
    names: list[str] = []
    for port in graph.inputs:
        names.append(identifier(port.name, names))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(self: OnnxModule, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        return self.compute(*signature.bind(self, *args, **kwargs).args[1:])

    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__doc__ = OnnxModule.compute.__doc__
    own_class = type("OnnxModule", (OnnxModule,), {"forward": forward, "__doc__": OnnxModule.__doc__})
    module = own_class(graph, constants, tuple(names))
    assert isinstance(module, OnnxModule)
    return module


def meta_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's weights without their numbers, to compute shapes with."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}

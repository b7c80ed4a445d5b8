"""Read an ONNX file into a torch module that exports as the network that it was: the whole story on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsopt.errors import DsoptError
from dsopt.frontend.onnx_reader import ops  # noqa: F401  registers the operators
from dsopt.frontend.onnx_reader.example import Dims, make_inputs, read_dims, shapes_of, size_choices
from dsopt.frontend.onnx_reader.external import ExternalData
from dsopt.frontend.onnx_reader.file import load_proto
from dsopt.frontend.onnx_reader.fold import fold
from dsopt.frontend.onnx_reader.graph import Graph
from dsopt.frontend.onnx_reader.lower import lower
from dsopt.frontend.onnx_reader.lower_activations import lower_activations
from dsopt.frontend.onnx_reader.lower_dequantized import lower_dequantized
from dsopt.frontend.onnx_reader.lower_recurrent import lower_recurrent
from dsopt.frontend.onnx_reader.module import OnnxModule, make_module, name_layers
from dsopt.frontend.onnx_reader.parse import parse
from dsopt.frontend.onnx_reader.trial import check_operators, try_shapes


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model read from an ONNX file.

    module: takes the inputs by position or by `input_names`, returns {output name: tensor}.  example: seeded inputs, in the
    order of `input_names`.  dynamic: {input name: {axis: dim name}} for the sizes that vary; the same name means the same
    size.  input_names: as identifiers; onnx_input_names: as the file has them.  warnings: what is odd about the file and was
    accepted, such as weights that are not numbers.
    """

    module: OnnxModule
    example: tuple[Tensor, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    onnx_input_names: tuple[str, ...]
    warnings: tuple[str, ...]


def read_onnx(source: str | Path | bytes) -> OnnxModel:
    """Read an ONNX model from an untrusted file, or from bytes holding one, running no code of it.

    Opsets 7 and later are read. Weights kept beside the file are read from its own folder only.
    Raises ReadError DS0190 to DS0199: unreadable, damaged, too large, contradictory or of an unknown version;
    UnsupportedOpError DS0198 naming every node that is not supported.
    """
    if isinstance(source, str):
        source = Path(source)
    proto, label = load_proto(source)
    external = ExternalData(source.parent if isinstance(source, Path) else None)
    graph, refused = parse(proto, external, label)
    del proto
    if refused:
        check_operators(graph, refused, label)
    graph, constants, transposed = fold(graph)
    check_operators(graph, refused, label)
    graph = lower_activations(lower_dequantized(graph, constants))
    graph = name_layers(lower_recurrent(lower(graph, constants, transposed), constants), constants)
    module = make_module(graph, constants)
    dims = read_dims(graph.inputs, module.input_names)
    shapes = _fitting_shapes(module, graph, dims)
    return OnnxModel(
        module,
        make_inputs(graph, constants, shapes),
        dims.names,
        module.input_names,
        module.output_names,
        tuple(port.name for port in graph.inputs),
        _warnings(module),
    )


def _fitting_shapes(module: OnnxModule, graph: Graph, dims: Dims) -> list[tuple[int, ...]]:
    """Return input shapes that the graph can be computed with. Raises what is wrong with the likeliest ones if none is."""
    first: DsoptError | None = None
    for sizes in size_choices(graph.inputs, module.input_names, dims):
        shapes = shapes_of(graph.inputs, module.input_names, dims, sizes)
        problem = try_shapes(module, graph.inputs, shapes)
        if problem is None:
            return shapes
        first = first or (_with_sizes(problem, sizes) if sizes else problem)
    assert first is not None
    raise first


def _with_sizes(problem: DsoptError, sizes: Mapping[str, int]) -> DsoptError:
    """Say which sizes were tried: exporters fix a size by accident and still declare it as varying."""
    tried = ", ".join(f"{name}={size}" for name, size in sorted(sizes.items()))
    why = f"{problem.why}\nThis was tried with {tried}, and then with other sizes: none fits."
    fix = "Export the model again; a size that it declares as varying may have been fixed inside."
    return type(problem)(problem.code, problem.what, where=problem.where, why=why.strip(), fix=fix)


def _warnings(module: OnnxModule) -> tuple[str, ...]:
    found = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype in _CHECKED and not bool(torch.isfinite(tensor).all()):
            count = int(torch.isnan(tensor).sum())
            if count or name in dict(module.named_parameters()):
                what = f"{count:,} elements that are not numbers" if count else "infinite elements"
                found.append(f"weight {name!r} has {what}")
    return tuple(found)


_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

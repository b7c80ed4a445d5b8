"""A program as one file: a zip of stored members with fixed dates, JSON for the graph, plain little-endian bytes for weights.

    program.json     schema, nodes, signature, dims
    weights/0000     the bytes of weight 0, in the order of program.json's "weights"

Nothing in it is pickled. Reading treats the file as untrusted: names of operators are checked against an allow-list, arguments
are JSON values, sizes are parsed by a small grammar, and every shape is inferred again instead of being believed.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import DsoptError, ReadError, WriteError
from dsopt.ir import torch_private as private
from dsopt.ir.build import retype
from dsopt.ir.operators import checked_operator
from dsopt.ir.program import Program
from dsopt.ir.signature import Dim, Signature, StateSpec, ValueSpec, WeightSpec
from dsopt.zip_limits import open_zip

SCHEMA = 1
_ALIGNMENT = 64
_DATE = (1980, 1, 1, 0, 0, 0)
_MAX_SIZE = 1 << 48

_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "bool",
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
        "complex64",
        "complex128",
    )
}
_FORMATS = {
    "contiguous": torch.contiguous_format,
    "preserve": torch.preserve_format,
    "channels_last": torch.channels_last,
}


# ---- writing ----


def save_program(program: Program, path: Path) -> None:
    """Write a program beside `path` and rename it there, so that no half-written file is left. Raises WriteError."""
    content = program_bytes(program)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as problem:
        raise WriteError("DS0220", f"cannot write {path}", why=problem.strerror or str(problem)) from problem
    finally:
        temporary.unlink(missing_ok=True)


def program_bytes(program: Program) -> bytes:
    """Return the archive's bytes: the same for the same program."""
    specs: list[WeightSpec | StateSpec] = [*program.signature.weights, *program.signature.states]
    tensors = [program.weights[spec.name].detach().contiguous() for spec in specs]
    document = _document(program, tensors)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "program.json", json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode())
        for number, tensor in enumerate(tensors):
            _write_member(archive, f"weights/{number:04d}", private.tensor_bytes(tensor))
    return buffer.getvalue()


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Store a member so that its bytes begin at a multiple of 64 and can be mapped: the extra field takes up the slack."""
    info = zipfile.ZipInfo(name, _DATE)
    info.external_attr = 0o644 << 16
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode())
    slack = -start % _ALIGNMENT
    slack += _ALIGNMENT if 0 < slack < 4 else 0
    if slack:
        info.extra = b"\x7d\x5d" + (slack - 4).to_bytes(2, "little") + bytes(slack - 4)
    archive.writestr(info, content)


def _document(program: Program, tensors: list[Tensor]) -> dict[str, Any]:
    names = {node: f"n{number}" for number, node in enumerate(program.graph.nodes)}
    signature, examples = program.signature, program.example_sizes()
    specs: list[WeightSpec | StateSpec] = [*signature.weights, *signature.states]
    return {
        "schema": SCHEMA,
        "kind": "dsopt program",
        "weights": [
            {"name": spec.name, "kind": spec.kind if isinstance(spec, WeightSpec) else "state", "dtype": _dtype_name(tensor.dtype),
             "shape": list(tensor.shape)}
            for spec, tensor in zip(specs, tensors, strict=True)
        ],
        "inputs": [
            {"name": spec.name, "dtype": _dtype_name(program.dtype(node)), "shape": list(program.shape(node))}
            for spec, node in zip(signature.inputs, program.inputs, strict=True)
        ],
        "outputs": [spec.name for spec in signature.outputs],
        "input_tree": signature.input_tree,
        "output_tree": signature.output_tree,
        "argument_names": list(signature.argument_names),
        "dims": {name: {"min": dim.min, "max": dim.max, "example": examples[name]} for name, dim in program.dims.items()},
        "nodes": [_node_document(program, node, names) for node in program.graph.nodes if node.op != "output"],
        "results": [names[node] for node in program.output_node.args[0]],  # type: ignore[union-attr]
    }  # fmt: skip


def _node_document(program: Program, node: fx.Node, names: Mapping[fx.Node, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": names[node], "name": node.name}
    for key, text in (("layer", program.layer(node)), ("source", program.source(node))):
        if text:
            entry[key] = text
    facts = node.meta.get("custom", {}).get("dsopt", {})
    if facts:
        entry["facts"] = _encode(facts, names)
    if node.op == "call_function":
        entry["op"] = private.target_text(node.target)
        entry["args"] = [_encode(item, names) for item in node.args]
        if node.kwargs:
            entry["kwargs"] = {key: _encode(item, names) for key, item in node.kwargs.items()}
    return entry


def _encode(value: Any, names: Mapping[fx.Node, str]) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": names[value]}
    if isinstance(value, (list, tuple)):
        return [_encode(item, names) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[str(key), _encode(item, names)] for key, item in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype_name(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, torch.layout):
        return {"layout": str(value).removeprefix("torch.")}
    for name, known in _FORMATS.items():
        if value is known:
            return {"memory_format": name}
    raise WriteError("DS0221", f"a program holds a {type(value).__name__}, which its file form has no place for")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- reading ----


def load_program(path: Path) -> Program:
    """Read an archive, without running any code that it may hold. Raises ReadError."""
    with open_zip(path) as archive:
        document = _read_json(archive.read("program.json", archive.limits.json_bytes), path)
        try:
            tensors = [_read_tensor(archive, number, entry) for number, entry in enumerate(document["weights"])]
            program = _build(document, tensors)
            program.verify()
        except ReadError:
            raise
        except DsoptError as problem:
            raise ReadError(
                "DS0222", f"{path} holds a program that contradicts itself", where=problem.where, why=problem.what
            ) from problem
        except Exception as problem:  # operators refuse altered arguments each in their own way
            raise ReadError(
                "DS0222", f"{path} is truncated or altered", why=f"{type(problem).__name__}: {str(problem)[:200]}",
                fix="write it again with Program.save",
            ) from problem  # fmt: skip
    return program


def _read_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise ReadError("DS0222", f"{path} is truncated or altered: its program.json is no JSON") from problem
    if (
        not isinstance(document, dict)
        or document.get("kind") != "dsopt program"
        or not isinstance(document.get("schema"), int)
    ):
        raise ReadError("DS0222", f"{path} is no program that dsopt wrote")
    if document["schema"] > SCHEMA:
        raise ReadError(
            "DS0223",
            f"{path} was written by a newer dsopt (schema {document['schema']}, known: {SCHEMA})",
            fix="upgrade dsopt",
        )
    return document


def _read_tensor(archive: Any, number: int, entry: Mapping[str, Any]) -> Tensor:
    shape = [int(size) for size in entry["shape"]]
    dtype = _DTYPES[entry["dtype"]]
    count = math.prod(shape)
    if min(shape, default=1) < 0 or count > _MAX_SIZE:
        raise ReadError("DS0222", f"weight {entry['name']!r} has an impossible shape {shape}")
    name = f"weights/{number:04d}"
    wanted = count * torch.empty((), dtype=dtype).element_size()
    if archive.byte_count(name) != wanted:
        raise ReadError(
            "DS0222", f"weight {entry['name']!r} has {archive.byte_count(name)} bytes, its shape needs {wanted}"
        )
    return private.tensor_from_bytes(archive.read_into_buffer(name), dtype, shape)


def _build(document: Mapping[str, Any], tensors: list[Tensor]) -> Program:
    entries = document["weights"]
    weights = {str(entry["name"]): tensor for entry, tensor in zip(entries, tensors, strict=True)}
    kept = tuple(
        WeightSpec(str(entry["name"]), entry["kind"])
        for entry in entries
        if entry["kind"] in ("parameter", "buffer", "constant")
    )
    states = tuple(StateSpec(str(entry["name"])) for entry in entries if entry["kind"] == "state")
    if len(weights) != len(entries) or len(kept) + len(states) != len(entries):
        raise ReadError("DS0222", "two weights have one name, or a weight is of no known kind")
    inputs = document["inputs"]
    signature = Signature(
        kept, states, tuple(ValueSpec(str(entry["name"])) for entry in inputs), tuple(ValueSpec(str(name)) for name in document["outputs"]),
        document["input_tree"], document["output_tree"], tuple(str(name) for name in document["argument_names"]),
    )  # fmt: skip
    dims = {
        str(name): Dim(str(name), int(entry["min"]), None if entry["max"] is None else int(entry["max"]))
        for name, entry in document["dims"].items()
    }
    graph = _build_graph(document)
    program = Program(graph, weights, signature, dims, {name: name for name in dims})
    shapes = [
        *(tuple(tensor.shape) for tensor in tensors),
        *(tuple(_size(size) for size in entry["shape"]) for entry in inputs),
    ]
    dtypes = [*(tensor.dtype for tensor in tensors), *(_DTYPES[entry["dtype"]] for entry in inputs)]
    if len(program.placeholders) != len(shapes):
        raise ReadError(
            "DS0222", f"{len(program.placeholders)} placeholders for {len(shapes)} weights, states and inputs"
        )
    for node, spec in zip(program.inputs, signature.inputs, strict=True):
        node.meta["input_name"] = spec.name
    given = dict(zip(program.placeholders, zip(shapes, dtypes, strict=True), strict=True))
    retype(program, dims, {}, given, _examples(document["dims"], dims))
    return program


def _examples(entries: Mapping[str, Any], dims: Mapping[str, Dim]) -> dict[str, int]:
    """Return the sizes of the captured example, where the archive has them. Raises ReadError for one that its dim cannot have."""
    found: dict[str, int] = {}
    for name, dim in dims.items():
        example = entries[name].get("example")
        if example is None:
            continue
        if type(example) is not int or not dim.min <= example <= (_MAX_SIZE if dim.max is None else dim.max):
            raise ReadError("DS0222", f"{example!r} is no size of the dim {name!r}")
        found |= {name: example} if example > 1 else {}  # torch takes 1 for a fixed size
    return found


def _size(value: Any) -> int | str:
    if isinstance(value, str) and len(value) <= 200:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_SIZE:
        return value
    raise ReadError("DS0222", f"{value!r} is not a size")


def _build_graph(document: Mapping[str, Any]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        identity = str(entry["id"])
        if identity in nodes:
            raise ReadError("DS0222", f"two nodes are called {identity}")
        if "op" in entry:
            target = private.target_from_text(checked_operator(str(entry["op"])))
            arguments = tuple(_decode(item, nodes) for item in entry["args"])
            keywords = {str(key): _decode(item, nodes) for key, item in entry.get("kwargs", {}).items()}
            node = graph.create_node("call_function", target, arguments, keywords, name=_identifier(entry["name"]))
        else:
            node = graph.create_node("placeholder", _identifier(entry["name"]), name=_identifier(entry["name"]))
        facts = _decode(entry.get("facts", {"map": []}), nodes)
        node.meta = {
            "layer": str(entry.get("layer", "")),
            "source": str(entry.get("source", "")),
            "custom": {"dsopt": facts},
        }
        nodes[identity] = node
    graph.output(tuple(nodes[str(name)] for name in document["results"]))
    return graph


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 500:
        raise ReadError("DS0222", f"{str(name)[:40]!r} is no node name")
    return name


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": lambda text: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[text],
    "dtype": lambda text: _DTYPES[text],
    "device": lambda text: {"cpu": torch.device("cpu")}[text],
    "layout": lambda text: {"strided": torch.strided}[text],
    "memory_format": lambda text: _FORMATS[text],
}


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    kind, content = next(iter(value.items()))
    if kind == "node":
        return nodes[content]
    if kind == "map":
        return {str(key): _decode(item, nodes) for key, item in content}
    return _DECODERS[kind](content)

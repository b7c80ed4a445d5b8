"""Every private name of torch that dsopt touches, in one file, tested on the oldest and newest supported torch.

Sections: fake tensors and symbols (used by `Program`); reading exported archives (used by the frontend).
"""

from __future__ import annotations

import importlib
import logging
import math
import operator
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, statically_known_true
from torch.utils._sympy.value_ranges import ValueRanges

make_fx = proxy_tensor.make_fx

# ---- fake tensors and symbols ----


def new_fake_mode() -> FakeTensorMode:
    """Return a fresh mode in which operators compute shapes and dtypes only."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """Return the mode that typed the graph's placeholders; a fresh one if there is none."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return new_fake_mode()


def new_symbol(mode: FakeTensorMode, name: str, hint: int, low: int, high: int | None) -> torch.SymInt:
    """Create a varying size with an example value `hint` and the range low..high in the mode's shape environment."""
    env = mode.shape_env
    assert env is not None
    source = LocalSource(name)
    symbol = env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    bounds = ValueRanges(low, high) if high is not None else ValueRanges(low, env.var_to_range[symbol].upper)
    env.var_to_range[symbol] = bounds
    size = env.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(size, torch.SymInt)
    return size


def fake_tensor(mode: FakeTensorMode, shape: tuple[Any, ...], dtype: torch.dtype) -> FakeTensor:
    """Return a contiguous fake tensor of a shape that may hold SymInts."""
    with mode:
        value = torch.empty(shape, dtype=dtype)
    assert isinstance(value, FakeTensor)
    return value


@contextmanager
def fake_execution(mode: FakeTensorMode) -> Iterator[None]:
    """Run operators on fake tensors; sizes that depend on data become new symbols instead of errors.

    The Python dispatcher supplies the shape rules of composite operators such as lstm when sizes vary.
    """
    with mode, enable_python_dispatcher(), recurrent_shape_rules(), torch.no_grad():
        yield


def same_size(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Tell whether two sizes are equal for every value of the symbols, without adding an assumption."""
    return bool(statically_known_true(left == right))


def symbol_names(size: int | torch.SymInt) -> tuple[str, ...]:
    """Return the symbols of a size, sorted; none for an int."""
    if isinstance(size, int):
        return ()
    return tuple(sorted(str(symbol) for symbol in size.node.expr.free_symbols))


def symbol_range(mode: FakeTensorMode, symbol: str) -> tuple[int, int | None]:
    """Return the smallest and the largest value (None: unbounded) that a symbol of the mode may take."""
    env = mode.shape_env
    assert env is not None
    for key, bounds in env.var_to_range.items():
        if str(key) == symbol:
            upper = bounds.upper
            return int(bounds.lower), int(upper) if upper.is_Integer and int(upper) < 2**31 else None
    return 1, None


def hint_of(size: int | torch.SymInt) -> int:
    """Return a size's value for the example that the program was captured with."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 8


def is_fake(value: object) -> bool:
    """Tell whether a value is a fake tensor."""
    return isinstance(value, FakeTensor)


def schema_mutates(op: object) -> bool:
    """Tell whether an operator writes into one of its arguments."""
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable


def aliases_input(op: object) -> bool:
    """Tell whether an operator's result may share memory with an argument."""
    return isinstance(op, torch._ops.OpOverload) and any(item.alias_info is not None for item in op._schema.returns)


def operator_name(op: object) -> str:
    """Return "aten.conv2d.default" of an operator overload."""
    assert isinstance(op, torch._ops.OpOverload)
    return str(op)


def is_operator(target: object) -> bool:
    """Tell whether an fx target is a torch operator overload."""
    return isinstance(target, torch._ops.OpOverload)


def detached_copy(value: Tensor) -> Tensor:
    """Return a contiguous copy of a tensor without gradient history."""
    return value.detach().clone(memory_format=torch.contiguous_format)


def size_at(size: int | torch.SymInt, values: dict[str, int]) -> int:
    """Return a size for given values of its symbols by name; other symbols take the value of the captured example."""
    if isinstance(size, int):
        return size
    expression, env = size.node.expr, size.node.shape_env
    recorded = getattr(env, "backed_var_to_val", None) or getattr(env, "var_to_val", {})
    known = {symbol: values.get(str(symbol), int(recorded.get(symbol, 8))) for symbol in expression.free_symbols}
    return int(expression.subs(known))


# ---- exported programs ----


def argument_names(exported: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Return the names of the arguments that `forward` was exported with, positional ones first; () if not recorded."""
    signature = exported.module_call_graph[0].signature if exported.module_call_graph else None
    names = getattr(signature, "forward_arg_names", None)
    return tuple(names) if names else ()


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph with its nodes' names and metadata."""
    copy, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    copy.output(copy.graph_copy(graph, copies))
    copy.output_node().meta = dict(graph.output_node().meta)
    return copy


def tree_kind(spec: Any) -> str:
    """Return "leaf", "none", "tuple", "list" or "dict" (which named tuples and data classes with names are) of a pytree spec."""
    if spec.is_leaf():
        return "leaf"
    if spec.type in (dict,) or tree_keys(spec):
        return "dict"
    if spec.type is type(None):
        return "none"
    return "list" if spec.type is list else "tuple"


def tree_children(spec: Any) -> list[Any]:
    """Return the specs of a pytree spec's children."""
    return list(spec.children())


def tree_keys(spec: Any) -> list[str]:
    """Return the names of the children of a dict, named tuple or data class; [] where they have none."""
    if spec.is_leaf() or spec.type is None:
        return []
    context = spec.context
    if isinstance(context, type) and hasattr(context, "_fields"):
        return [str(name) for name in context._fields]
    if spec.type.__name__ in ("dict", "OrderedDict", "defaultdict", "immutable_dict"):
        keys = context[-1] if spec.type.__name__ == "defaultdict" else context
        return [str(key) for key in keys]
    if (
        isinstance(context, (list, tuple))
        and len(context) == len(spec.children())
        and all(isinstance(key, str) for key in context)
    ):
        return list(context)
    if isinstance(context, (list, tuple)) and context and isinstance(context[0], (list, tuple)):
        names = list(context[0])
        if len(names) == len(spec.children()) and all(isinstance(key, str) for key in names):
            return names
    return []


def is_unbacked(size: object) -> bool:
    """Tell whether a size depends on data, as the count of nonzero elements does."""
    return isinstance(size, torch.SymInt) and any(str(symbol).startswith("u") for symbol in size.node.expr.free_symbols)


# ---- reading exported archives (dsopt/frontend) ----


def archive_schema(name: str) -> Any:
    """Return a class of torch's schema for exported archives: "ExportedProgram", "PayloadConfig"."""
    from torch._export.serde import schema

    return getattr(schema, name)


def archive_schema_version() -> int:
    """Return the major version of archives that the installed torch reads."""
    from torch._export.serde import schema

    return int(schema.SCHEMA_VERSION[0])


def archive_union_base() -> type:
    """Return the base of the schema's unions, whose JSON is {member: value}."""
    from torch._export.serde.union import _Union

    return _Union


def archive_dtype(code: int) -> torch.dtype:
    """Return the dtype that an archive writes as `code`. Raises KeyError if there is none."""
    from torch._export.serde import serialize

    dtype = serialize._SERIALIZE_TO_TORCH_DTYPE[code]
    assert isinstance(dtype, torch.dtype)
    return dtype


def rebuild_exported_program(
    document: dict[str, Any], state: dict[str, Tensor], constants: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    """Turn the JSON of an archive and its tensors into a program.

    `document` must have been checked: torch evaluates the symbolic sizes, names and tree specs in it as Python.
    """
    from torch._export.serde import schema, serialize

    program = serialize._dict_to_dataclass(schema.ExportedProgram, document)  # type: ignore[no-untyped-call]
    with quiet_torch(), _sizes_of_torch(serialize.GraphModuleDeserializer):
        rebuilt = serialize.ExportedProgramDeserializer().deserialize(program, state, constants)
    assert isinstance(rebuilt, torch.export.ExportedProgram)
    return rebuilt


@contextmanager
def _sizes_of_torch(deserializer: Any) -> Iterator[None]:
    """Let Max and Min in sizes be torch's own: sympy's, which torch reads by default, are not equal to those of its operators."""
    from torch.utils._sympy.functions import Max, Min

    parse = deserializer._parse_sym_expr

    def parse_with_ours(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.sympy_functions |= {"Max": Max, "Min": Min}
        return parse(self, *args, **kwargs)

    deserializer._parse_sym_expr = parse_with_ours
    try:
        yield
    finally:
        deserializer._parse_sym_expr = parse


def register_operators(namespace: str) -> None:
    """Import the module of torch that registers a namespace which is not registered from the start."""
    if namespace == "quantized_decomposed":
        import torch.ao.quantization.fx._decomposed  # noqa: F401


def has_operator(namespace: str, name: str, overload: str) -> bool:
    """Tell whether torch's dispatcher knows an operator overload; operators of TorchScript alone are not in it."""
    suffix = "" if overload == "default" else f".{overload}"
    return bool(torch._C._dispatch_has_kernel(f"{namespace}::{name}{suffix}"))


def operator_argument_types(namespace: str, name: str, overload: str) -> tuple[str, ...]:
    """Return the types of an operator's arguments as its schema spells them, such as "List[int]"."""
    schema = torch._C._get_schema(f"{namespace}::{name}", "" if overload == "default" else overload)
    return tuple(str(argument.type) for argument in schema.arguments)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from logging and printing what it then raises; TORCH_LOGS in the environment lets it speak."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    trace: Any = importlib.import_module("torch.export._trace")  # torch.export prints the graph so far to stderr
    names = [name for name in logging.root.manager.loggerDict if name == "torch" or name.startswith("torch.")]
    loggers = [logging.getLogger(name) for name in names]
    muted = [logger for logger in loggers if not logger.disabled]
    for logger in muted:
        logger.disabled = True
    printing = vars(trace).get("print", print)
    trace.print = lambda *args, **kwargs: None
    try:
        yield
    finally:
        trace.print = printing
        for logger in muted:
            logger.disabled = False


@contextmanager
def guards_name_model_lines() -> Iterator[None]:
    """Let torch note, for every assumption about a size, the line of the model that led to it instead of a line of torch.

    Torch skips the files in this set when it looks for that line; the files of torch itself are added for a while.
    """
    from torch.fx.experimental.symbolic_shapes import uninteresting_files

    skipped = uninteresting_files()
    folder = str(Path(torch.__file__).parent)
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    added = {file for file in files if file.startswith(folder)} - skipped
    skipped |= added
    try:
        yield
    finally:
        skipped -= added


def guard_locations(variables: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return (file, line) of each assumption in the shape environments among a frame's variables."""
    found = []
    for env in variables.values():
        if isinstance(env, ShapeEnv):
            places = [*env.replacements_slocs.values(), *(guard.sloc for guard in env.guards)]
            frames = [getattr(place, "framework_loc", None) for place in places]
            found += [(frame.filename, frame.lineno or 0) for frame in frames if isinstance(frame, FrameSummary)]
    return found


# ---- shape rules of recurrent operators ----


def _lstm_shapes(x: Tensor, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
                 bidirectional: bool, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    features = hx[0].shape[-1] * (2 if bidirectional else 1)
    return x.new_empty((*x.shape[:-1], features)), hx[0].new_empty(hx[0].shape), hx[1].new_empty(hx[1].shape)


def _rnn_shapes(x: Tensor, hx: Tensor, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
                bidirectional: bool, batch_first: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    features = hx.shape[-1] * (2 if bidirectional else 1)
    return x.new_empty((*x.shape[:-1], features)), hx.new_empty(hx.shape)


_RECURRENT = {
    torch.ops.aten.lstm.input: _lstm_shapes,
    torch.ops.aten.gru.input: _rnn_shapes,
    torch.ops.aten.rnn_tanh.input: _rnn_shapes,
    torch.ops.aten.rnn_relu.input: _rnn_shapes,
}


@contextmanager
def recurrent_shape_rules() -> Iterator[None]:
    """Type recurrent operators by shape alone while the context lasts.

    Torch's own rule unrolls them over time, which fixes the length of the sequence: a varying one could not be captured.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    saved = {op: op.py_kernels.get(key) for op in _RECURRENT}
    for op, rule in _RECURRENT.items():
        op.py_kernels[key] = rule
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernel in saved.items():
            if kernel is None:
                op.py_kernels.pop(key, None)
            else:
                op.py_kernels[key] = kernel
            op._dispatch_cache.clear()


# ---- the archive of programs ----


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a contiguous tensor's elements as little-endian bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tensor_from_bytes(buffer: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Return a tensor over a buffer of little-endian elements, which it keeps alive. Booleans other than 0 and 1 become 1."""
    if not buffer:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.frombuffer(buffer, dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def target_text(target: Any) -> str:
    """Return a call's target as text: "torch.ops.aten.conv2d.default", "_operator.add", "math.floor", "torch.sym_max"."""
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    return f"{target.__module__}.{target.__name__}"


def target_from_text(text: str) -> Any:
    """Return the target of a text that has passed the allow-list of `dsopt.ir.operators`."""
    if text.startswith("torch.ops."):
        namespace, packet, overload = text.removeprefix("torch.ops.").split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    module, _, name = text.rpartition(".")
    return getattr({"_operator": operator, "math": math, "torch": torch}[module], name)


# ---- arguments by name ----


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an operator call by the names in its schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if not argument.kwarg_only and position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def call_arguments(op: Any, named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return args and kwargs that call an operator with arguments by name; keywords that have their default are left out."""
    arguments = op._schema.arguments
    args = tuple(named[item.name] for item in arguments if not item.kwarg_only)
    keywords = {item.name: named[item.name] for item in arguments if item.kwarg_only}
    defaults = {item.name: item.default_value for item in arguments}
    return args, {name: value for name, value in keywords.items() if value is not defaults[name]}

"""Capture a live module: torch.export with the user's names, in inference mode, without touching the user's module."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram

from dsopt.errors import CaptureError, DsoptError, UsageError
from dsopt.frontend.quantized import adopt_quantisation
from dsopt.ir import Program
from dsopt.ir.build import from_exported
from dsopt.ir.torch_private import guards_name_model_lines, quiet_torch, recurrent_shape_rules

DynamicSizes = Mapping[str, Mapping[int, Any]]
"""{input name: {axis: dim name | (dim name, min, max)}}; a nested input has a dotted name such as "opts.k"."""


def export_module(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic: DynamicSizes | None = None,
) -> Program:
    """Export a module for inference and make a Program of it; the module is left as it was.

    dynamic: the sizes that vary. A varying axis whose example has size 1 is exported with a copy of size 2, because torch
    takes 1 for a fixed size. Raises CaptureError with the user's line, UsageError for a name in `dynamic` that is no input.
    """
    bound = _bound_arguments(model, tuple(args), dict(kwargs or {}))
    _check_dynamic(bound, dynamic or {})
    dims = _export_dims(dynamic or {})
    widened = _map_named(bound, lambda name, value: _widen(value, (dynamic or {}).get(name, {})))
    shapes = _map_named(bound, lambda name, value: _axes(value, (dynamic or {}).get(name, {}), dims))
    positional, keywords = _split_bound(widened, args, dict(kwargs or {}))
    with _inference(model), guards_name_model_lines(), quiet_torch():
        try:
            exported = torch.export.export(
                model, positional, keywords, dynamic_shapes=shapes if dynamic else None, strict=False
            )
        except DsoptError:
            raise  # an ONNX file's own error, already a sentence
        except Exception as problem:  # torch.export fails in many ways; diagnose turns each into a sentence
            from dsopt.frontend.diagnose import explain_export_failure

            raise explain_export_failure(problem, model) from problem
    dim_names = {
        (name, axis): _dim_name(given) for name, axes in (dynamic or {}).items() for axis, given in axes.items()
    }
    return finish(exported, dim_names)


def finish(
    exported: ExportedProgram, dim_names: Mapping[tuple[str, int], str], names: list[str] | None = None
) -> Program:
    """Make a Program of an exported one and check it. Raises CaptureError."""
    with quiet_torch():
        program = from_exported(exported, dim_names)
        _refuse_devices(program)
        adopt_quantisation(program)
        program.verify()
    return program


def _refuse_devices(program: Program) -> None:
    elsewhere = sorted(
        {f"{name} on {value.device}" for name, value in program.weights.items() if value.device.type != "cpu"}
    )
    if elsewhere:
        raise CaptureError(
            "DS0127",
            f"weights are not in this computer's memory: {', '.join(elsewhere[:5])}",
            fix="call model.cpu() first",
        )


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Export in eval mode, attention as one operator, then put every submodule's mode back."""
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        with warnings.catch_warnings(), recurrent_shape_rules():
            warnings.simplefilter("ignore")  # torch warns about its own internals here; failures are raised
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode


# ---- varying sizes ----


def _check_dynamic(bound: Mapping[str, Any], dynamic: DynamicSizes) -> None:
    tensors = {name: value for name, value in _named_leaves(bound) if isinstance(value, Tensor)}
    for name, axes in dynamic.items():
        if name not in tensors:
            raise UsageError(
                "DS0128", f"dynamic names {name!r}, which is no input", fix="inputs: " + ", ".join(tensors)
            )
        for axis in axes:
            if not 0 <= axis < tensors[name].dim():
                raise UsageError(
                    "DS0128", f"dynamic names axis {axis} of {name!r}, which has {tensors[name].dim()} axes"
                )


def _dim_name(given: Any) -> str:
    name = given if isinstance(given, str) else given[0] if isinstance(given, tuple) else getattr(given, "__name__", "")
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(
            "DS0128", f"{given!r} is no dim", fix='write {"x": {0: "batch"}} or {"x": {0: ("batch", 1, 64)}}'
        )
    return name


def _export_dims(dynamic: DynamicSizes) -> dict[str, Any]:
    """One torch Dim per name; the same name on several inputs says that their sizes are equal."""
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for axes in dynamic.values():
        for given in axes.values():
            name = _dim_name(given)
            low, high = (given[1], given[2]) if isinstance(given, tuple) and len(given) == 3 else (None, None)
            known = ranges.get(name, (None, None))
            ranges[name] = (low if known[0] is None else known[0], high if known[1] is None else known[1])
    try:
        return {name: ExportDim(name, min=low, max=high) for name, (low, high) in ranges.items()}
    except (ValueError, AssertionError) as problem:
        raise UsageError("DS0128", f"a dim has an impossible range: {problem}") from problem


def _axes(value: Any, axes: Mapping[int, Any], dims: Mapping[str, Any]) -> Any:
    return (
        {axis: dims[_dim_name(given)] for axis, given in axes.items()} if isinstance(value, Tensor) and axes else None
    )


def _widen(value: Any, axes: Mapping[int, Any]) -> Any:
    if isinstance(value, Tensor):
        for axis in axes:
            if value.shape[axis] == 1:
                value = torch.cat([value, value], dim=axis)
    return value


# ---- nested arguments ----


def _map_named(bound: Mapping[str, Any], function: Any) -> dict[str, Any]:
    """Rebuild the nested arguments with function(dotted name, leaf) in place of each leaf."""

    def walk(path: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return type(value)({key: walk(f"{path}.{key}", item) for key, item in value.items()})  # type: ignore[call-arg]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(walk(f"{path}.{key}", item) for key, item in zip(value._fields, value, strict=True)))
        if isinstance(value, (tuple, list)):
            return type(value)(walk(f"{path}.{number}", item) for number, item in enumerate(value))
        return function(path, value)

    return {name: walk(name, value) for name, value in bound.items()}


def _split_bound(
    bound: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = list(bound)
    positional = tuple(bound[name] for name in names[: len(args)])
    return positional, {name: bound[name] for name in kwargs}


def _bound_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return {argument name of forward: value}, positional ones first, defaults left out. Raises UsageError for a wrong call."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as problem:
        raise UsageError(
            "DS0129", f"the example does not fit the model's forward{inspect.signature(model.forward)}: {problem}"
        ) from problem
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{number}": item for number, item in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _named_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, leaf) of nested dicts, tuples and lists, in order."""
    if isinstance(value, dict):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        pairs = [(str(number), item) for number, item in enumerate(value)]
    else:
        yield path, value
        return
    for key, item in pairs:
        yield from _named_leaves(item, f"{path}.{key}" if path else key)

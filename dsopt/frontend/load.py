"""Choose the reader of a model: by type for Python objects, by content for files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.export import ExportedProgram

from dsopt.errors import CaptureError, ReadError, UsageError
from dsopt.frontend.example import parse_input_spec
from dsopt.frontend.export import export_module, finish
from dsopt.frontend.factory import load_factory
from dsopt.frontend.pt import read_pt
from dsopt.frontend.pt2 import read_pt2
from dsopt.frontend.sniff import Kind, sniff
from dsopt.frontend.spec import ModelSpec
from dsopt.ir import Program

if TYPE_CHECKING:
    from dsopt.frontend.export import DynamicSizes


def capture_any(
    model: nn.Module | ExportedProgram | ModelSpec | str | Path,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic: DynamicSizes | None,
    trust_pickle: bool,
) -> Program:
    """Capture what `dsopt.capture` takes; see there."""
    if isinstance(model, ModelSpec):
        return _capture_spec(model, args, kwargs, dynamic)
    if isinstance(model, nn.Module):
        return export_module(model, args, kwargs, dynamic)
    if isinstance(model, ExportedProgram):
        return finish(model, {})
    if isinstance(model, (str, Path)):
        return _capture_named(str(model), args, kwargs, dynamic, trust_pickle)
    raise UsageError(
        "DS0130",
        f"cannot capture a {type(model).__name__}",
        fix="give an nn.Module, an ExportedProgram, a file or package.module:factory",
    )


def capture_text(text: str, input_specs: tuple[str, ...], trust_pickle: bool) -> Program:
    """Capture a file or factory named on a command line; `input_specs` are "name:2x3:float32", for what has no example."""
    example = [parse_input_spec(spec) for spec in input_specs]
    return _capture_named(text, (), dict(example), None, trust_pickle)


def _capture_named(
    text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: DynamicSizes | None, trust_pickle: bool
) -> Program:
    path = Path(text)
    if _names_module(text):
        raise UsageError(
            "DS0155",
            f"{text!r} names a module and no factory in it",
            fix=f"name a function of it, as {_module(text)}:make",
        )
    if not path.exists():
        module, colon, _ = text.partition(":")
        if colon and "/" not in module and not text.endswith((".pt", ".pt2", ".onnx")):
            return _capture_spec(load_factory(text), args, kwargs, dynamic)
        raise ReadError(
            "DS0140", f"there is no file {text}", fix="give a .pt2, .onnx or .pt file, or package.module:factory"
        )
    kind = sniff(path)
    if kind is Kind.PT2:
        return finish(read_pt2(path), {})
    if kind is Kind.ONNX:
        return _capture_onnx(path)
    if kind is Kind.PROGRAM:
        return Program.load(path)
    if kind is Kind.ARTIFACT:
        raise UsageError(
            "DS0131",
            f"{text} is an artifact, which is compiled already",
            fix="give the model, or use dsopt run or inspect",
        )
    found = read_pt(path, trust_pickle)
    return (
        finish(found, {}) if isinstance(found, ExportedProgram) else _capture_module(found, args, kwargs, dynamic, text)
    )


def _names_module(text: str) -> bool:
    """Tell whether a text without ":factory" stands for a Python module or package below the working folder."""
    name = _module(text)
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    place = Path(*name.split("."))
    is_ours = place.with_name(f"{place.name}.py").is_file() or (place / "__init__.py").is_file()
    return is_ours and (text.endswith(".py") or not Path(text).is_file()) and not (place / "manifest.json").is_file()


def _module(text: str) -> str:
    return text.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")


def _capture_spec(
    spec: ModelSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: DynamicSizes | None
) -> Program:
    if args or kwargs:
        return _capture_module(spec.model, args, kwargs, dynamic or spec.dynamic, type(spec.model).__name__)
    return _capture_module(spec.model, spec.args, spec.kwargs, dynamic or spec.dynamic, type(spec.model).__name__)


def _capture_module(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: DynamicSizes | None, label: str
) -> Program:
    if not args and not kwargs:
        raise CaptureError(
            "DS0132", f"{label} carries no example input, and a graph can only be recorded by running one",
            fix='give --input name:1x3x224x224:float32, or return (module, (example,)) from the factory',
        )  # fmt: skip
    return export_module(model, args, kwargs, dynamic)


def _capture_onnx(path: Path) -> Program:
    from dsopt.frontend.onnx_reader import keeping_node_names, name_sources, read_onnx

    model = read_onnx(path)
    with keeping_node_names():
        program = export_module(model.module, tuple(model.example), {}, model.dynamic)
    return name_sources(program)

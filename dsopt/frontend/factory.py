"""Load a model named as `package.module:factory` and say plainly why it does not load."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsopt.errors import CaptureError, UsageError
from dsopt.frontend.spec import ModelSpec
from dsopt.frontend.traces import Line, code_at, frames_of, is_model_file

_FORM = "package.module:factory, such as models.kws:make"


def load_factory(text: str) -> ModelSpec:
    """Import `package.module:factory`, call it without arguments, and return what it describes as a ModelSpec.

    The factory may return an nn.Module (without an example), (module, args[, kwargs[, dynamic]]) or a ModelSpec; a name that
    is an nn.Module itself, or a class of one, is taken as it is. The working folder is importable, as with `python -m`.
    Raises UsageError: DS0155 for another form, DS0156 if the import fails, DS0157 if the name is not there or not callable,
    DS0159 if the factory returns something else; CaptureError DS0158 if it raises; with the line of the user's code.
    """
    module_name, separator, attribute = text.partition(":")
    is_dotted = all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")])
    if not separator or not is_dotted:
        raise UsageError("DS0155", f"{text!r} does not name a model factory", fix=f"Write {_FORM}.")
    module = _import(module_name, text)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise _no_attribute(text, target, part, module_name)
        target = getattr(target, part)
    if isinstance(target, nn.Module):
        return ModelSpec(target, ())
    if not callable(target):
        raise UsageError(
            "DS0157", f"{text} is a {type(target).__name__} and cannot be called", fix=f"Name a function: {_FORM}."
        )
    try:
        made = target()
    except Exception as error:
        message = f"{text} raised {_summary(error)}"
        raise CaptureError(
            "DS0158", message, where=user_line(error), fix="Run the factory in Python to see the rest."
        ) from error
    return _spec(made, text)


def _import(name: str, text: str) -> Any:
    folder = os.getcwd()
    if "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        is_ours = error.name is not None and (name == error.name or name.startswith(error.name + "."))
        if is_ours:
            why = f"Looked in the working folder {folder} and on the Python path."
            fix = "Start dsopt in the folder that holds the package, or set PYTHONPATH."
            raise UsageError("DS0156", f"there is no module {error.name!r} (from {text})", why=why, fix=fix) from error
        fix = f"Install {error.name!r} where dsopt runs: python -m pip install ..."
        raise UsageError(
            "DS0156", f"importing {name} failed: {_summary(error)}", where=user_line(error), fix=fix
        ) from error
    except Exception as error:  # the user's module runs on import
        raise UsageError("DS0156", f"importing {name} failed: {_summary(error)}", where=user_line(error)) from error


def _no_attribute(text: str, target: Any, part: str, module_name: str) -> UsageError:
    known = (
        sorted(name for name, value in vars(target).items() if callable(value) and not name.startswith("_"))
        if hasattr(target, "__dict__")
        else []
    )
    own = [name for name in known if getattr(getattr(target, name), "__module__", "") == module_name] or known
    near = difflib.get_close_matches(part, own, n=3) or own[:8]
    fix = f"It has {', '.join(near)}." if near else f"Define it: def {part}() -> nn.Module."
    return UsageError("DS0157", f"{module_name} has no {part!r} (from {text})", fix=fix)


def _spec(made: Any, text: str) -> ModelSpec:
    if isinstance(made, ModelSpec):
        parts: tuple[Any, ...] = tuple(made)
    elif isinstance(made, nn.Module):
        parts = (made, ())
    elif isinstance(made, tuple) and 2 <= len(made) <= 4:
        parts = made
    else:
        raise _wrong_return(text, f"a {type(made).__name__}" + (f" of {len(made)}" if isinstance(made, tuple) else ""))
    model, args, *rest = parts
    kwargs, dynamic = rest[0] if rest else {}, rest[1] if len(rest) > 1 else {}
    if not isinstance(model, nn.Module):
        raise _wrong_return(text, f"a {type(model).__name__} in the place of the module")
    if isinstance(args, Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)):
        raise _wrong_return(text, f"a {type(args).__name__} in the place of the example arguments")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise _wrong_return(text, f"a {type(kwargs).__name__} in the place of the keyword arguments")
    if not isinstance(dynamic, Mapping):
        raise _wrong_return(text, f"a {type(dynamic).__name__} in the place of the varying dims")
    return ModelSpec(model, tuple(args), dict(kwargs), dict(dynamic))


def _wrong_return(text: str, what: str) -> UsageError:
    fix = "Return an nn.Module, or (module, args), (module, args, kwargs) or (module, args, kwargs, dynamic), or a dsopt.ModelSpec."
    return UsageError("DS0159", f"{text} returned {what}", fix=fix)


def user_line(error: BaseException) -> str:
    """Return "file:line: code" of the innermost frame of a traceback that is the user's; "" if there is none."""
    for frame, number in reversed(list(frames_of(error))):
        file = frame.f_code.co_filename
        if is_model_file(file) and f"{os.sep}site-packages{os.sep}" not in file:
            return str(Line(file, number, code_at(file, number)))
    if isinstance(error, SyntaxError) and error.filename:
        return str(Line(error.filename, error.lineno or 0, (error.text or "").strip()))
    return ""


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

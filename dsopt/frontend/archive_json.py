"""Check the JSON of an exported program against torch's own schema, and let through only what cannot act.

Torch turns names in this JSON into Python source, sizes into sympy expressions, and nesting into classes. Every string is
therefore an identifier unless a rule below says what else it may be; fields that the schema does not have are dropped.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import keyword
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsopt.errors import ReadError
from dsopt.frontend.expressions import SYMBOL, checked_expression
from dsopt.frontend.tree_spec import plain_tree_spec
from dsopt.ir.operators import checked_operator
from dsopt.ir.torch_private import archive_schema, archive_schema_version, archive_union_base

MAX_DEPTH = 120
_FLOATS = {"Infinity", "-Infinity", "NaN", "inf", "-inf", "nan"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KEPT_METADATA = ("stack_trace", "nn_module_stack", "torch_fn")


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises ReadError DS0144 if it is malformed or nested too deep."""
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ReadError("DS0144", f"{label} is not JSON", why=why, fix=_EXPORT_AGAIN) from error
    if not isinstance(document, dict):
        raise ReadError("DS0144", f"{label} is not a JSON object", fix=_EXPORT_AGAIN)
    return document


_EXPORT_AGAIN = "Copy or download the file again, or export it again with torch.export.save."


def checked_program(document: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of an exported program with guards, unknown metadata and class names taken out.

    Raises ReadError: DS0144 if it does not fit the schema, DS0145 if it could run code, DS0146 if its version is another.
    """
    _check_version(document.get("schema_version"))
    graph_module = document.get("graph_module")
    fields = graph_module.get("treespec_namedtuple_fields") if isinstance(graph_module, dict) else None
    checker = _Checker(_named_tuples(fields or {}))
    checked = checker.value(archive_schema("ExportedProgram"), document, "program")
    assert isinstance(checked, dict)
    # Guards are Python source that torch compiles; the ranges of the sizes say the same.
    return checked | {"guards_code": [], "verifiers": ["TRAINING"]}


def checked_payloads(document: dict[str, Any]) -> dict[str, Any]:
    """Return {weight name: payload} of a weights or constants index, checked like a program."""
    checked = _Checker({}).value(archive_schema("PayloadConfig"), document, "weights")
    assert isinstance(checked["config"], dict)
    return checked["config"]


def _check_version(version: Any) -> None:
    major = version.get("major") if isinstance(version, dict) else None
    if major != archive_schema_version():
        raise ReadError(
            "DS0146",
            f"the program is written in version {str(major)[:20]} of torch's schema; the torch installed here reads "
            f"{archive_schema_version()}",
            fix="Export it again with the torch installed here, or install the torch that wrote it.",
        )


def _named_tuples(fields: Any) -> dict[str, list[str]]:
    """Return {class name: field names} of what an archive says about named tuples; anything odd is left out."""
    found = {}
    for name, definition in fields.items() if isinstance(fields, dict) else ():
        names = definition.get("field_names") if isinstance(definition, dict) else None
        if isinstance(names, list) and all(isinstance(item, str) and item.isidentifier() for item in names):
            found[name] = names
    return found


@dataclass(frozen=True)
class _Checker:
    """Walk JSON along the type hints of torch's schema; `named_tuples` are needed for tree specs."""

    named_tuples: Mapping[str, list[str]]
    union: type = field(default_factory=archive_union_base)

    def value(self, hint: Any, data: Any, owner: str, name: str = "", depth: int = 0) -> Any:
        """Return the checked form of `data`, which must be of type `hint`; it stands in field `name` of class `owner`."""
        if depth > MAX_DEPTH:
            raise _malformed(owner, name, f"it is more than {MAX_DEPTH} deep")
        if typing.get_origin(hint) is typing.Annotated:
            return self.value(typing.get_args(hint)[0], data, owner, name, depth)
        if isinstance(hint, (str, typing.ForwardRef)):
            hint = archive_schema(hint if isinstance(hint, str) else hint.__forward_arg__)
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            return None if data is None else self.value(typing.get_args(hint)[0], data, owner, name, depth)
        if (owner, name) in _DROPPED:
            return _DROPPED[owner, name]
        if typing.get_origin(hint) is list:
            return [
                self.value(typing.get_args(hint)[0], item, owner, name, depth + 1)
                for item in _expect(list, data, owner, name)
            ]
        if typing.get_origin(hint) is dict:
            return self._mapping(typing.get_args(hint)[1], data, owner, name, depth)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._record(hint, _expect(dict, data, owner, name), name, depth)
        return self._scalar(hint, data, owner, name)

    def _record(self, hint: Any, data: dict[str, Any], name: str, depth: int) -> dict[str, Any]:
        owner = hint.__name__
        if owner in _REFUSED_RECORDS:
            raise _refused(owner, name, "", _REFUSED_RECORDS[owner])
        hints = _hints(hint)
        if issubclass(hint, self.union):
            if len(data) != 1 or next(iter(data)) not in hints:
                raise _malformed(owner, name, f"one of {', '.join(sorted(hints)[:6])}... was expected")
            member, value = next(iter(data.items()))
            return {member: self.value(hints[member], value, owner, member, depth + 1)}
        required = {
            item.name
            for item in dataclasses.fields(hint)
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        }
        if missing := sorted(required - data.keys()):
            raise _malformed(owner, name, f"it has no {missing[0]!r}")
        return {key: self.value(hints[key], data[key], owner, key, depth + 1) for key in hints if key in data}

    def _mapping(self, hint: Any, data: Any, owner: str, name: str, depth: int) -> dict[str, Any]:
        items = _expect(dict, data, owner, name)
        if name == "metadata":
            return _metadata(items)
        check_key = _KEY_RULES.get((owner, name), _identifier)
        return {
            check_key(key, owner, name): self.value(hint, item, owner, name, depth + 1) for key, item in items.items()
        }

    def _scalar(self, hint: Any, data: Any, owner: str, name: str) -> Any:
        if hint is str:
            text = _expect(str, data, owner, name)
            if name in ("in_spec", "out_spec"):
                return plain_tree_spec(text, self.named_tuples)
            return _STRING_RULES.get((owner, name), _identifier)(text, owner, name)
        if hint is bool:
            return _expect(bool, data, owner, name)
        if hint is float:
            if isinstance(data, str) and data in _FLOATS:
                return data
            return float(_expect(float, float(data) if type(data) is int else data, owner, name))
        number = _expect(int, data, owner, name)
        if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
            if number not in {int(item) for item in hint}:
                raise _malformed(owner, name, f"{number} is not a {hint.__name__}")
        elif abs(number) >= 2**63:
            raise _malformed(owner, name, "the number is too large")
        return number


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(hint: Any) -> dict[str, Any]:
    """Return the fields of a schema class with their types."""
    if hint not in _HINTS:
        names = {item.name for item in dataclasses.fields(hint)}
        hints = typing.get_type_hints(hint, globalns=vars(sys.modules[hint.__module__]), include_extras=True)
        _HINTS[hint] = {key: value for key, value in hints.items() if key in names}
    return _HINTS[hint]


def _expect(kind: type, data: Any, owner: str, name: str) -> Any:
    if type(data) is not kind:  # a bool is an int to isinstance, but not to torch
        raise _malformed(owner, name, f"a {kind.__name__} was expected, not {type(data).__name__}")
    return data


def _malformed(owner: str, name: str, why: str) -> ReadError:
    return ReadError("DS0144", f"{owner}.{name} of the exported program cannot be read: {why}", fix=_EXPORT_AGAIN)


def _refused(owner: str, name: str, text: str, why: str) -> ReadError:
    shown = f" {_CONTROL.sub('?', text)[:80]!r}" if text else ""
    return ReadError("DS0145", f"{owner}.{name}{shown} of the exported program was refused: {why}", fix=_EXPORT_AGAIN)


def _identifier(text: str, owner: str, name: str) -> str:
    # Torch writes these names into the source of a function and compiles it.
    if not text.isidentifier() or keyword.iskeyword(text) or len(text) > 1024:
        raise _refused(owner, name, text, "it is not a name, and names become Python source")
    return text


def _identifier_or_empty(text: str, owner: str, name: str) -> str:
    return text and _identifier(text, owner, name)


def _qualified(text: str, owner: str, name: str) -> str:
    """Allow "features.0.weight" and the odd keys of a ModuleDict, but nothing that setattr would take for its own."""
    parts = text.split(".")
    if any(part.startswith("__") or not part.isprintable() for part in parts) or len(text) > 4096 or not all(parts):
        raise _refused(owner, name, text, "it is not the name of a weight or module")
    return text


def _qualified_or_empty(text: str, owner: str, name: str) -> str:
    return text and _qualified(text, owner, name)


def _member_name(text: str, owner: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,255}", text):
        raise _refused(owner, name, text, "it is not the name of a member of the archive")
    return text


def _free_text(text: str, owner: str, name: str) -> str:
    return text


def _shown_text(text: str, owner: str, name: str) -> str:
    return _CONTROL.sub("", text)[:200]


def _range_key(text: str, owner: str, name: str) -> str:
    """Allow symbols, and expressions such as 2*s0; torch takes all that follows a leading "u" for a number."""
    checked_expression(text)
    if text.startswith(("u", "zuf")) and not SYMBOL.fullmatch(text):
        raise _refused(owner, name, text, "it is not a symbol")
    return text


def _cpu(text: str, owner: str, name: str) -> str:
    """Put what was captured on any device on the CPU: programs have no device until a backend gives them one."""
    return "meta" if text == "meta" else "cpu"


_Rule = Callable[[str, str, str], str]
_STRING_RULES: dict[tuple[str, str], _Rule] = {
    ("Node", "target"): lambda text, owner, name: checked_operator(text),
    ("Argument", "as_operator"): lambda text, owner, name: checked_operator(text),
    ("SymExpr", "expr_str"): lambda text, owner, name: checked_expression(text),
    ("Argument", "as_string"): _free_text,
    ("Argument", "as_strings"): _free_text,
    ("ConstantValue", "as_string"): _free_text,
    ("NamedArgument", "name"): lambda text, owner, name: (
        text if keyword.iskeyword(text) else _identifier_or_empty(text, owner, name)
    ),
    ("InputToConstantInputSpec", "name"): _identifier_or_empty,
    ("Device", "type"): _cpu,
    ("ModuleCallEntry", "fqn"): _qualified_or_empty,
    ("InputToParameterSpec", "parameter_name"): _qualified,
    ("InputToBufferSpec", "buffer_name"): _qualified,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _qualified,
    ("BufferMutationSpec", "buffer_name"): _qualified,
    ("ParameterMutationSpec", "parameter_name"): _qualified,
    ("GradientToParameterSpec", "parameter_name"): _qualified,
    ("ExportedProgram", "torch_version"): _shown_text,
    ("ExportedProgram", "guards_code"): _free_text,
    ("ExportedProgram", "verifiers"): _free_text,
    ("PayloadMeta", "path_name"): _member_name,
}
_KEY_RULES: dict[tuple[str, str], _Rule] = {
    ("ExportedProgram", "range_constraints"): _range_key,
    ("PayloadConfig", "config"): _qualified,
}
_DROPPED: dict[tuple[str, str], Any] = {
    ("Device", "index"): None,
    ("GraphModule", "treespec_namedtuple_fields"): {},
}
_REFUSED_RECORDS = {
    "CustomObjArgument": "it holds a script object, whose class is code in the file",
    "InputToCustomObjSpec": "it holds a script object, whose class is code in the file",
    "TokenArgument": "it orders side effects, which a compiled program has none of",
}


def _metadata(items: dict[str, Any]) -> dict[str, str]:
    """Keep where a node comes from and what passes have noted; drop what torch would look up by name."""
    kept = {}
    for key in _KEPT_METADATA:
        text = items.get(key)
        if isinstance(text, str) and (key != "nn_module_stack" or _is_module_stack(text)):
            kept[key] = _CONTROL.sub("", text)
    custom = items.get("custom")
    if isinstance(custom, str):
        parse_json(custom.encode("utf-8", "replace"), "the metadata of a node")
        kept["custom"] = custom
    return kept


def _is_module_stack(text: str) -> bool:
    """Tell whether torch can split the text into (key, path, type) triples."""
    return all(len(re.sub(r"[(\[][^()\[\]]*[)\]]", "", item).split(",")) == 3 for item in text.split(";"))

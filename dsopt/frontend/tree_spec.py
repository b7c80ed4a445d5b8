"""Reduce the nesting of an archive's inputs and outputs to tuples, lists and dicts.

Torch's loader imports modules for enum keys and for the factories of defaultdicts; here every container becomes a plain
one, and a named tuple, dataclass or model output becomes a dict of its fields, so that names are kept without any class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsopt.errors import ReadError

MAX_DEPTH = 64
_LISTS = {
    "builtins.list": "builtins.list",
    "builtins.tuple": "builtins.tuple",
    "collections.deque": "builtins.list",
    "torch.fx.immutable_collections.immutable_list": "builtins.list",
}
_DICTS = {
    "builtins.dict": "builtins.dict",
    "collections.OrderedDict": "collections.OrderedDict",
    "collections.defaultdict": "builtins.dict",
    "torch.fx.immutable_collections.immutable_dict": "builtins.dict",
}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def plain_tree_spec(text: str, named_tuples: Mapping[str, Sequence[str]]) -> str:
    """Return the tree specification `text`, as torch's pytree writes it, with plain containers only.

    named_tuples: the fields of each named tuple class by its serialized name.  Raises ReadError DS0145 for a container
    whose fields are not written in the file, DS0144 if the text is not a tree.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed("it is not JSON") from error
    if not isinstance(document, list) or len(document) != 2 or document[0] != 1:
        raise _malformed("it is not of protocol 1")
    return json.dumps([1, _plain(document[1], named_tuples, 0)])


def _malformed(why: str) -> ReadError:
    return ReadError("DS0144", f"the nesting of the inputs or outputs cannot be read: {why}")


def _refused(kind: str, why: str) -> ReadError:
    return ReadError(
        "DS0145",
        f"the inputs or outputs hold a container of type {kind[:120]!r}: {why}",
        why="Building an object of a class that a file names would run that class's code.",
        fix="Let forward() take and return tuples, lists and dicts of tensors, and export again.",
    )


def _plain(node: Any, named_tuples: Mapping[str, Sequence[str]], depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise _malformed(f"it is more than {MAX_DEPTH} deep")
    if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
        raise _malformed("a node of it has no children")
    kind, children = node.get("type"), node["children_spec"]
    if kind is None:
        if children or node.get("context") is not None:
            raise _malformed("a leaf has children")
        return dict(_LEAF)
    if not isinstance(kind, str):
        raise _malformed("a type in it is not a name")
    plain_children = [_plain(child, named_tuples, depth + 1) for child in children]
    if kind in _LISTS:
        return {"type": _LISTS[kind], "context": "null", "children_spec": plain_children}
    keys = _keys(kind, _context(node.get("context")), len(children), named_tuples)
    return {"type": _DICTS.get(kind, "builtins.dict"), "context": json.dumps(keys), "children_spec": plain_children}


def _context(value: Any) -> Any:
    """Return a context, which is JSON inside of JSON unless the class wrote its own."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # a named tuple's context is its class name


def _keys(kind: str, context: Any, count: int, named_tuples: Mapping[str, Sequence[str]]) -> list[Any]:
    if kind == "collections.defaultdict" and isinstance(context, dict):
        context = context.get("dict_context")
    elif kind == "collections.namedtuple":
        if not isinstance(context, str) or context not in named_tuples:
            raise _refused(str(context), "the file does not say what its fields are")
        context = list(named_tuples[context])
    elif kind not in _DICTS and isinstance(context, list) and len(context) == 2 and isinstance(context[0], list):
        context = context[0]  # a registered dataclass: fields that are set, fields that are None
    if not isinstance(context, list) or len(context) != count:
        raise _refused(kind, "its fields cannot be read")
    for key in context:
        # Torch reads {"__enum__": ...} by importing the enum's module.
        if not isinstance(key, (str, int, float, bool)) or (isinstance(key, str) and not key.isprintable()):
            raise _refused(kind, f"a key of it is a {type(key).__name__}")
    if len(set(context)) != count:
        raise _malformed("a dict has the same key twice")
    return context

"""Which operators a program from a file may call: arithmetic on tensors and sizes, never files, streams or objects."""

from __future__ import annotations

import re

from dsopt.errors import ReadError
from dsopt.ir.torch_private import has_operator, operator_argument_types, register_operators

NAMESPACES = ("aten", "dsopt", "prims", "quantized_decomposed")
"""Namespaces whose operators compute values from values; those torch registers late are registered on demand."""

_TARGET = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.(\w+))?")
_HIGHER_ORDER = frozenset(
    [
        "cond",
        "while_loop",
        "map_impl",
        "scan",
        "associative_scan",
        "wrap_with_set_grad_enabled",
        "wrap_with_autocast",
        "checkpoint",
        "tag_activation_checkpoint",
        "wrap",
        "invoke_subgraph",
    ]
)
_SCALAR = frozenset(
    {
        f"_operator.{name}"
        for name in [
            "eq",
            "ne",
            "le",
            "ge",
            "lt",
            "gt",
            "neg",
            "pos",
            "mul",
            "add",
            "sub",
            "floordiv",
            "mod",
            "pow",
            "truediv",
            "and_",
            "or_",
        ]
    }
    | {f"_operator.{name}" for name in ["lshift", "rshift", "getitem", "not_"]}
    | {f"math.{name}" for name in ["trunc", "floor", "ceil"]}
    | {f"torch.sym_{name}" for name in ["not", "int", "float", "ite", "max", "min", "sqrt", "sum", "fresh_size"]}
    | {"torch._sym_sqrt"}
)
# from_file maps any file; _print writes; the others take memory by address or skip torch's own bounds checks.
_REFUSED = re.compile(
    r"from_file|_print|_test_\w+|_nested_\w+|_sparse\w*_unsafe|set_?|record_stream|_foobar|_cuda\w*|_cudnn_init\w*|_pin_memory|"
    r"resize\w*|_resize\w*|_rowwise_prune|_validate_\w+|_new_shared_filename\w*|_fw_primal|_make_dual\w*"
)
_PLAIN_TYPES = re.compile(
    r"(?:Optional\[|List\[|\]|,|\s|\d|\[|\(|\)|Tensor|int|float|bool|number|Scalar|complex|str|SymInt|SymFloat|SymBool|"
    r"ScalarType|Device|Layout|MemoryFormat|Generator|Dimname|QScheme|DeviceIndex|\?)+"
)


def checked_operator(target: str) -> str:
    """Return `target` if it names an operator that a program from a file may call.

    Raises ReadError DS0145 for one that may not, DS0149 for one that is not registered here.
    """
    if target in _SCALAR:
        return target
    match = _TARGET.fullmatch(target)
    if match is None:
        raise _refused(target, "it is not an operator")
    namespace, name, overload = match[1], match[2], match[3] or ""
    if namespace == "higher_order":
        if name not in _HIGHER_ORDER or overload:
            raise _refused(target, "this higher-order operator can call code outside of the graph")
        return target
    if namespace not in NAMESPACES:
        raise _refused(target, f"operators of {namespace!r} are not known to dsopt")
    if _REFUSED.fullmatch(name) or not overload:
        raise _refused(target, "it reaches outside of the values that it is given")
    register_operators(namespace)
    if not has_operator(namespace, name, overload):
        raise ReadError(
            "DS0149",
            f"the program calls {target}, which this torch does not have",
            fix="Read the file with the torch that wrote it, or export it again with the one installed here.",
        )
    for kind in operator_argument_types(namespace, name, overload):
        if not _PLAIN_TYPES.fullmatch(kind):
            raise _refused(target, f"it takes a {kind}")
    return target


def _refused(target: str, why: str) -> ReadError:
    shown = "".join(char if char.isprintable() else "?" for char in target[:120])
    return ReadError(
        "DS0145",
        f"the program calls {shown!r}, which was refused: {why}",
        why=f"Files are taken from strangers, so only tensor arithmetic is called: {', '.join(NAMESPACES)} and sizes.",
        fix="Pass the nn.Module itself (package.module:factory) if you trust its code.",
    )

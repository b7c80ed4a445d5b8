"""Say what a pickle would import, by reading its opcodes and executing none."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass

MAX_OPCODES = 5_000_000
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_MEMO_READS = {"BINGET", "LONG_BINGET", "GET"}
_MEMO_WRITES = {"BINPUT", "LONG_BINPUT", "PUT"}

TENSOR_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "__builtin__.set",
        "builtins.set",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    }
)
"""What files that hold nothing but tensors and plain containers refer to."""


@dataclass(frozen=True)
class PickleScan:
    """The names a pickle refers to, sorted, and whether its opcodes could be read to the end."""

    names: tuple[str, ...]
    is_complete: bool

    @property
    def foreign(self) -> tuple[str, ...]:
        """Names other than those of tensors, containers and dtypes: unpickling imports and may call them."""
        return tuple(name for name in self.names if not is_tensor_name(name))


def is_tensor_name(name: str) -> bool:
    """Tell whether a global is one that plain tensors and containers need."""
    module, _, attribute = name.rpartition(".")
    is_dtype_or_storage = module == "torch" and (attribute.endswith("Storage") or attribute in _DTYPES)
    return name in TENSOR_GLOBALS or is_dtype_or_storage


_DTYPES = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "half",
        "float",
        "double",
        "bfloat16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ]
)


def scan_pickle(data: bytes, max_opcodes: int = MAX_OPCODES) -> PickleScan:
    """Return the globals that unpickling `data` would import. Reads opcodes only; a cut or odd pickle is scanned as far as it goes.

    Pickles may follow one another, as in files of torch.save before 1.6. The names are for telling the user; nothing is
    allowed because of them.
    """
    names: set[str] = set()
    stream, left, is_complete = io.BytesIO(data), max_opcodes, True
    while is_complete and left > 0 and (stream.tell() == 0 or data[stream.tell() : stream.tell() + 1] == b"\x80"):
        left, is_complete = _scan_one(stream, names, left)
    return PickleScan(tuple(sorted(_printable(name) for name in names)), is_complete)


def _scan_one(stream: io.BytesIO, names: set[str], left: int) -> tuple[int, bool]:
    """Add the globals of one pickle to `names`; return how many opcodes may still be read, and whether it came to its end."""
    recent: list[str] = []
    memo: dict[int, str] = {}
    kind = ""
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            kind, left = opcode.name, left - 1
            if left < 0:
                return 0, False
            if kind in _STRINGS:
                recent.append(str(argument))
            elif kind in ("GLOBAL", "INST"):
                names.add(".".join(str(argument).split(" ", 1)))
                recent.append("")
            elif kind == "STACK_GLOBAL":
                names.add(".".join(recent[-2:]) if len(recent) >= 2 else "?")
                recent.append("")
            elif kind in _MEMO_READS and isinstance(argument, int):
                recent.append(memo.get(argument, ""))
            elif kind == "MEMOIZE":
                memo[len(memo)] = recent[-1] if recent else ""
            elif kind in _MEMO_WRITES and isinstance(argument, int):
                memo[argument] = recent[-1] if recent else ""
            elif opcode.stack_after:
                recent.append("")
            del recent[:-8]
    # genops raises ValueError for unknown opcodes and cut arguments, and the others from deep inside codecs.
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, AttributeError):
        return left, False
    return left, kind == "STOP"


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)[:200]


def name_list(names: Iterable[str], most: int = 8) -> str:
    """Return names joined by commas, the first `most` of them."""
    items = list(names)
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest

"""Pieces of C that several generated files share: names, array texts, comments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsopt.backends.tir.c_source import C_TYPES
from dsopt.backends.tir.registry import identifier


@dataclass(frozen=True)
class Names:
    """Symbols of one model: everything external begins with the prefix, so that several models fit into one image."""

    prefix: str

    @staticmethod
    def of(name: str) -> Names:
        """Make a prefix of any text; "harness" belongs to the simulator's firmware."""
        prefix = identifier(name).lower()
        return Names(f"model_{prefix}" if prefix.startswith("harness") else prefix)

    @property
    def macro(self) -> str:
        """Return the beginning of macro names."""
        return self.prefix.upper()

    @property
    def arena(self) -> str:
        """Return the symbol of the arena."""
        return f"{self.prefix}_arena"

    @property
    def states(self) -> str:
        """Return the symbol of the block of states."""
        return f"{self.prefix}_states"

    def weight(self, buffer: str) -> str:
        """Return the symbol of a weight array."""
        return f"{self.prefix}_weight_{buffer}"


def comment(text: str) -> str:
    """Make text safe inside a C comment, on one line: no end of the comment, no trigraph."""
    return " ".join(text.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").split())


def string_literal(text: str) -> str:
    """Return a C string literal; bytes beyond printable ASCII are escaped in octal."""
    quoted = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{quoted}"'


def array_definition(declaration: str, values: np.ndarray[Any, Any]) -> str:
    """Return `declaration = {...};` with ten values a line; `declaration` includes the size."""
    texts = list(_elements(values))
    lines = [", ".join(texts[start : start + 10]) for start in range(0, len(texts), 10)]
    return f"{declaration} = {{\n    " + ",\n    ".join(lines) + "\n};\n"


def array_type(values: np.ndarray[Any, Any]) -> str:
    """Return the C type of the elements."""
    return C_TYPES[str(values.dtype)]


def _elements(values: np.ndarray[Any, Any]) -> Iterable[str]:
    flat = values.reshape(-1)
    if flat.dtype == np.float32:
        return map(_float_constant, flat)
    if flat.dtype == np.bool_:
        return ("true" if value else "false" for value in flat.tolist())
    if flat.dtype == np.int64:
        return map(_int64_constant, flat.tolist())
    return map(_int_constant, flat.tolist())


def _float_constant(value: np.float32) -> str:
    """Return the shortest literal that reads back as the same float32; infinities and NaN by macros of the weight files."""
    if math.isnan(value):
        return "WEIGHT_NAN"
    if math.isinf(value):
        return "WEIGHT_INFINITY" if value > 0 else "-WEIGHT_INFINITY"
    text = str(value)
    return (text if "." in text or "e" in text else text + ".0") + "f"


def _int64_constant(value: int) -> str:
    return f"INT64_C({value})" if value > -(1 << 63) else "INT64_MIN"


def _int_constant(value: int) -> str:
    return str(value) if value > -(1 << 31) else "INT32_MIN"

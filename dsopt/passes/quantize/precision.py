"""How many bits which layer gets: the options of quantisation as questions about a node."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.layer_names import is_inside, split_patterns
from dsopt.passes.quantize.observer import OBSERVERS


def matches(program: Program, node: fx.Node, patterns: str) -> bool:
    """Tell whether one of "head|features.*.conv" names the layer of a node, a module around it, or the node itself."""
    layer = program.layer(node)
    found = split_patterns(str(patterns))
    return any(is_inside(layer, pattern) or fnmatchcase(node.name, pattern) for pattern in found)


@dataclass(frozen=True)
class Precision:
    """The options that `quantize-prepare` and `quantize` share.

    activations: 8 or 16 bits.  weights: 8 or 4 bits.  per: "channel", "tensor" or "group" of `group` inputs of a channel.
    observer, quantile: see `dsopt.passes.quantize.observer`.  search: steps of weights by least squared error instead of by the
    largest magnitude; none: for weights of 4 bits only.  power_of_two: only such scales.
    keep, int16, int8, int4: layers, as "head|features.*.conv", that stay float; whose results get 16 bits; whose weights get 8 or 4.
    """

    activations: int = 8
    weights: int = 8
    per: str = "channel"
    group: int = 32
    observer: str = "mse"
    quantile: float = 0.9999
    search: bool | None = None
    power_of_two: bool = False
    keep: str = ""
    int16: str = ""
    int8: str = ""
    int4: str = ""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing. Raises ValueError."""
        for name, value, known in (
            ("activations", self.activations, (8, 16)),
            ("weights", self.weights, (4, 8)),
            ("per", self.per, ("channel", "tensor", "group")),
            ("observer", self.observer, OBSERVERS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r} and must be one of {', '.join(map(str, known))}")
        if not isinstance(self.group, int) or not 2 <= self.group <= 4096:
            raise ValueError(f"group is {self.group!r} and must be 2 to 4096")
        if not 0.5 < self.quantile <= 1:
            raise ValueError(f"quantile is {self.quantile!r} and must be above 0.5 and at most 1")
        if self.power_of_two and self.per == "group":
            raise ValueError("scales of groups are whole multiples of one step, which power_of_two=true contradicts")

    def check_patterns(self, program: Program) -> None:
        """Raise UsageError for a pattern that names no layer of the program."""
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        for option in ("keep", "int16", "int8", "int4"):
            for pattern in split_patterns(str(getattr(self, option))):
                if not any(matches(program, node, pattern) for node in nodes):
                    layers = sorted({program.layer(node) for node in nodes} - {""})
                    raise UsageError(
                        "DS0310", f"{option}={pattern!r} names no layer of the model", fix="its layers: " + ", ".join(layers)
                    )  # fmt: skip

    def is_kept(self, program: Program, node: fx.Node) -> bool:
        """Tell whether a node is to stay float."""
        return matches(program, node, self.keep)

    def activation_bits(self, program: Program, node: fx.Node) -> int:
        """Return the bits of a node's result."""
        return 16 if matches(program, node, self.int16) else self.activations

    def weight_bits(self, program: Program, node: fx.Node) -> int:
        """Return the bits of a node's weights."""
        if matches(program, node, self.int8):
            return 8
        return 4 if matches(program, node, self.int4) else self.weights

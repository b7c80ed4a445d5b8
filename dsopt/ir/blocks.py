"""Residual blocks and transformer layers, found by what they compute: a sum x + f(x), where f(x) is made of x.

Without the block, x passes. The sums that one module of the user's computes, such as the two of a transformer layer, are one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dsopt.ir.program import Program


@dataclass(frozen=True)
class Block:
    """The sums of one module. shortcuts: each sum, and which of its operands passes without the block."""

    name: str
    shortcuts: tuple[tuple[fx.Node, int], ...]


@dataclass(frozen=True)
class Layer:
    """Blocks that follow each other and repeat together, mostly one: a transformer layer may have its two sums in two modules.

    source, result: what it takes, and what others read of it, norms and activations after the last sum included.
    inside: all nodes that are made between the two.
    """

    blocks: tuple[Block, ...]
    source: fx.Node
    result: fx.Node
    inside: frozenset[fx.Node]

    @property
    def name(self) -> str:
        """Return the name of the module that has all blocks of the layer; that of the first, if none has."""
        paths = [block.name.split(".") for block in self.blocks]
        shared = 0
        while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
            shared += 1
        return ".".join(paths[0][:shared]) or self.blocks[0].name

    def is_called(self, name: str) -> bool:
        """Tell whether a user's name means this layer: its own, or that of a module which holds it."""
        return self.name == name or self.name.startswith(f"{name}.")


def find_blocks(program: Program) -> tuple[Block, ...]:
    """Return the blocks of a program in its order, under the names of the modules that compute the sums."""
    ancestors = _ancestors(program.graph)
    found: dict[str, list[tuple[fx.Node, int]]] = {}
    for node in program.graph.nodes:
        place = _shortcut(node, ancestors)
        if place is not None:
            found.setdefault(program.layer(node) or node.name, []).append((node, place))
    return tuple(Block(name, tuple(shortcuts)) for name, shortcuts in found.items())


def find_layers(program: Program) -> tuple[Layer, ...]:
    """Return the layers of a program in its order: blocks that have parameters of their own, those that alternate taken together."""
    ancestors, places = _ancestors(program.graph), list(program.graph.nodes)
    inner = [(block, _inside(block, ancestors, places)) for block in find_blocks(program)]
    learned = {
        node for node, spec in zip(program.placeholders, program.signature.weights, strict=False) if spec.kind == "parameter"
    }  # fmt: skip
    inner = [(block, inside) for block, inside in inner if inside & learned]
    step = _period([_kinds(inside) for _, inside in inner])
    return tuple(_layer(program, inner[start : start + step]) for start in range(0, len(inner), step))


def cut_layers(program: Program, layers: Iterable[Layer]) -> None:
    """Let what goes into each layer pass in the place of what comes out of it. The nodes in between are then dead."""
    passed: dict[fx.Node, fx.Node] = {}
    for layer in layers:
        source = layer.source
        while source in passed:  # the layer before it is gone too
            source = passed[source]
        passed[layer.result] = source
        layer.result.replace_all_uses_with(source)


def _layer(program: Program, members: list[tuple[Block, frozenset[fx.Node]]]) -> Layer:
    blocks = tuple(block for block, _ in members)
    (first, place), (last, _) = blocks[0].shortcuts[0], blocks[-1].shortcuts[-1]
    source = first.args[place]
    assert isinstance(source, fx.Node)
    result = _outcome(program, blocks[-1].name, last, source)
    inside = frozenset().union(*(nodes for _, nodes in members))
    return Layer(blocks, source, result, inside)


def _outcome(program: Program, module: str, last: fx.Node, source: fx.Node) -> fx.Node:
    """Follow the last sum of a layer to what leaves its module, through operators that have no other operand but weights."""
    node = last
    while True:
        users = list(node.users)
        if len(users) != 1 or not _belongs(program, users[0], module) or not _same_type(users[0], source):
            return node
        if any(item is not node and item.op != "placeholder" for item in users[0].all_input_nodes):
            return node
        node = users[0]


def _belongs(program: Program, node: fx.Node, module: str) -> bool:
    layer = program.layer(node)
    return node.op == "call_function" and (layer == module or layer.startswith(f"{module}."))


def _same_type(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta["val"]
    return isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype


def _inside(block: Block, ancestors: Mapping[fx.Node, int], places: list[fx.Node]) -> frozenset[fx.Node]:
    """Return the nodes that the sums of a block are made of, and what passes without it is not; the sums too."""
    bits = 0
    for node, place in block.shortcuts:
        source = node.args[place]
        assert isinstance(source, fx.Node)
        bits |= ancestors[node] & ~ancestors[source]
    return frozenset(node for number, node in enumerate(places) if bits >> number & 1)


def _kinds(inside: frozenset[fx.Node]) -> tuple[str, ...]:
    return tuple(sorted(str(node.target) for node in inside if node.op == "call_function"))


def _period(kinds: list[tuple[str, ...]]) -> int:
    """Return after how many blocks the kinds of operators repeat; 1 if they do not."""
    for step in range(1, len(kinds) // 2 + 1):
        if len(kinds) % step == 0 and all(one == other for one, other in zip(kinds, kinds[step:], strict=False)):
            return step
    return 1


def _ancestors(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return for each node all that it is made of, as bits: one for each place in the graph."""
    bits: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.nodes):
        own = 1 << place
        for source in node.all_input_nodes:
            own |= bits[source]
        bits[node] = own
    return bits


def _shortcut(node: fx.Node, ancestors: Mapping[fx.Node, int]) -> int | None:
    """Return which operand of a sum passes unchanged if the other goes; None if the node is no x + f(x)."""
    if node.target is not torch.ops.aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    if not all(isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), Tensor) for arg in node.args):
        return None
    a, b = node.args
    for place, (short, long) in enumerate(((a, b), (b, a))):
        assert isinstance(short, fx.Node)
        assert isinstance(long, fx.Node)
        same = short.meta["val"].shape == node.meta["val"].shape and short.meta["val"].dtype == node.meta["val"].dtype
        if same and short.op == "call_function" and short is not long and _own_bit(ancestors, short) & ancestors[long]:
            return place
    return None


def _own_bit(ancestors: Mapping[fx.Node, int], node: fx.Node) -> int:
    return 1 << (ancestors[node].bit_length() - 1)

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
    inputs = frozenset(program.inputs)
    found: dict[str, list[tuple[fx.Node, int]]] = {}
    for node in program.graph.nodes:
        place = _shortcut(node, ancestors, inputs)
        if place is not None:
            found.setdefault(program.layer(node) or node.name, []).append((node, place))
    return tuple(Block(name, tuple(shortcuts)) for name, shortcuts in found.items())


def find_layers(program: Program) -> tuple[Layer, ...]:
    """Return the layers of a program in its order: blocks that have parameters of their own.

    Blocks that alternate are taken together. A module that computes the sums of several layers in a loop is taken apart where they repeat.
    """
    ancestors, places = _ancestors(program.graph), list(program.graph.nodes)
    learned = {
        node for node, spec in zip(program.placeholders, program.signature.weights, strict=False) if spec.kind == "parameter"
    }  # fmt: skip
    blocks = [block for block in find_blocks(program) if _inside(block, ancestors, places) & learned]
    sums = {block.name: [_kinds(part, ancestors, places) for part in _chunks(block, 1)] for block in blocks}
    parts: list[Block] = []
    for block in blocks:
        is_alone = sum(each == sums[block.name] for each in sums.values()) == 1
        parts += _chunks(block, _period(sums[block.name]) or len(block.shortcuts)) if is_alone else [block]
    step = _period([_kinds(part, ancestors, places) for part in parts]) or 1
    members = [parts[start : start + step] for start in range(0, len(parts), step)]
    sources = [_source(group[0]) for group in members]
    return tuple(
        Layer(
            tuple(group), source, _outcome(program, group[-1], source, following),
            frozenset().union(*(_inside(part, ancestors, places) for part in group)),
        )
        for group, source, following in zip(members, sources, [*sources[1:], None], strict=False)
    )  # fmt: skip


def _chunks(block: Block, size: int) -> list[Block]:
    """Cut a block after every `size` sums; the parts have the names of their first sums beside the module's."""
    if size >= len(block.shortcuts):
        return [block]
    parts = [block.shortcuts[start : start + size] for start in range(0, len(block.shortcuts), size)]
    return [Block(f"{block.name}.{part[0][0].name}", part) for part in parts]


def _source(block: Block) -> fx.Node:
    node, place = block.shortcuts[0]
    source = node.args[place]
    assert isinstance(source, fx.Node)
    return source


def cut_layers(program: Program, layers: Iterable[Layer]) -> None:
    """Let what goes into each layer pass in the place of what comes out of it. The nodes in between are then dead."""
    passed: dict[fx.Node, fx.Node] = {}
    for layer in layers:
        source = layer.source
        while source in passed:  # the layer before it is gone too
            source = passed[source]
        passed[layer.result] = source
        layer.result.replace_all_uses_with(source)


def _outcome(program: Program, block: Block, source: fx.Node, following: fx.Node | None) -> fx.Node:
    """Follow the last sum of a layer to what leaves its module, or begins the next layer of the same module.

    On the way are only operators that have no other operand but weights, such as the norm of a post-norm layer.
    """
    last = node = block.shortcuts[-1][0]
    is_part = block.name != (program.layer(last) or last.name)
    module = program.layer(last)
    while node is not following:
        users = list(node.users)
        others = (
            [item for item in users[0].all_input_nodes if item is not node and item.op != "placeholder"]
            if users
            else []
        )
        if len(users) != 1 or others or not _belongs(program, users[0], module) or not _same_type(users[0], source):
            break
        node = users[0]
    # a part of a module ends where the next one begins: what stands behind the last of them is the module's own
    return node if not is_part or node is following else last


def _belongs(program: Program, node: fx.Node, module: str) -> bool:
    layer = program.layer(node)
    return bool(module) and node.op == "call_function" and (layer == module or layer.startswith(f"{module}."))


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


def _kinds(block: Block, ancestors: Mapping[fx.Node, int], places: list[fx.Node]) -> tuple[str, ...]:
    """Return the operators of a block that serve nothing else: a mask that all layers use is not the first one's."""
    inside, own = _inside(block, ancestors, places), {node for node, _ in block.shortcuts}
    for node in reversed(places):
        if node in inside and node.users and all(user in own for user in node.users):
            own.add(node)
    return tuple(sorted(str(node.target) for node in own if node.op == "call_function"))


def _period(kinds: list[tuple[str, ...]]) -> int:
    """Return after how many members the kinds of operators repeat; 0 if they do not."""
    for step in range(1, len(kinds) // 2 + 1):
        if len(kinds) % step == 0 and all(one == other for one, other in zip(kinds, kinds[step:], strict=False)):
            return step
    return 0


def _ancestors(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return for each node all that it is made of, as bits: one for each place in the graph."""
    bits: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.nodes):
        own = 1 << place
        for source in node.all_input_nodes:
            own |= bits[source]
        bits[node] = own
    return bits


def _shortcut(node: fx.Node, ancestors: Mapping[fx.Node, int], inputs: frozenset[fx.Node]) -> int | None:
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
        if (
            same
            and (short.op == "call_function" or short in inputs)
            and short is not long
            and _own_bit(ancestors, short) & ancestors[long]
        ):
            return place
    return None


def _own_bit(ancestors: Mapping[fx.Node, int], node: fx.Node) -> int:
    return 1 << (ancestors[node].bit_length() - 1)

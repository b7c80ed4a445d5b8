"""What each way to write a layer takes on the target's core: all of them in one image, which is run once.

Layers that differ in nothing but their weights are tried once. Each way runs on the same seeded values, with the weights of its layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.choice import Option, Rest
from dsopt.backends.mcu.emitter import Placed
from dsopt.backends.mcu.generate import functions_of, generate_model
from dsopt.backends.mcu.harness import harness_tables
from dsopt.backends.mcu.header import Interface, Port
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.mcu.kernels.ways import Way, Ways
from dsopt.backends.mcu.layers import kernel_text
from dsopt.backends.mcu.measure import Measurement, build_and_measure
from dsopt.backends.mcu.model_source import shared_loops
from dsopt.backends.mcu.place import place_apart
from dsopt.backends.mcu.toolchain import find_toolchain
from dsopt.backends.tir.lower import lower
from dsopt.backends.tir.program import ITEM_BYTES, Buffer, Kernel, LoopProgram
from dsopt.errors import DsoptError
from dsopt.simulate import choose_simulator
from dsopt.target import McuTarget

_MOST_LAYERS = 400
"""Each is lowered in all of its ways: of large networks in many strips, that would be thousands."""


@dataclass(frozen=True)
class Tried:
    """Layers, by their numbers, that differ in weights only, and what each way takes in all of them together.

    ways: the numbers of the ways, the usual one first.  texts: how each is written, in words.  bytes: of code and weights of one layer.
    """

    layers: tuple[int, ...]
    ways: tuple[int, ...]
    texts: tuple[str, ...]
    bytes: tuple[int, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Trial:
    """What was measured.

    rest: what is known of the rest of the program: its weights.  why_not: why nothing was measured; "" if no layer has two ways.
    """

    tried: tuple[Tried, ...] = ()
    rest: Rest = field(default_factory=Rest)
    why_not: str = ""


def try_ways(placed: Placed, target: McuTarget, options: EmitOptions) -> Trial:
    """Measure all ways of all layers of a program. placed: with the usual ways."""
    if len(placed.layers) > _MOST_LAYERS:
        return Trial(why_not=f"{len(placed.layers)} layers and parts of layers are more than are tried")
    ways = Ways()
    loops = lower(placed.program, special_lowerings(target, options.optimize, ways), options.integer_ports)
    groups = _groups(loops, ways.layers)
    if not groups:
        return Trial()
    image = _alone(loops, [way.kernels for group in groups for way in group[0].ways])
    apart = [group for group in groups if len({_addresses(placed, layer.number) for layer in group}) > 1]
    standing = {name for group in apart for way in group[0].ways for name in way.kernels}
    try:
        choose_simulator(target.core)
        measured = _measured(image, standing, target, options)
    except DsoptError as problem:
        return Trial(why_not=problem.what)
    if any(kernel.name not in measured.layers for kernel in image.kernels):
        return Trial(why_not="the emulated board has no room to count each layer")
    return _Costs(loops, image, standing, measured).trial(groups, ways.layers)


@dataclass(frozen=True)
class _Layer:
    """A layer by its number, with its ways that differ in their code or in the order of their weights, the usual one first."""

    number: int
    ways: tuple[Way, ...]


def _groups(loops: LoopProgram, layers: Sequence[Sequence[Way]]) -> list[list[_Layer]]:
    """Return the layers that can be written in several ways; those that differ in their weights only are one group."""
    kernels = {kernel.name: kernel for kernel in loops.kernels}
    functions = functions_of(loops)

    def key(way: Way, by_content: bool) -> Any:
        found = []
        for kernel in (kernels[name] for name in way.kernels):
            sizes: list[str | int] = []
            for buffer in (loops.buffers[name] for name in kernel.arguments):
                is_known = by_content and loops.root(buffer.name).kind == "weight"
                sizes.append(loops.root(buffer.name).name if is_known else buffer.size_bytes)
            found.append((functions[kernel.name], kernel.is_glue, kernel.micro, tuple(sizes)))
        return tuple(found)

    groups: dict[Any, list[_Layer]] = {}
    for number, layer in enumerate(layers):
        distinct: dict[Any, Way] = {}
        for way in layer:
            distinct.setdefault(key(way, True), way)
        if len(distinct) > 1:
            alike = tuple((way.number, key(way, False)) for way in distinct.values())
            groups.setdefault(alike, []).append(_Layer(number, tuple(distinct.values())))
    return list(groups.values())


def _addresses(placed: Placed, layer: int) -> tuple[tuple[str, int], ...]:
    """Return where the values of a layer lie: those that layers with the same loops have alike, a compiler makes constants of."""
    program, offsets = placed.placement.program, placed.placement.plan.offsets
    kernels = [kernel for kernel in program.kernels if kernel.name in placed.layers[layer]]
    names = [name for kernel in kernels for name in kernel.arguments if program.root(name).kind != "weight"]
    return tuple(
        (program.root(name).kind, offsets.get(program.root(name).name, 0) + program.offset(name)) for name in names
    )


def _alone(loops: LoopProgram, ways: Sequence[Sequence[str]]) -> LoopProgram:
    """Return a program of some kernels. What those of a way do not make themselves, they read from inputs that all of them share."""
    given = {kernel.name: kernel for kernel in loops.kernels}
    kernels: list[Kernel] = []
    buffers: dict[str, Buffer] = {}
    for names in ways:
        made = {loops.root(name).name for each in names for name in given[each].outputs + given[each].scratch}
        for kernel in (given[name] for name in names):
            inputs = []
            for buffer in (loops.buffers[name] for name in kernel.inputs):
                root = loops.root(buffer.name)
                if root.kind == "weight" or root.name in made:
                    inputs.append(buffer.name)
                    continue
                values, read = f"values of {root.dtype}", f"{buffer.name} as it is read"
                most = max(root.elements, buffers[values].elements if values in buffers else 0)
                buffers[values] = Buffer(values, (most,), root.dtype, "input")
                buffers[read] = Buffer(read, buffer.shape, buffer.dtype, "input", values, buffer.channels_last)
                inputs.append(read)
            kernels.append(replace(kernel, inputs=tuple(inputs)))
    used = {name for kernel in kernels for name in kernel.arguments if name not in buffers}
    buffers |= {name: loops.buffers[name] for name in loops.buffers if name in _with_roots(loops, used)}
    return LoopProgram(
        tuple(kernels),
        buffers,
        {name: values for name, values in loops.constants.items() if name in buffers},
        tuple(name for name, buffer in buffers.items() if buffer.kind == "input" and buffer.alias_of is None),
        outputs=(),
        states=(),
        results={},
    )


def _with_roots(loops: LoopProgram, names: set[str]) -> set[str]:
    """Return names of buffers with all that they are views of."""
    found = set(names)
    for name in names:
        while (view := loops.buffers[name].alias_of) is not None:
            found.add(name := view)
    return found


_KNOWN: dict[str, Measurement] = {}
"""What was measured in this process, by the hash of the image's sources: the same layers are often built again."""
_MOST_KNOWN = 64


def _measured(loops: LoopProgram, standing: Set[str], target: McuTarget, options: EmitOptions) -> Measurement:
    """Build and run an image. standing: kernels that stand for layers that will share their loops, on values at different places.

    Raises ToolchainError without a compiler, CheckError for a fault.
    """
    placement = place_apart(loops)
    ports = Interface([Port(name, loops.buffers[name]) for name in loops.inputs], [], [])
    is_small = options.optimize == "flash"
    sources = generate_model(placement, ports, options.name, target.name, "", is_small, standing)
    files = {**sources.files, "harness_tables.c": harness_tables(sources.names, sources.ports, placement)}
    digest = hashlib.sha256(f"{find_toolchain(target.core).version} {target.core} {options.seed}".encode())
    for name, text in sorted(files.items()):
        digest.update(hashlib.sha256(f"{name}\n{text}".encode()).digest())
    key = digest.hexdigest()
    if key not in _KNOWN:
        if len(_KNOWN) == _MOST_KNOWN:
            del _KNOWN[next(iter(_KNOWN))]
        functions = [kernel.name for kernel in loops.kernels]
        values = [_seeded(port.buffer, options.seed) for port in ports.inputs]
        _KNOWN[key] = replace(build_and_measure(files, functions, placement, target, values), elf=b"")
    return _KNOWN[key]


def _seeded(values: Buffer, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(values.elements * ITEM_BYTES[values.dtype])


class _Costs:
    """Says what ways take, by an image that has a layer of each group."""

    def __init__(self, loops: LoopProgram, image: LoopProgram, standing: Set[str], measured: Measurement) -> None:
        """loops: with all kernels of all layers."""
        self._loops, self._measured = loops, measured
        self._kernels = {kernel.name: kernel for kernel in loops.kernels}
        self._shared = shared_loops(image.kernels, functions_of(image), standing)

    def trial(self, groups: Sequence[Sequence[_Layer]], layers: Sequence[Sequence[Way]]) -> Trial:
        """Return what each way takes. layers: all that have ways."""
        tried: list[Tried] = []
        for group in groups:
            ways = range(len(group[0].ways))
            one, all_ = ([self._option(layers, way) for way in ways] for layers in (group[:1], group))
            tried.append(
                Tried(
                    tuple(layer.number for layer in group),
                    tuple(way.number for way in group[0].ways),
                    tuple(self._text(way) for way in group[0].ways),
                    tuple(sum(option.parts.values()) for option in one),
                    tuple(all_),
                )
            )
        return Trial(tuple(tried), Rest(parts=self._rest(layers, {number for each in tried for number in each.layers})))

    def _rest(self, layers: Sequence[Sequence[Way]], tried: set[int]) -> dict[str, int]:
        """Return the weights of all kernels but those of layers that were tried, and of ways that nothing uses."""
        dropped = {name for layer in layers for way in layer[1:] for name in way.kernels}
        dropped |= {name for number in tried for way in layers[number][:1] for name in way.kernels}
        found: dict[str, int] = {}
        for kernel in self._loops.kernels:
            found |= {} if kernel.name in dropped else self._weights(kernel)
        return found

    def _text(self, way: Way) -> str:
        return kernel_text(max((self._kernels[name] for name in way.kernels), key=lambda each: each.multiply_adds))

    def _option(self, group: Sequence[_Layer], place: int) -> Option:
        """Return what one way takes in all layers of a group, of which the first was measured."""
        measured = group[0].ways[place].kernels
        sizes, parts = self._measured.symbol_bytes, dict[str, int]()
        for name in measured:
            loops = self._shared.get(name, name)
            parts |= {f"loops {loops}": sizes.get(loops, 0)}
            parts |= {f"function {each.name}": sizes.get(each.name, 0) for each in self._kernels[name].micro}
        for layer in group:
            for name, other in zip(layer.ways[place].kernels, measured, strict=True):
                parts |= self._weights(self._kernels[name])
                parts |= {f"call {name}": sizes.get(other, 0)} if other in self._shared else {}
        return Option(sum(self._measured.layers[name].instructions for name in measured) * len(group), parts)

    def _weights(self, kernel: Kernel) -> dict[str, int]:
        weights = (self._loops.root(name) for name in kernel.inputs)
        return {f"weights {each.name}": each.size_bytes for each in weights if each.kind == "weight"}

"""Cut a converted program at the nodes that have a native kernel: segments for ONNX Runtime, kernels, and views between them.

A transpose or reshape beside a kernel is no work where the kernel reads and writes by strides, so it becomes a view of an array:
the cut is before it. Steps run one after the other over arrays by name; a segment is what lies between two kernels in the order of
the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsopt.backends.cpu.builder import Body, GraphBuilder, Node
from dsopt.backends.cpu.convert import Converted, Port
from dsopt.backends.cpu.model import Graph

ROWS = (0, 2, 1, 3)
"""The permutation between (B, T, H, E), in which all heads of a token are one row, and (B, H, T, E)."""


@dataclass(frozen=True)
class Segment:
    """Nodes that ONNX Runtime runs together."""

    graph: Graph


@dataclass(frozen=True)
class View:
    """An array read in another way: transposed, in another shape as ONNX's Reshape has it (0 copies a size, one may be -1), or a part.

    part: axis, first index, and the one behind the last; for one index alone, without the axis, there are two numbers.
    """

    name: str
    of: str
    transpose: tuple[int, ...] = ()
    reshape: tuple[int, ...] = ()
    part: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A call of a native kernel. is_rows: its result lies in memory as (B, T, H, E), because that is how it is read."""

    node: Node
    inputs: tuple[str, ...]
    output: str
    is_rows: bool


Step = Segment | View | Kernel


@dataclass
class _Cut:
    """What is known of the program while it is cut. stored: names of tensors that are no arrays at run time."""

    builder: GraphBuilder
    ports: dict[str, Port]
    outputs: tuple[str, ...]
    makers: dict[str, Node]
    readers: dict[str, list[Node]]
    kernels: list[Node]
    views: dict[str, View] = field(default_factory=dict)  # by the name that they give, those that no segment computes
    kept: set[str] = field(default_factory=set)  # results that segments compute

    def is_kernel(self, node: Node) -> bool:
        return any(node is each for each in self.kernels)


def cut(converted: Converted, is_native: Callable[[Node], bool]) -> list[Step]:
    """Return the steps of a program. Those nodes for which `is_native` holds become kernels."""
    builder = converted.emitter
    nodes, copies = _with_copies(builder, is_native)
    ports = {port.name: port for port in (*converted.inputs, *converted.outputs, *converted.inner, *copies)}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in dict.fromkeys(_reads(node)):
            readers.setdefault(name, []).append(node)
    state = _Cut(
        builder, ports, tuple(port.name for port in converted.outputs), {name: node for node in nodes for name in node.outputs},
        readers, [node for node in nodes if is_native(node)],
    )  # fmt: skip
    _find_views(state, nodes)
    return _with_ends(state, _in_order(state, nodes), [port.name for port in converted.inputs])


def _with_copies(builder: GraphBuilder, is_native: Callable[[Node], bool]) -> tuple[list[Node], list[Port]]:
    """Return the nodes; a kernel that reads a stored tensor reads a copy of it, which is an array at run time."""
    nodes: list[Node] = []
    copies: list[Port] = []
    for node in builder.nodes:
        if not is_native(node):
            nodes.append(node)
            continue
        inputs = []
        for name in node.inputs:
            if name in builder.initializers:
                copied = builder.unique(f"{name}.copied")
                copies.append(Port(copied, builder.stored_dtype(name), tuple(builder.initializers[name].shape)))
                nodes.append(Node("Identity", copied, [name], [copied]))
                name = copied  # noqa: PLW2901
            inputs.append(name)
        nodes.append(Node(node.op_type, node.name, inputs, node.outputs, node.domain, node.attributes))
    return nodes, copies


def _reads(node: Node) -> list[str]:
    """Return what a node reads from around it, the graphs inside of it among the readers."""
    inner = {name for each in node.walk() if each is not node for name in each.outputs}
    inner |= {value.name for each in node.walk() for body in each.attributes.values() if isinstance(body, Body)
              for value in body.inputs}  # fmt: skip
    bodies = [value for each in node.walk() for value in each.attributes.values() if isinstance(value, Body)]
    names = [name for each in node.walk() for name in each.inputs]
    names += [value.name for body in bodies for value in body.outputs]
    return [name for name in names if name and name not in inner]


# ---- views ----


def _find_views(state: _Cut, nodes: Sequence[Node]) -> None:
    """Find the nodes that are views: those after kernels, and those before one that nothing else needs."""
    made = {name for kernel in state.kernels for name in kernel.outputs}
    for node in nodes:
        for view in _views(state.builder, node):
            if view.of in made:
                state.views[view.name] = view
                made.add(view.name)
    wanted = {name for kernel in state.kernels for name in kernel.inputs}
    for node in reversed(nodes):
        views = _views(state.builder, node)
        names = [view.name for view in views]
        if not wanted.intersection(names) or state.views.keys() & names or set(state.outputs) & set(names):
            continue
        readers = [each for name in names for each in state.readers.get(name, [])]
        if all(state.is_kernel(each) or each.outputs[0] in state.views for each in readers):
            state.views.update((view.name, view) for view in views)
            wanted.add(views[0].of)


def _views(builder: GraphBuilder, node: Node) -> list[View]:
    """Return the results of a node as views, [] if it computes something: what it does must be known before it runs."""
    if node.domain or not node.inputs or node.inputs[0] in builder.initializers:
        return []
    of, stored = node.inputs[0], [builder.initializers.get(name) for name in node.inputs[1:]]
    numbers = None if len(stored) != 1 or stored[0] is None else stored[0]
    if node.op_type == "Transpose":
        return [View(node.outputs[0], of, transpose=tuple(node.attributes["perm"]))]
    if numbers is None:
        return []
    if node.op_type == "Reshape" and numbers.numel() and not node.attributes.get("allowzero"):
        return [View(node.outputs[0], of, reshape=tuple(int(size) for size in numbers))]
    axis = node.attributes.get("axis", 0)
    if node.op_type == "Gather" and numbers.dim() == 0 and int(numbers) >= 0 and axis >= 0:
        return [View(node.outputs[0], of, part=(axis, int(numbers)))]
    if node.op_type == "Split" and axis >= 0:
        ends = numbers.cumsum(0).tolist()
        return [View(name, of, part=(axis, start, end))
                for name, start, end in zip(node.outputs, [0, *ends], ends, strict=False)]  # fmt: skip
    return []


# ---- steps ----


def _in_order(state: _Cut, nodes: Sequence[Node]) -> list[Step | list[Node]]:
    """Return kernels and views, and between them lists of nodes, without those that nothing needs."""
    steps: list[Step | list[Node]] = []
    pending: list[Node] = []
    for node in nodes:
        if state.is_kernel(node):
            chain = _chain(state, node.inputs, steps)
            steps += [pending, *chain] if pending else [*chain]
            pending = []
            steps.append(Kernel(node, tuple(node.inputs), node.outputs[0], _is_read_by_rows(state, node.outputs[0])))
            steps += _after(state, node.outputs[0])
        elif node.outputs[0] not in state.views:
            pending.append(node)
    return [*steps, pending] if pending else steps


def _chain(state: _Cut, names: Iterable[str], steps: Sequence[Step | list[Node]]) -> list[View]:
    """Return the views that a kernel reads and that are not there yet, in order."""
    there = {step.name for step in steps if isinstance(step, View)}
    found: list[View] = []
    for name in names:
        views = []
        while name in state.views and name not in there:
            views.append(state.views[name])
            there.add(name)
            name = state.views[name].of  # noqa: PLW2901
        found += reversed(views)
    return found


def _after(state: _Cut, name: str) -> list[View]:
    """Return the views of a kernel's result, in order."""
    found: list[View] = []
    names = [name]
    while names:
        of = names.pop(0)
        for view in state.views.values():
            if view.of == of:
                found.append(view)
                names.append(view.name)
    return found


def _is_read_by_rows(state: _Cut, name: str) -> bool:
    readers = state.readers.get(name, [])
    views = [state.views.get(each.outputs[0]) for each in readers]
    return (
        bool(views) and name not in state.outputs and all(view is not None and view.transpose == ROWS for view in views)
    )


def _with_ends(state: _Cut, steps: Sequence[Step | list[Node]], inputs: Sequence[str]) -> list[Step]:
    """Return the steps with inputs and outputs of segments: what comes from before, and what is read later."""
    later: list[set[str]] = []
    wanted = set(state.outputs)
    for step in reversed(steps):
        later.append(set(wanted))
        wanted |= set(_wanted(step))
    there = set(inputs)
    done: list[Step] = []
    for step, after in zip(steps, reversed(later), strict=True):
        if isinstance(step, list):
            made = [name for node in step for name in node.outputs]
            reads = dict.fromkeys(name for node in step for name in _reads(node))
            taken = [name for name in reads if name in there and name not in made]
            given = [name for name in made if name in after]
            inner = tuple(state.ports[name] for name in made if name in state.ports and name not in given)
            there.update(given)
            done.append(Segment(Graph(state.builder, step, _ports(state, taken), _ports(state, given), inner)))
        else:
            there.update([step.name] if isinstance(step, View) else [step.output] if isinstance(step, Kernel) else [])
            done.append(step)
    return done


def _wanted(step: Step | list[Node]) -> Iterable[str]:
    if isinstance(step, list):
        return [name for node in step for name in _reads(node)]
    return [step.of] if isinstance(step, View) else step.inputs if isinstance(step, Kernel) else []


def _ports(state: _Cut, names: Iterable[str]) -> tuple[Port, ...]:
    return tuple(state.ports.get(name) or Port(name, state.builder.dtypes[name], None) for name in names)


def describe(step: View | Kernel, kernels: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's entry of a step that is no segment. kernels: number by the name of the function that is called."""
    if isinstance(step, Kernel):
        return {"kernel": kernels[step.node.op_type], "inputs": list(step.inputs), "output": step.output,
                "rows": step.is_rows}  # fmt: skip
    ways = {"transpose": step.transpose, "reshape": step.reshape, "part": step.part}
    return {"view": step.name, "of": step.of, **{key: list(way) for key, way in ways.items() if way}}

"""Generate model.c: the arena, one static function for each layer, and the run that calls them in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dsopt.backends.mcu.c_text import Names, comment
from dsopt.backends.mcu.header import Interface, Port
from dsopt.backends.mcu.place import Placement
from dsopt.backends.mcu.weights_source import starts_at_zero
from dsopt.backends.tir.c_source import C_TYPES, CFunction
from dsopt.backends.tir.program import Buffer, Kernel
from dsopt.passes.memory.arena import ALIGNMENT


def model_source(
    names: Names,
    ports: Interface,
    placement: Placement,
    functions: Mapping[str, CFunction],
    target: str,
    is_small: bool = False,
    standing: Collection[str] = (),
) -> str:
    """Return the text of model.c.

    is_small: all layers are to be compiled for size.  standing: kernels whose loops are written as if others had the same.
    """
    writer = _Writer(names, ports, placement, functions, is_small, standing)
    reset, run = writer.reset(), writer.run()
    helpers = sorted({helper for function in functions.values() for helper in function.helpers})
    includes = ['#include "dsopt_math.h"\n'] if helpers else []
    includes += ['#include "kernels.h"\n'] if any(kernel.micro for kernel in placement.program.kernels) else []
    parts = [
        f"/* The layers of the network for {comment(target)}, in the order in which they run. Generated: do not edit. */\n",
        '#include "model.h"\n\n#include <stdbool.h>\n#include <stdint.h>\n\n' + "".join(includes),
        writer.attributes(),
        writer.memory(),
        writer.weights(),
        *(writer.layer(kernel) for kernel in placement.program.kernels),
        *(helper for name, helper in _HELPERS.items() if name in reset + run),
        reset,
        run,
        writer.accessors(),
    ]
    return "\n".join(part for part in parts if part)


_HELPERS = {
    "copy_bytes": """static void copy_bytes(const void *from, void *to, uint32_t count)
{
    const uint8_t *source = (const uint8_t *)from;
    uint8_t *target = (uint8_t *)to;
    for (uint32_t i = 0; i < count; ++i) {
        target[i] = source[i];
    }
}
""",
    "clear_bytes": """static void clear_bytes(void *to, uint32_t count)
{
    uint8_t *target = (uint8_t *)to;
    for (uint32_t i = 0; i < count; ++i) {
        target[i] = 0;
    }
}
""",
}
"""What resetting and stepping states needs, by name; a file gets what it uses."""


def shared_loops(
    kernels: Sequence[Kernel], functions: Mapping[str, CFunction], standing: Collection[str] = ()
) -> dict[str, str]:
    """Return, for layers whose loops are equal to another layer's, the name of the one function that holds them.

    standing: kernels that get one in any case.
    """
    groups: dict[tuple[CFunction, bool], list[str]] = {}
    for kernel in kernels:
        groups.setdefault((functions[kernel.name], kernel.is_glue), []).append(kernel.name)
    shared: dict[str, str] = {}
    for names in groups.values():
        loops = f"shared_{names[0]}"
        while loops in functions:
            loops += "_"
        shared |= dict.fromkeys(names, loops) if len(names) > 1 or names[0] in standing else {}
    return shared


class _Writer:
    def __init__(
        self,
        names: Names,
        ports: Interface,
        placement: Placement,
        functions: Mapping[str, CFunction],
        is_small: bool,
        standing: Collection[str],
    ) -> None:
        self.is_small = is_small
        self.names, self.ports, self.placement, self.functions = names, ports, placement, functions
        self.program = placement.program
        self.loops = shared_loops(self.program.kernels, functions, standing)
        self.standing = standing

    # ---- addresses ----

    def address(self, name: str, const: bool) -> str:
        """Return a typed pointer to a buffer."""
        root, offset = self.program.root(name), self.program.offset(name)
        kind = ("const " if const else "") + C_TYPES[root.dtype]
        if root.kind == "weight":
            assert not offset, "weights are not looked at in parts"
            return self.names.weight(root.name)
        if root.kind == "state":
            return f"({kind} *)(void *)({self.names.states} + {self.placement.states[root.name] + offset})"
        return f"({kind} *)(void *)({self.names.arena} + {self.placement.plan.offsets[root.name] + offset})"

    # ---- parts ----

    def attributes(self) -> str:
        """Return what differs between compilers: alignment, and layers kept apart so that each can be profiled.

        GLUE is a layer that spends its time in functions of kernels.h: the loops around them are kept small.

        No clones: GCC 12 for x86-64, once it has put addresses in the arena into a copy of a layer, takes stores to them for dead.
        """
        return f"""#if defined(__clang__)
#define ALIGNED __attribute__((aligned({ALIGNMENT})))
#define LAYER __attribute__((noinline))
#define GLUE __attribute__((noinline, minsize))
#elif defined(__GNUC__)
#define ALIGNED __attribute__((aligned({ALIGNMENT})))
#define LAYER __attribute__((noinline, noclone))
#define GLUE __attribute__((noinline, noclone, optimize("Os")))
#else
#define ALIGNED _Alignas({ALIGNMENT})
#define LAYER
#define GLUE
#endif
"""

    def memory(self) -> str:
        """Return the arena with its map, and the states."""
        plan, lives = self.placement.plan, self.placement.lives
        gap = "the least possible" if plan.optimal else f"at most {plan.gap:.1%} above the least possible"
        rows = [
            f"   {plan.offsets[life.name]:>9} {life.size_bytes:>9} {life.first:>5} {life.last:>5}  {comment(life.name)}"
            for life in sorted(lives.values(), key=lambda each: (each.first, plan.offsets[each.name]))
        ]
        head = (
            f"   {'offset':>9} {'bytes':>9} {'first':>5} {'last':>5}  value (first and last layer that use it, from 0)"
        )
        externs = [(self.names.arena, plan.arena_bytes), (self.names.states, self.placement.state_bytes)]
        text = "".join(f"extern uint8_t {symbol}[{count}];\n" for symbol, count in externs if count)
        text += f"\n/* The arena: {plan.arena_bytes} bytes, {gap}.\n" + "\n".join([head, *rows]) + " */\n"
        if plan.arena_bytes:
            text += f"ALIGNED uint8_t {self.names.arena}[{plan.arena_bytes}];\n"
        if self.placement.state_bytes:
            text += "\n/* States: they keep their bytes from run to run. */\n"
            text += f"ALIGNED uint8_t {self.names.states}[{self.placement.state_bytes}];\n"
        return text

    def weights(self) -> str:
        """Return the declarations of the arrays in weights.c that this file uses."""
        used = {self.program.root(name).name for kernel in self.program.kernels for name in kernel.arguments}
        used |= {self.program.root(name).name for name in self.program.outputs}
        used |= {self.program.root(state.update).name for state in self.program.states}
        roots = [self.program.buffers[name] for name in self.program.constants]
        lines = [
            f"extern const {C_TYPES[b.dtype]} {self.names.weight(b.name)}[{b.elements}];"
            for b in roots
            if (b.name in used or b.kind == "state") and not starts_at_zero(self.program, b.name)
        ]
        return "/* In weights.c, in flash. */\n" + "\n".join(lines) + "\n" if lines else ""

    def layer(self, kernel: Kernel) -> str:
        """Return a layer's function under a comment that says where it comes from and where its values are."""
        lines = [f"{kernel.layer or 'the model itself'}"]
        if kernel.source:
            lines.append(kernel.source)
        lines += [self._value("in", name) for name in kernel.inputs]
        lines += [self._value("out", name) for name in kernel.outputs]
        lines += [self._value("scratch", name) for name in kernel.scratch]
        if kernel.multiply_adds:
            lines.append(f"{kernel.multiply_adds} multiply-adds")
        lines += [text for text in (kernel.choice, f"generic loops: {kernel.why}" if kernel.why else "") if text]
        text = "/* " + "\n   ".join(map(comment, lines)) + " */\n"
        kind = "static GLUE" if kernel.is_glue or self.is_small else "static LAYER"
        if kernel.name not in self.loops:
            return text + self.functions[kernel.name].text(kernel.name, kind)
        loops = self.loops[kernel.name]
        call = f"{kind} void {kernel.name}(void)\n{{\n    {loops}(" + self._arguments(kernel) + ");\n}\n"
        is_first = next(name for name, shared in self.loops.items() if shared == loops) == kernel.name
        if (
            kernel.name in self.standing
        ):  # a compiler makes constants of the arguments of a static function with one call
            kind = kind.removeprefix("static ")
        return (self.functions[kernel.name].text(loops, kind) + "\n" if is_first else "") + text + call

    def _arguments(self, kernel: Kernel) -> str:
        addresses = [
            *(self.address(name, True) for name in kernel.inputs),
            *(self.address(name, False) for name in (*kernel.outputs, *kernel.scratch)),
        ]
        return ",\n        ".join(addresses)

    def _value(self, role: str, name: str) -> str:
        buffer, root = self.program.buffers[name], self.program.root(name)
        what = f"{role} {root.name}: {buffer.dtype} {list(buffer.shape)}"
        offset = self.program.offset(name)
        what += f" from byte {offset} on" if offset else ""
        if root.kind == "weight":
            return f"{what}, weights"
        if root.kind == "state":
            return f"{what}, state at {self.placement.states[root.name]}, {root.size_bytes} bytes"
        life = self.placement.lives[root.name]
        return f"{what}, arena at {self.placement.plan.offsets[root.name]}, {root.size_bytes} bytes, layers {life.first} to {life.last}"

    def reset(self) -> str:
        """Return model_init and model_reset."""
        p = self.names.prefix
        body = "".join(self._first_value(self.program.buffers[state.buffer]) for state in self.program.states)
        return f"void {p}_reset(void)\n{{\n{body}}}\n\nvoid {p}_init(void)\n{{\n    {p}_reset();\n}}\n"

    def _first_value(self, buffer: Buffer) -> str:
        target = self.address(buffer.name, False)
        if starts_at_zero(self.program, buffer.name):
            return f"    clear_bytes({target}, {buffer.size_bytes}u);\n"
        return self._copy(self.names.weight(buffer.name), target, buffer)

    def _copy(self, source: str, target: str, buffer: Buffer) -> str:
        return f"    copy_bytes({source}, {target}, {buffer.size_bytes}u);\n"

    def run(self) -> str:
        """Return model_run: a call for each layer, then the new states."""
        lines: list[str] = []
        for kernel in self.program.kernels:
            lines.append(f"    {kernel.name}({'' if kernel.name in self.loops else self._arguments(kernel)});\n")
        for state in self.program.states:
            if self.program.root(state.update).name != state.buffer:
                buffer = self.program.buffers[state.buffer]
                lines.append(self._copy(self.address(state.update, True), self.address(state.buffer, False), buffer))
        return f"void {self.names.prefix}_run(void)\n{{\n" + "".join(lines) + "}\n"

    def accessors(self) -> str:
        """Return model_input, model_output and model_state."""
        p = self.names.prefix
        return "\n".join(
            (
                self._accessor(f"void *{p}_input", self.ports.inputs, False),
                self._accessor(f"const void *{p}_output", self.ports.outputs, True),
                self._accessor(f"void *{p}_state", self.ports.states, False),
            )
        )

    def _accessor(self, head: str, ports: Sequence[Port], const: bool) -> str:
        cases = [
            f"    case {number}: /* {comment(port.name)} */\n        return {self.address(port.buffer.name, const)};"
            for number, port in enumerate(ports)
        ]
        if not cases:
            return f"{head}(uint32_t index)\n{{\n    (void)index;\n    return 0;\n}}\n"
        body = "\n".join(cases)
        return (
            f"{head}(uint32_t index)\n{{\n    switch (index) {{\n{body}\n    default:\n        return 0;\n    }}\n}}\n"
        )

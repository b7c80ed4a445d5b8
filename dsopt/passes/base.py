"""Passes: a frozen dataclass each, its fields its options; the manager that runs them; and their text form."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dsopt.errors import DsoptError, PassError, UsageError, did_you_mean
from dsopt.passes import PASSES

if TYPE_CHECKING:
    from torch import Tensor

    from dsopt.ir import Program, Rewriter
    from dsopt.target import Target


Step = TypeVar("Step")


def _no_cost(program: Program) -> Mapping[str, float]:
    raise PassError(
        "DS0304", "this pass asks for a cost, and the caller gave no cost model", fix="pass PassContext(cost=...)"
    )


def _no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class PassContext:
    """What a pass may know of the world beside the program.

    target: what is compiled for, None if unknown.  calibration: batches of {input name: tensor}.  cost: measures a program, as
    {"seconds": ..., "ram_bytes": ...}.  seed: of everything random.  progress(done, total, what): shows a bar.
    """

    target: Target | None = None
    calibration: Sequence[Mapping[str, Tensor]] = ()
    cost: Callable[[Program], Mapping[str, float]] = _no_cost
    seed: int = 0
    progress: Callable[[int, int, str], None] = _no_progress


@dataclass(frozen=True)
class Pass(ABC):
    """A named rewrite. Its fields are its options: prune{ratio=0.6}. It takes and leaves a program that verifies."""

    name: ClassVar[str]
    changes_outputs: ClassVar[bool] = False
    """Whether what it leaves gives other outputs on purpose, as a pruned program does: code is then compared with that."""

    @abstractmethod
    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite `program` through `rewriter`; ask `context` for all that is not in the program."""

    def __str__(self) -> str:
        return pipeline_text(self.name, self)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: changes, skips and notes as text; node counts and weight bytes before and after.

    Seconds go to the report only.
    """

    name: str
    changes: tuple[str, ...]
    skips: tuple[str, ...]
    nodes: tuple[int, int]
    weight_bytes: tuple[int, int]
    seconds: float = field(compare=False)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record for a manifest, without the seconds, which differ from run to run."""
        return {"name": self.name, "changes": list(self.changes), "skips": list(self.skips), "notes": list(self.notes),
                "nodes": list(self.nodes), "weight_bytes": list(self.weight_bytes)}  # fmt: skip


@dataclass(frozen=True)
class PassManager:
    """Run passes in order on a clone, verifying after each; `dump` keeps the text after each as NN-name.txt, from `first` on."""

    passes: tuple[Pass, ...]
    dump: Path | None = None
    first: int = 0

    def run(self, program: Program, context: PassContext | None = None) -> tuple[Program, tuple[PassRecord, ...]]:
        """Return the rewritten program and one record per pass; the program given is not changed.

        Raises PassError: which pass, with which options, after which others, at which node.
        """
        context = context or PassContext()
        result = program.clone()
        records: list[PassRecord] = []
        if self.first == 0:
            self._write(0, "input", result)
        for number, each in enumerate(self.passes, start=1):
            context.progress(number - 1, len(self.passes), each.name)
            records.append(self._run_one(each, result, context, records))
            self._write(self.first + number, each.name, result)
        context.progress(len(self.passes), len(self.passes), "passes")
        return result, tuple(records)

    def _run_one(self, each: Pass, program: Program, context: PassContext, done: Sequence[PassRecord]) -> PassRecord:
        from dsopt.ir import Rewriter

        rewriter = Rewriter(program)
        nodes, weight_bytes, start = count_nodes(program), count_weight_bytes(program), time.perf_counter()
        try:
            each.run(program, rewriter, context)
            program.verify()
        except UsageError:
            raise
        except DsoptError as problem:
            before = ", ".join(record.name for record in done) or "no other pass"
            raise PassError(
                "DS0301", f"pass {each} failed: {problem.what}", where=f"after {before}\n{problem.where}".rstrip(), why=problem.why,
                fix=problem.fix or f"run without {each.name} to go on, and report this",
            ) from problem  # fmt: skip
        return PassRecord(
            str(each), tuple(rewriter.changes), tuple(rewriter.skips), (nodes, count_nodes(program)),
            (weight_bytes, count_weight_bytes(program)), time.perf_counter() - start, tuple(rewriter.notes),
        )  # fmt: skip

    def _write(self, number: int, name: str, program: Program) -> None:
        if self.dump is None:
            return
        try:
            self.dump.mkdir(parents=True, exist_ok=True)
            (self.dump / f"{number:02d}-{name}.txt").write_text(program.text(), encoding="utf-8")
        except OSError as problem:
            raise UsageError(
                "DS0305", f"cannot write the dump to {self.dump}", why=problem.strerror or str(problem)
            ) from problem


def until_last_change(passes: Sequence[Pass]) -> int:
    """Return how many passes there are up to the last that changes outputs on purpose, that one included."""
    return max((number for number, each in enumerate(passes, start=1) if each.changes_outputs), default=0)


def count_nodes(program: Program) -> int:
    """Return the number of operator calls."""
    return sum(node.op == "call_function" for node in program.graph.nodes)


def count_weight_bytes(program: Program) -> int:
    """Return the bytes of all stored tensors."""
    return sum(value.numel() * value.element_size() for value in program.weights.values())


# ---- text form ----


def load_pass(name: str) -> type[Pass]:
    """Import a pass by its name. Raises UsageError naming the known ones."""
    if name not in PASSES:
        hint = did_you_mean(name, PASSES)
        raise UsageError("DS0302", f"unknown pass {name!r}", fix=f"{hint}known passes: {', '.join(sorted(PASSES))}")
    module, _, attribute = PASSES[name].partition(":")
    found: type[Pass] = getattr(import_module(module), attribute)
    return found


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Read "fuse-attention,sparse-attention{keep=64}". Raises UsageError: an unknown name or option is answered with the known ones."""
    return tuple(make_pass(name, options) for name, options in read_pipeline(text))


def read_pipeline(text: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Read "name,name{option=value}" as names and options, known or not. Raises UsageError where the text has another form."""
    found: list[tuple[str, dict[str, Any]]] = []
    rest = text.strip()
    while rest:
        match = re.match(r"\s*([a-z0-9-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)", rest)
        if match is None:
            raise UsageError(
                "DS0303", f"cannot read the pipeline at {rest[:40]!r}", fix='write it as "name,name{option=value,...}"'
            )
        found.append((match[1], _read_options(match[1], match[2] or "")))
        if match[3] == "," and not rest[match.end() :].strip():
            raise UsageError(
                "DS0303", f"the pipeline {text!r} ends with a comma", fix="name another pass, or drop the comma"
            )
        rest = rest[match.end() :]
    return tuple(found)


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """Construct a pass from its name and options. Raises UsageError for an unknown name, an unknown option or a wrong value."""
    return make_step(name, load_pass(name), options)


def make_step(name: str, kind: Callable[..., Step], options: Mapping[str, Any], what: str = "pass") -> Step:
    """Construct a dataclass from options that a pipeline names. Raises UsageError for an unknown option or a wrong value."""
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UsageError(
            "DS0306",
            f"{what} {name} has no option {unknown[0]!r}",
            fix=f"{hint}its options: {', '.join(known) or 'none'}",
        )
    try:
        return kind(**options)
    except (TypeError, ValueError) as problem:
        raise UsageError("DS0307", f"{what} {name} cannot be made with {dict(options)}", why=str(problem)) from problem


def _read_options(name: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"[a-z_][a-z0-9_]*", key.strip()):
            raise UsageError("DS0303", f"cannot read option {part!r} of {name}", fix="write it as option=value")
        if key.strip() in options:
            raise UsageError("DS0303", f"option {key.strip()!r} of {name} is given twice")
        options[key.strip()] = _read_value(value.strip())
    return options


def _split(text: str) -> Iterable[str]:
    """Split at commas that are outside of parentheses, brackets and quotes."""
    return [
        part for part in re.findall(r"""(?:[^,("'\[]|\([^)]*\)|\[[^\]]*\]|"[^"]*"|'[^']*')+""", text) if part.strip()
    ]


def _read_value(text: str) -> Any:
    """Read a number, true/false/none, a quoted string, a tuple or list of these; anything else is a bare word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def pipeline_text(name: str, step: Any) -> str:
    """Return "name{option=value}" of a dataclass, with the options that are not the default ones."""
    given = [
        f"{item.name}={_option_text(getattr(step, item.name))}"
        for item in dataclasses.fields(step)
        if getattr(step, item.name) != item.default
    ]
    return name + (f"{{{','.join(given)}}}" if given else "")


def _option_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.:+|-]+", value) and _read_value(value) == value else repr(value)
    return repr(value)

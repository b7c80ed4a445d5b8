"""One compilation: passes, the ones that a quantised program needs after them, code, and the check of the code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from dsopt.accuracy.samples import Samples
from dsopt.accuracy.statistics import ValueStatistics, quantization_statistics
from dsopt.artifact import Artifact
from dsopt.backends.base import Backend, EmitOptions, refuse
from dsopt.backends.check import Agreement, check_against
from dsopt.feeds import Feed
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import (
    Pass,
    PassContext,
    PassManager,
    PassRecord,
    load_pass,
    parse_pipeline,
    until_last_change,
)
from dsopt.target import Target

_DSOPT = torch.ops.dsopt
_CONVERSION = "fold-batch-norm,quantize-convert,remove-dead-code"
QUANTISING = ("quantize", "quantize-dynamic", "quantize-prepare")
"""Passes that need samples, or whose samples must be numbers."""

_CHECK_RUNS = 3
_STATISTICS_SAMPLES = 64


@dataclass(frozen=True)
class Rewritten:
    """A program on its way. meant: the one given, or what a pass such as prune made of it on purpose: what float code must give.

    before: ahead of quantisation, float.  rounded: quantised, in the form of quantize and dequantize.  program: what is emitted.
    Where nothing is quantised, these three are one.
    """

    meant: Program
    before: Program
    rounded: Program
    program: Program
    records: tuple[PassRecord, ...]

    @property
    def is_quantised(self) -> bool:
        """Tell whether anything is rounded."""
        return is_quantised(self.rounded)


@dataclass(frozen=True)
class Draft:
    """An artifact whose code agrees with its program, before the lock and the records are written into it."""

    artifact: Artifact
    program: Program
    records: tuple[PassRecord, ...]
    agreement: Agreement
    statistics: tuple[ValueStatistics, ...]


@dataclass(frozen=True)
class Job:
    """A program to be compiled for a target, with the data for it."""

    program: Program
    target: Target
    backend: Backend
    samples: Samples | None
    calibration_samples: int
    options: EmitOptions
    tolerance: float
    dump: Path | None = None

    def calibration(self) -> list[Feed]:
        """Return the runs that calibrate."""
        if self.samples is None:
            return []
        chosen, _ = self.samples.split(self.calibration_samples, self.options.seed)
        return self.samples.feeds(chosen)

    def calibration_record(self) -> dict[str, Any]:
        """Return what a manifest says of the calibration: how many samples, drawn by which seed, and their hash. {} without data."""
        if self.samples is None:
            return {}
        digest = hashlib.sha256()
        for feed in self.calibration():
            for name, array in sorted(feed.items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        count = min(self.calibration_samples, self.samples.count)
        return {"samples": count, "seed": self.options.seed, "sha256": digest.hexdigest()}

    def context(self, rest: Sequence[Pass] = ()) -> PassContext:
        """Return what passes may know. rest: the passes after the last one that asks what a program costs."""
        batches = tuple(
            {name: torch.from_numpy(np.array(array)) for name, array in feed.items()} for feed in self.calibration()
        )
        return PassContext(
            target=self.target, calibration=batches, seed=self.options.seed, progress=self.options.progress,
            cost=lambda program: self.cost(program, rest),
        )  # fmt: skip

    def cost(self, program: Program, rest: Sequence[Pass]) -> Mapping[str, float]:
        """Return {"seconds", "ram_bytes"} of a program once it has gone through the rest of the passes."""
        job = replace(self, program=program, dump=None, options=replace(self.options, progress=_quietly))
        done = job.rewrite(rest)
        refuse(self.backend.unsupported(done.program, self.target), self.target)
        return self.backend.cost(done.program, self.target, job.options)

    def rewrite(self, pipeline: Sequence[Pass]) -> Rewritten:
        """Run the passes, convert what was only prepared, and let the backend lower what is quantised."""
        first = next((n for n, each in enumerate(pipeline) if each.name in QUANTISING), len(pipeline))
        change = until_last_change(pipeline[:first])
        context = self.context(pipeline[change:])
        meant, records = self.program, tuple[PassRecord, ...]()
        if change:
            meant, records = PassManager(tuple(pipeline[:change]), self.dump).run(self.program, context)
        before, more = PassManager(tuple(pipeline[change:first]), self.dump, change).run(meant, context)
        records = (*records, *more)
        rounded, more = (
            PassManager(tuple(pipeline[first:]), self.dump, first).run(before, context)
            if first < len(pipeline)
            else (before, ())
        )
        records = (*records, *more)
        if any(node.target is _DSOPT.fake_quantize.default for node in rounded.graph.nodes):
            rounded, more = PassManager(parse_pipeline(_CONVERSION), self.dump, len(records)).run(rounded, context)
            records = (*records, *more)
        lowering = self.backend.lowering(self.target) if is_quantised(rounded) else ()
        lowered, more = (
            PassManager(lowering, self.dump, len(records)).run(rounded, context) if lowering else (rounded, ())
        )
        return Rewritten(meant, before, rounded, lowered, (*records, *more))

    def compile(self, pipeline: Sequence[Pass]) -> Draft:
        """Rewrite, emit, and check what was emitted.

        Quantised code is compared with the quantised program: on the cpu, where ONNX Runtime rounds at other places, to within what
        rounding itself changes.
        """
        done = self.rewrite(pipeline)
        refuse(self.backend.unsupported(done.program, self.target), self.target)
        artifact = self.backend.emit(done.program, self.target, self.options)
        self.options.progress(0, 1, "check")
        reference = done.program if done.is_quantised else done.meant
        twin = None
        if done.is_quantised and done.program is done.rounded:  # no integers of ours, so the runtime rounds
            twin = _unrounded(done.before) if is_quantised(done.before) else done.before
        agreement = check_against(
            artifact, reference, self.backend, self._check_feeds(), seed=self.options.seed, tolerance=self.tolerance,
            rewritten=done.program, float_twin=twin,
        )  # fmt: skip
        self.options.progress(1, 1, "check")
        statistics = self._statistics(done) if done.is_quantised else ()
        return Draft(artifact, done.program, done.records, agreement, statistics)

    def _check_feeds(self) -> list[Feed] | None:
        if self.samples is None:
            return None
        _, rest = self.samples.split(self.calibration_samples, self.options.seed)
        return self.samples.feeds(
            rest[:_CHECK_RUNS] if not self.samples.batched else rest[: 2 * _CHECK_RUNS], at_once=2
        )

    def _statistics(self, done: Rewritten) -> tuple[ValueStatistics, ...]:
        if self.samples is None:
            return ()
        chosen, _ = self.samples.split(self.calibration_samples, self.options.seed)
        twin = None if done.before is done.rounded else done.before
        return quantization_statistics(done.rounded, twin, self.samples.feeds(chosen[:_STATISTICS_SAMPLES]))


def _quietly(done: int, total: int, what: str) -> None:
    """Show nothing of the many programs that are only looked at."""


def is_quantised(program: Program) -> bool:
    """Tell whether a program rounds values to integers or holds integer weights."""
    rounding: set[Any] = {
        _DSOPT.quantize.default, _DSOPT.dequantize.default, _DSOPT.dequantize_channel.default, _DSOPT.dynamic_linear.default,
    }  # fmt: skip
    return any(node.target in rounding for node in program.graph.nodes)


def _unrounded(program: Program) -> Program:
    """Return a program that came quantised without the rounding of its activations."""
    twin = program.clone()
    rewriter = Rewriter(twin)
    for node in list(twin.graph.nodes):
        integers: Any = node.args[0] if node.target is _DSOPT.dequantize.default else None
        if isinstance(integers, fx.Node) and integers.target is _DSOPT.quantize.default:
            rewriter.replace(node, integers.args[0])  # type: ignore[arg-type]
    return twin


def prepared_twin(pass_: Pass) -> Pass:
    """Return the quantize-prepare pass with the options of a quantize pass; itself if it is one."""
    if pass_.name == "quantize-prepare":
        return pass_
    from dataclasses import fields

    kind = load_pass("quantize-prepare")
    made: Pass = kind(**{item.name: getattr(pass_, item.name) for item in fields(pass_)})
    return made

"""What an artifact is compared with: its model or, where it is quantised, the quantised program, made again as it was for the build."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsopt.accuracy.job import Job, is_quantised
from dsopt.accuracy.samples import read_samples
from dsopt.backends.base import EmitOptions, load_backend
from dsopt.errors import UsageError
from dsopt.feeds import Array
from dsopt.ir import Program
from dsopt.passes.base import Pass, PassContext, PassManager, parse_pipeline, until_last_change
from dsopt.target import McuTarget, Target, parse_target

_QUANTISERS = ("quantize", "lower-integer")
"""What the names of passes begin with that round."""

_MOST_SAMPLES = 1 << 31


@dataclass(frozen=True)
class Reference:
    """program: what the artifact must give.  rewritten: the same with the names of the artifact's layers.

    float_twin: of a quantised program whose code may round at other places; None otherwise.  changed_by: the passes that made `program`
    of the model and change what it gives; none of a quantised program.
    """

    program: Program
    rewritten: Program
    float_twin: Program | None = None
    changed_by: tuple[str, ...] = ()

    @property
    def is_quantised(self) -> bool:
        """Tell whether it is the quantised program, and not the model."""
        return self.program is self.rewritten


def find_reference(
    program: Program, manifest: Mapping[str, Any], data: Mapping[str, Array] | str | Path | None
) -> Reference:
    """Run the passes that a manifest records on a program with the sizes of the artifact. data: what it was calibrated on.

    Raises UsageError where calibration needs data and none are given, or others than those of the build.
    """
    target = _target(manifest)
    passes = parse_pipeline(",".join(entry["name"] for entry in manifest.get("passes", ())))
    first = next((n for n, each in enumerate(passes) if each.name.startswith(_QUANTISERS)), len(passes))
    change = until_last_change(passes[:first])
    context = _context(program, manifest, target, data, passes[change:])
    if first == len(passes) and not is_quantised(program):
        meant = PassManager(passes[:change]).run(program, context)[0] if change else program
        names = tuple(each.name for each in passes[:change] if each.changes_outputs)
        return Reference(meant, PassManager(passes[change:]).run(meant, context)[0], changed_by=names)
    before = PassManager(passes[:first]).run(program, context)[0]
    rounded = PassManager(passes[first:]).run(before, context)[0]
    return Reference(rounded, rounded, None if _has_integers(passes) else before)


def _target(manifest: Mapping[str, Any]) -> Target:
    """Return what the artifact was compiled for: of a board, which may be described in a file of its owner's only, core and limits."""
    target, limits = parse_target(str(manifest["target"]).partition("@")[0]), manifest.get("limits")
    if not isinstance(target, McuTarget) or not isinstance(limits, Mapping):
        return target
    ram, flash = limits.get("ram_bytes"), limits.get("flash_bytes")
    if not isinstance(ram, int) or not isinstance(flash, int):
        return target
    return replace(target, ram_bytes=ram, flash_bytes=flash)


def _has_integers(passes: tuple[Pass, ...]) -> bool:
    return any(each.name == "lower-integer" for each in passes)


def _context(
    program: Program,
    manifest: Mapping[str, Any],
    target: Target,
    data: Mapping[str, Array] | str | Path | None,
    rest: Sequence[Pass],
) -> PassContext:
    """Return what the passes of the build knew: data, and what programs cost once they have gone through the rest of the passes."""
    record = manifest.get("calibration")
    backend = load_backend(target)
    if data is None or not isinstance(record, Mapping):
        return Job(program, target, backend, None, 0, EmitOptions(), 0.0).context(rest)
    count, seed = record.get("samples"), record.get("seed")
    if type(count) is not int or type(seed) is not int or not (0 < count < _MOST_SAMPLES and seed >= 0):
        raise UsageError("DS0456", "the manifest does not say what the artifact was calibrated on")
    options = EmitOptions(seed=seed)
    job = Job(program, target, backend, read_samples(program, data), count, options, 0.0)
    if job.calibration_record() != dict(record):
        raise UsageError(
            "DS0456", "the data is not what the artifact was calibrated on",
            why="the samples that are drawn from it have another hash than the manifest says",
            fix="give the --data that the artifact was compiled with",
        )  # fmt: skip
    return job.context(rest)


class RoundingShares:
    """How far outputs are from those of the quantised program, as a share of what quantisation changes; none without `twin`."""

    def __init__(self, twin: Program | None) -> None:
        self._twin = twin
        self._states: Mapping[str, Tensor] | None = None
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, inputs: tuple[Tensor, ...], wanted: Mapping[str, Tensor], got: Mapping[str, Array]) -> None:
        """Take the outputs of a run: wanted by the quantised program, and given by the artifact."""
        if self._twin is None:
            return
        real, self._states = self._twin.run_stateful(inputs, self._states)
        for (name, rounded), value in zip(wanted.items(), real, strict=True):
            if rounded.is_floating_point() and tuple(got[name].shape) == tuple(rounded.shape):
                emitted = torch.from_numpy(np.array(got[name])).double() - rounded.double()
                before = self._sums.get(name, (0.0, 0.0))
                changed = float(((rounded.double() - value.double()) ** 2).sum())
                self._sums[name] = before[0] + float((emitted**2).sum()), before[1] + changed

    def of(self, name: str) -> float | None:
        """Return the share of an output over all runs; None where there is nothing to compare with."""
        emitted, changed = self._sums.get(name, (0.0, 0.0))
        return math.sqrt(emitted / changed) if changed > 0 else None

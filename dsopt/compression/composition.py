"""compress: the stages one after the other, what each left measured, and the last compiled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsopt import api
from dsopt.accuracy.metrics import Function
from dsopt.accuracy.samples import CALIBRATION_SAMPLES, LABELS, read_samples
from dsopt.artifact import Artifact
from dsopt.backends.base import load_backend
from dsopt.compression.data import Data, Training, read_training, samples_digest
from dsopt.compression.report import Compressed, StageReport
from dsopt.compression.score import Scorer
from dsopt.compression.stages import Progress, Setting, Stage, parse_stages
from dsopt.compression.store import Store, first_key, next_key
from dsopt.errors import ToolchainError, UsageError
from dsopt.feeds import Feed
from dsopt.ir import Program
from dsopt.measure.bench import bench
from dsopt.measure.inspect import inspect
from dsopt.measure.timing import interleave, percentile
from dsopt.passes.base import Pass, count_weight_bytes
from dsopt.runtime import Session
from dsopt.target import Target, parse_target
from dsopt.train.loop import Loss


def no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


def compress(
    program: Program,
    target: Target | str,
    stages: str | Sequence[Stage | Pass],
    data: Data,
    *,
    validation: str | Path | Mapping[str, Any] | None = None,
    labels: str = LABELS,
    metric: str | Function | None = None,
    loss: Loss | None = None,
    batch_size: int = 32,
    folder: str | Path | None = None,
    dims: Mapping[str, int] | None = None,
    passes: Sequence[Pass] | str | None = None,
    calibration_samples: int = CALIBRATION_SAMPLES,
    timing_seconds: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = no_progress,
    **options: Any,
) -> Compressed:
    """Run stages such as "prune{ratio=0.5},distill{epochs=3},qat{epochs=2}", compile what is left, and measure after each.

    program: trained, in float; it is the teacher of all trainings, and is not changed.  stages: passes, and `distill`, `fine-tune` and
    `qat` with the options of `dsopt.compression.STAGES`.  data: trained and calibrated on: an .npz or arrays by name, labels among them
    under the name `labels`, cut into batches of `batch_size`; or a loader of (inputs, target).  validation: an .npz or arrays that no
    stage trains on; scores are taken on them, and trainings keep their best epoch by them.  metric: accuracy, rmse, ... or a function
    of (outputs, labels).  loss(outputs, target): in the place of cross-entropy.
    folder: what each stage left is kept there, and a call with the same program, data and options goes on from it; stages that change are
    done again, with all after them. A loader is known by its length and first batches, a loss by its name.
    dims: sizes to fix for compiling, as {"batch": 1}.  passes, options: as `dsopt.api.build` takes them.  timing_seconds: spent on timing
    all stages, compiled for the cpu and interleaved, or the last on another target; 0 leaves times out.
    Raises UsageError before any work for stages or data that do not fit, and what training and `dsopt.api.build` raise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "DS0380", "compress runs in one process", fix="call dsopt.train.distill and qat under torchrun"
        )
    target = parse_target(target) if isinstance(target, str) else target
    parsed = parse_stages(stages)
    training = read_training(program, data, labels, batch_size, calibration_samples, seed)
    held = None if validation is None else read_samples(program, validation, labels)
    scorer = None if held is None else Scorer(program, held, metric)
    store = Store(None if folder is None else Path(folder))
    key = first_key(
        program, data=training.digest, validation=held and samples_digest(held), seed=seed, batch_size=batch_size,
        loss=loss and getattr(loss, "__qualname__", type(loss).__name__), metric=scorer and scorer.metric.name,
        calibration_samples=calibration_samples, target=target.name, device=device,
    )  # fmt: skip
    setting = Setting(
        program, training, target, seed, None, device, loss, scorer.of_module if scorer else None, progress
    )
    for stage in parsed:
        stage.check(setting)
    rows = [_row("start", program, _sizes(program), scorer.value if scorer else None, 0.0)]
    programs = [program]
    for number, stage in enumerate(parsed, start=1):
        key = next_key(key, str(stage))
        result, row = _stage(number, stage, key, programs[-1], setting, scorer, store)
        programs.append(result)
        rows.append(row)
    last = _Compiling(target, training, scorer, dims or {}, seed, progress, options)
    return last.run(programs, rows, passes, timing_seconds)


def _stage(
    number: int, stage: Stage, key: str, program: Program, setting: Setting, scorer: Scorer | None, store: Store
) -> tuple[Program, StageReport]:
    """Return what a stage made, done before or now, and its row."""
    text, sizes = str(stage), _sizes(setting.teacher)
    found = store.load(number, text, key)
    if found is not None:
        return found[0], _row(text, found[0], sizes, found[1].get("score"), float(found[1].get("seconds", 0.0)))
    start = time.perf_counter()
    result = stage.run(program, replace(setting, checkpoint=store.checkpoint(number, text, key)))
    seconds = time.perf_counter() - start
    score = scorer.of_program(result) if scorer else None
    store.save(number, text, key, result, {"score": score, "seconds": seconds})
    return result, _row(text, result, sizes, score, seconds)


def _row(stage: str, program: Program, sizes: Mapping[str, int], score: float | None, seconds: float) -> StageReport:
    seen = inspect(program.specialize(sizes) if sizes else program)
    return StageReport(
        stage, score, count_weight_bytes(program), None, seen.parameters, seen.multiply_adds, None, None, seconds
    )


def _sizes(program: Program) -> dict[str, int]:
    """Return the sizes at which multiply-adds count: those of the example, and one sample where the batch varies."""
    return {**program.example_sizes(), **dict.fromkeys(_batch_dims(program), 1)}


def _batch_dims(program: Program) -> list[str]:
    """Return the dim that is the first size of every input, if it may be 1."""
    first = {str(program.shape(node)[0]) if node.meta["val"].dim() else "" for node in program.inputs}
    return [name for name in first if len(first) == 1 and name in program.dims and program.dims[name].min <= 1]


@dataclass(frozen=True)
class _Compiling:
    """How the last program is compiled, and all others for the sake of their times."""

    target: Target
    training: Training
    scorer: Scorer | None
    dims: Mapping[str, int]
    seed: int
    progress: Progress
    options: Mapping[str, Any]

    def run(
        self,
        programs: Sequence[Program],
        rows: list[StageReport],
        passes: Sequence[Pass] | str | None,
        timing_seconds: float,
    ) -> Compressed:
        """Compile, score and time. rows: of the programs."""
        start = time.perf_counter()
        built = self._build(programs[-1], passes)
        score = self._score(built, programs[-1])
        seconds = time.perf_counter() - start
        artifacts = {len(rows): built.artifact}
        last = replace(rows[-1], stage=f"compile for {self.target.name}", score=score, seconds=seconds)
        if timing_seconds and self.target.kind == "cpu":
            for number, program in enumerate(programs):
                is_built = passes is None and program is programs[-1]
                artifacts[number] = built.artifact if is_built else self._build(program, None).artifact
            times = _times(artifacts, _one_run(self.training, programs[0]), timing_seconds, self.seed)
            rows = [replace(row, latency_seconds=times[number]) for number, row in enumerate([*rows, last])]
        else:
            rows = [*rows, _measured_on_target(last, built.artifact, timing_seconds, self.seed)]
        sizes = {number: sum(map(len, artifact.files.values())) for number, artifact in artifacts.items()}
        rows = [replace(row, artifact_bytes=sizes.get(number)) for number, row in enumerate(rows)]
        metric = self.scorer.metric.name if self.scorer else ""
        return Compressed(built.artifact, built.program, metric, tuple(rows))

    def _build(self, program: Program, passes: Sequence[Pass] | str | None) -> api.Build:
        fixed = program.specialize(self.dims) if self.dims else program
        feeds = list(self.training.calibration)
        return api.build(fixed, self.target, passes, feeds, seed=self.seed, progress=self.progress, **self.options)

    def _score(self, built: api.Build, program: Program) -> float | None:
        """Return the score of the emitted code; where nothing here can run it, of the program that it was made of."""
        if self.scorer is None:
            return None
        score = self.scorer.of_code(load_backend(self.target), built.artifact, built.program)
        return self.scorer.of_program(program) if score is None else score


def _measured_on_target(row: StageReport, artifact: Artifact, seconds: float, seed: int) -> StageReport:
    """Return the row with the time or the instructions of a run, where something here can run it."""
    if not seconds:
        return row
    try:
        found = bench(artifact, seconds=seconds, seed=seed)
    except ToolchainError:
        return row
    latency = found.timings[0].p50_ms / 1000 if found.timings else None
    return replace(row, latency_seconds=latency, instructions=found.instructions)


def _times(artifacts: Mapping[int, Artifact], feed: Feed, seconds: float, seed: int) -> dict[int, float]:
    """Return the median seconds of a run of each artifact, all interleaved."""
    sessions = {number: Session(artifact, threads=1) for number, artifact in artifacts.items()}
    try:
        calls: dict[str, Callable[[], Any]] = {}
        for number, session in sessions.items():
            given = {spec.name: feed[spec.name] for spec in session.inputs if spec.name in feed}
            calls[str(number)] = lambda session=session, given=given: session.run_flat(given)  # type: ignore[misc]
        taken = interleave(calls, seconds=seconds, seed=seed)
    finally:
        for session in sessions.values():
            session.close()
    return {int(name): percentile(sorted(found), 0.5) / 1000 for name, found in taken.items()}


def _one_run(training: Training, program: Program) -> Feed:
    """Return a run of one sample where the batch may vary, and as the data has it where not."""
    feed = training.calibration[0]
    if not _batch_dims(program):
        return feed
    return {key: np.ascontiguousarray(value[:1]) if value.ndim else value for key, value in feed.items()}

"""What compression came to: a row for each stage, as data and as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsopt.artifact import Artifact
from dsopt.ir import Program


@dataclass(frozen=True)
class StageReport:
    """A program after a stage; "start" is the one given, and the last is what was compiled.

    score: by the metric, in percent for accuracy; None without held-out data.  weight_bytes: of all stored tensors.  artifact_bytes: of
    what is compiled of it.  parameters: stored numbers that operators use.  multiply_adds: of one run at the sizes of the example.
    latency_seconds: the median of a run of the compiled program, all stages interleaved, one thread.  instructions: of a run on
    an emulated core.  seconds: that the stage took.  None stands for what was not measured.
    """

    stage: str
    score: float | None
    weight_bytes: int
    artifact_bytes: int | None
    parameters: int
    multiply_adds: int
    latency_seconds: float | None
    instructions: int | None
    seconds: float


@dataclass(frozen=True)
class Compressed:
    """artifact: compiled.  program: the one that was compiled.  metric: what scores are.  stages: in order, the program given first."""

    artifact: Artifact
    program: Program
    metric: str
    stages: tuple[StageReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all but artifact and program as plain values."""
        return {"target": self.artifact.target, "metric": self.metric, "stages": [asdict(each) for each in self.stages]}

    def table(self) -> str:
        """Return the rows as aligned text; columns in which nothing was measured are left out."""
        columns: list[tuple[str, Callable[[StageReport], str]]] = [
            ("stage", lambda row: row.stage),
            (self.metric or "score", lambda row: _number(row.score, "{:.4g}")),
            ("weight bytes", lambda row: f"{row.weight_bytes:,}"),
            ("artifact bytes", lambda row: _number(row.artifact_bytes, "{:,}")),
            ("parameters", lambda row: f"{row.parameters:,}"),
            ("multiply-adds", lambda row: f"{row.multiply_adds:,}"),
            ("ms a run", lambda row: _number(row.latency_seconds and 1000 * row.latency_seconds, "{:.4g}")),
            ("instructions", lambda row: _number(row.instructions, "{:,}")),
            ("seconds", lambda row: f"{row.seconds:.1f}"),
        ]
        cells = [[name, *(text(row) for row in self.stages)] for name, text in columns]
        return _aligned([column for column in cells if any(column[1:])])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]
    return "\n".join(lines) + "\n"

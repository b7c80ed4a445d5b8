"""Read what a manifest says of quantisation and accuracy. Artifacts come from strangers, so every field is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsopt.report.fields import Range, count, counts, flag, maybe_real, real, records, refuse, span, text, whole


@dataclass(frozen=True)
class RoundedValue:
    """One rounded value or stored weight, with the fields of `dsopt.accuracy.statistics.ValueStatistics`."""

    node: str
    layer: str
    op: str
    kind: str
    bits: int
    scale: Range
    zero_point: int
    grid: Range
    observed: Range
    saturated: float | None
    snr: float | None
    histogram: tuple[int, ...]

    @property
    def is_weight(self) -> bool:
        """Tell whether it is stored, and not computed."""
        return self.kind == "weight"

    @property
    def name(self) -> str:
        """Return what a reader would call it: its layer, or itself outside of any."""
        return self.layer or self.node


@dataclass(frozen=True)
class Sensitivity:
    """One operator, the decibels of the outputs if it alone is rounded, and the precision that it was raised to, "" if none."""

    node: str
    layer: str
    op: str
    snr: float
    raised_to: str


@dataclass(frozen=True)
class Accuracy:
    """The verdict of the accuracy gate. max_drop: None where nothing was asked; drop: None where it is infinite."""

    metric: str
    float_value: float
    value: float
    drop: float | None
    unit: str
    max_drop: float | None
    passes: bool
    samples: int
    calibration_samples: int
    is_held_out: bool
    place: str
    layers: tuple[Sensitivity, ...]


def read_values(manifest: Mapping[str, Any]) -> tuple[RoundedValue, ...]:
    """Return the rounded values of a manifest, none if it is of a float program. Raises ArtifactError for what is malformed."""
    return tuple(
        RoundedValue(
            text(entry, "node"), text(entry, "layer"), text(entry, "op"), text(entry, "kind"), count(entry, "bits"),
            span(entry, "scale"), whole(entry, "zero_point"), span(entry, "grid"), span(entry, "observed"),
            maybe_real(entry, "saturated"), maybe_real(entry, "snr"), counts(entry, "histogram"),
        )
        for entry in records(manifest, "quantization")
    )  # fmt: skip


def read_accuracy(manifest: Mapping[str, Any]) -> Accuracy | None:
    """Return the verdict that a manifest holds, None without one. Raises ArtifactError for what is malformed."""
    entry = manifest.get("accuracy")
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        raise refuse("accuracy", "it is no record")
    kept = entry.get("kept", {})
    if not isinstance(kept, Mapping):
        raise refuse("kept", "it is no record")
    layers = tuple(
        Sensitivity(
            text(each, "node"), text(each, "layer"), text(each, "op"), real(each, "snr"),
            str(kept.get(str(each.get("node")), ""))[:1000],
        )
        for each in records(entry, "layers")
    )  # fmt: skip
    return Accuracy(
        text(entry, "metric"), real(entry, "float"), real(entry, "quantised"), maybe_real(entry, "drop"), text(entry, "drop_unit"),
        maybe_real(entry, "max_drop"), flag(entry, "passes"), count(entry, "samples"), count(entry, "calibration_samples"),
        flag(entry, "held_out"), text(entry, "place"), layers,
    )  # fmt: skip

"""Read what a manifest says of quantisation and accuracy. Artifacts come from strangers, so every field is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsopt.errors import ArtifactError

_MOST_ENTRIES = 100_000
_MOST_BINS = 4096
_LARGEST = 1e300
_WORD = 1000
"""Characters of a name that are kept."""

Range = tuple[float, float]


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
            _text(entry, "node"), _text(entry, "layer"), _text(entry, "op"), _text(entry, "kind"), _count(entry, "bits"),
            _range(entry, "scale"), _whole(entry, "zero_point"), _range(entry, "grid"), _range(entry, "observed"),
            _maybe(entry, "saturated"), _maybe(entry, "snr"), _counts(entry),
        )
        for entry in _records(manifest, "quantization")
    )  # fmt: skip


def read_accuracy(manifest: Mapping[str, Any]) -> Accuracy | None:
    """Return the verdict that a manifest holds, None without one. Raises ArtifactError for what is malformed."""
    entry = manifest.get("accuracy")
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        raise _refuse("accuracy", "it is no record")
    kept = entry.get("kept", {})
    if not isinstance(kept, Mapping):
        raise _refuse("kept", "it is no record")
    layers = tuple(
        Sensitivity(
            _text(each, "node"), _text(each, "layer"), _text(each, "op"), _real(each, "snr"),
            str(kept.get(str(each.get("node")), ""))[:_WORD],
        )
        for each in _records(entry, "layers")
    )  # fmt: skip
    return Accuracy(
        _text(entry, "metric"), _real(entry, "float"), _real(entry, "quantised"), _maybe(entry, "drop"), _text(entry, "drop_unit"),
        _maybe(entry, "max_drop"), _flag(entry, "passes"), _count(entry, "samples"), _count(entry, "calibration_samples"),
        _flag(entry, "held_out"), _text(entry, "place"), layers,
    )  # fmt: skip


def _refuse(key: str, why: str) -> ArtifactError:
    return ArtifactError(
        "DS0804", f"the manifest contradicts itself: {key!r} of its quantisation is not what dsopt writes: {why}",
        fix="copy the artifact again, or compile the model again",
    )  # fmt: skip


def _records(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = holder.get(key, [])
    if not isinstance(found, (list, tuple)) or len(found) > _MOST_ENTRIES:
        raise _refuse(key, "it is no list, or too long a one")
    if not all(isinstance(entry, Mapping) for entry in found):
        raise _refuse(key, "it holds something that is no record")
    return list(found)


def _text(entry: Mapping[str, Any], key: str) -> str:
    found = entry.get(key, "")
    if not isinstance(found, str):
        raise _refuse(key, "it is no text")
    return found[:_WORD]


def _flag(entry: Mapping[str, Any], key: str) -> bool:
    found = entry.get(key)
    if not isinstance(found, bool):
        raise _refuse(key, "it is neither true nor false")
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _real(entry: Mapping[str, Any], key: str) -> float:
    if not _is_real(entry.get(key)):
        raise _refuse(key, "it is no number")
    return float(entry[key])


def _maybe(entry: Mapping[str, Any], key: str) -> float | None:
    return None if entry.get(key) is None else _real(entry, key)


def _whole(entry: Mapping[str, Any], key: str) -> int:
    found = entry.get(key)
    if type(found) is not int or abs(found) >= 1 << 48:
        raise _refuse(key, "it is no whole number")
    return found


def _count(entry: Mapping[str, Any], key: str) -> int:
    found = _whole(entry, key)
    if found < 0:
        raise _refuse(key, "it is negative")
    return found


def _range(entry: Mapping[str, Any], key: str) -> Range:
    found = entry.get(key)
    if not isinstance(found, (list, tuple)) or len(found) != 2 or not all(_is_real(each) for each in found):
        raise _refuse(key, "it is no pair of numbers")
    if found[0] > found[1]:
        raise _refuse(key, "it ends before it begins")
    return float(found[0]), float(found[1])


def _counts(entry: Mapping[str, Any]) -> tuple[int, ...]:
    found = entry.get("histogram", [])
    if not isinstance(found, (list, tuple)) or len(found) > _MOST_BINS:
        raise _refuse("histogram", "it is no list, or too long a one")
    if not all(type(each) is int and 0 <= each < 1 << 48 for each in found):
        raise _refuse("histogram", "it holds something that is no count")
    return tuple(found)

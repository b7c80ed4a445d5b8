"""Fields of a manifest, read with care. Artifacts come from strangers: each field is looked at, and refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsopt.errors import ArtifactError

Range = tuple[float, float]

_MOST_ENTRIES = 100_000
_MOST_BINS = 4096
_LARGEST = 1e300
_WORD = 1000
"""Characters of a text that are kept."""


def refuse(key: str, why: str) -> ArtifactError:
    """Return the error for a field that is not what dsopt writes."""
    return ArtifactError(
        "DS0804", f"the manifest contradicts itself: {key!r} is not what dsopt writes: {why}",
        fix="copy the artifact again, or compile the model again",
    )  # fmt: skip


def record(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a record, an empty one where there is none."""
    found = holder.get(key, {})
    if not isinstance(found, Mapping):
        raise refuse(key, "it is no record")
    return found


def records(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return a list of records, an empty one where there is none."""
    found = holder.get(key, [])
    if not isinstance(found, (list, tuple)) or len(found) > _MOST_ENTRIES:
        raise refuse(key, "it is no list, or too long a one")
    if not all(isinstance(entry, Mapping) for entry in found):
        raise refuse(key, "it holds something that is no record")
    return list(found)


def text(entry: Mapping[str, Any], key: str) -> str:
    """Return a text, "" where there is none."""
    found = entry.get(key, "")
    if not isinstance(found, str):
        raise refuse(key, "it is no text")
    return found[:_WORD]


def flag(entry: Mapping[str, Any], key: str) -> bool:
    """Return what is true or false."""
    found = entry.get(key)
    if not isinstance(found, bool):
        raise refuse(key, "it is neither true nor false")
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def real(entry: Mapping[str, Any], key: str) -> float:
    """Return a finite number."""
    if not _is_real(entry.get(key)):
        raise refuse(key, "it is no number")
    return float(entry[key])


def maybe_real(entry: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number; None where there is none."""
    return None if entry.get(key) is None else real(entry, key)


def whole(entry: Mapping[str, Any], key: str) -> int:
    """Return an integer below 2^48."""
    found = entry.get(key)
    if type(found) is not int or abs(found) >= 1 << 48:
        raise refuse(key, "it is no whole number")
    return found


def count(entry: Mapping[str, Any], key: str) -> int:
    """Return an integer that is not negative."""
    found = whole(entry, key)
    if found < 0:
        raise refuse(key, "it is negative")
    return found


def maybe_count(entry: Mapping[str, Any], key: str) -> int | None:
    """Return an integer that is not negative; None where there is none."""
    return None if entry.get(key) is None else count(entry, key)


def span(entry: Mapping[str, Any], key: str) -> Range:
    """Return two numbers, the second no smaller than the first."""
    found = entry.get(key)
    if not isinstance(found, (list, tuple)) or len(found) != 2 or not all(_is_real(each) for each in found):
        raise refuse(key, "it is no pair of numbers")
    if found[0] > found[1]:
        raise refuse(key, "it ends before it begins")
    return float(found[0]), float(found[1])


def counts(entry: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return a list of integers that are not negative."""
    found = entry.get(key, [])
    if not isinstance(found, (list, tuple)) or len(found) > _MOST_BINS:
        raise refuse(key, "it is no list, or too long a one")
    if not all(type(each) is int and 0 <= each < 1 << 48 for each in found):
        raise refuse(key, "it holds something that is no count")
    return tuple(found)

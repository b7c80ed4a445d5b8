"""One trial of one packed artifact, in a process of its own: `run` starts it, because a kernel that fails takes its process down.

Prints one JSON row. Nothing but the standard library, NumPy and dsopt's runtime can be imported here: the rest is refused.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np

import dsopt.runtime
from dsopt.artifact import Artifact, load_artifact
from dsopt.errors import BudgetError, DsoptError
from dsopt.runtime import Session

REFUSED = frozenset(["click", "onnx", "onnxruntime", "rich", "torch", "triton", "tvm", "tvm_ffi"])
"""Packages that running an artifact must not need."""

TIMED_CALLS, TIMED_SECONDS = 20, 5.0
"""Calls that are timed, but no more than begin within so many seconds."""

MUCH_BYTES = 1 << 42
"""More memory than any GPU has."""

Feeds = dict[str, np.ndarray]
Row = dict[str, Any]


class Refuse(MetaPathFinder):
    """Refuses to import the packages that a machine which only runs artifacts does not have."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise ImportError for a refused package; leave all others to the finders after this one."""
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} was imported, and running an artifact must not need it")


def main(arguments: Sequence[str]) -> None:
    folder, name, trial = arguments
    sys.meta_path.insert(0, Refuse())
    pack = json.loads((Path(folder) / "pack.json").read_text())
    (entry,) = [one for one in pack["entries"] if one["name"] == name]
    calls = read_calls(Path(folder) / f"{name}.npz", pack["calls"])
    try:
        row = TRIALS[trial](Path(folder) / f"{name}.dsopt", calls, entry)
    except DsoptError as error:
        row = {"why": str(error), "code": error.code}
    row["why"] += "".join(f"\n{package} was imported" for package in sorted(REFUSED & set(sys.modules)))
    print(json.dumps(row, allow_nan=False))


def read_calls(path: Path, count: int) -> list[tuple[Feeds, Feeds]]:
    """Return inputs and expected outputs of each call, by flat name."""
    calls: list[tuple[Feeds, Feeds]] = [({}, {}) for _ in range(count)]
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            number, side, name = key.split("/", 2)
            calls[int(number)][("in", "out").index(side)][name] = arrays[key]
    return calls


# ---- trials ----


def try_calls(path: Path, calls: Sequence[tuple[Feeds, Feeds]], entry: Mapping[str, Any]) -> Row:
    """Compare all calls with eager torch; of a model, also take the time."""
    with dsopt.runtime.load(path) as session:
        row = compare(session, calls, entry)
        return row | take_times(session, calls[0][0]) if entry["kind"] == "model" else row


def try_reopening(path: Path, calls: Sequence[tuple[Feeds, Feeds]], entry: Mapping[str, Any]) -> Row:
    """Open an artifact twice at once and once more after closing: each session keeps its own state, and all agree to the bit."""
    with dsopt.runtime.load(path) as first, dsopt.runtime.load(path) as second:
        taken = [[session.run_flat(feeds) for session in (first, second)] for feeds, _ in calls]
    with dsopt.runtime.load(path) as third:
        for both, (feeds, _) in zip(taken, calls, strict=True):
            both.append(third.run_flat(feeds))
        third.reset()
        row = compare(third, calls, entry)
    for one, *others in taken:
        for name, value in one.items():
            if any(value.tobytes() != other[name].tobytes() for other in others):
                row["why"] += f"\n{name} is not the same in every session"
    return row


def try_much_memory(path: Path, calls: Sequence[tuple[Feeds, Feeds]], entry: Mapping[str, Any]) -> Row:
    """Ask for more memory than there is, which must be refused in words, and compare all calls afterwards."""
    artifact = load_artifact(path)
    memory = {**artifact.manifest["memory"], "workspace_bytes": MUCH_BYTES}
    try:
        dsopt.runtime.load(Artifact({**artifact.manifest, "memory": memory}, artifact.files)).close()
    except BudgetError as error:
        said = str(error)
    else:
        return {"why": f"{MUCH_BYTES:,} bytes were not refused"}
    with dsopt.runtime.load(artifact) as session:
        return compare(session, calls, entry) | {"note": said}


TRIALS = {"calls": try_calls, "reopening": try_reopening, "much memory": try_much_memory}


# ---- measuring ----


def compare(session: Session, calls: Sequence[tuple[Feeds, Feeds]], entry: Mapping[str, Any]) -> Row:
    """Run all calls in sequence. Return the largest error, None if it is infinite, and a line for each output that is off."""
    errors: dict[str, float] = {}
    for feeds, wanted in calls:
        got = session.run_flat(feeds)
        for name, want in wanted.items():
            errors[name] = max(errors.get(name, 0.0), relative_error(got[name], want))
    off = {name: error for name, error in errors.items() if not error <= entry["tolerance"]}
    lines = [f"{entry['labels'][name]}: relative error {error:.3g}" for name, error in off.items()]
    worst = max(errors.values(), default=0.0)
    return {"relative_error": worst if math.isfinite(worst) else None, "why": "\n".join(lines)}


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return max|got - want| / max|want|; inf where shape, dtype, NaN or infinity differ, and for other whole numbers."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return math.inf
    if not np.issubdtype(want.dtype, np.inexact):
        return 0.0 if np.array_equal(got, want) else math.inf
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return math.inf
    left, right = got[finite].astype(np.float64), want[finite].astype(np.float64)
    scale = np.abs(right).max(initial=0.0)
    return float(np.abs(left - right).max(initial=0.0) / (scale if scale > 0 else 1.0))


def take_times(session: Session, feeds: Feeds) -> Row:
    """Return the median seconds of a call, copies included, and what a profile says: its total and its slowest layer."""
    seconds: list[float] = []
    while len(seconds) < TIMED_CALLS and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        session.run_flat(feeds)
        seconds.append(time.perf_counter() - start)
    layers = session.profile(feeds).layers
    slowest = max(layers, key=lambda cost: cost.seconds or 0.0)
    return {
        "seconds": statistics.median(seconds),
        "profile_seconds": sum(cost.seconds or 0.0 for cost in layers),
        "slowest_layer": slowest.layer or slowest.node,
        "slowest_seconds": slowest.seconds,
    }


if __name__ == "__main__":
    main(sys.argv[1:])

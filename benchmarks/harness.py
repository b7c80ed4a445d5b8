"""What every benchmark shares: options, the machine, interleaved timing, paired ratios, one table or one JSON document."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
"""What was measured, with its unit in the key: {"model": "kws", "compile_cpu_seconds": 2.1}."""

SAMPLE_SECONDS = 0.004
"""Calls shorter than this are timed several at once, so that the clock and one interrupt weigh little."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks take."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--quick", action="store_true", help="fewer models and rounds: a look, not a claim")
    options.add_argument(
        "--assets", type=Path, metavar="DIR", help="folder with data/ and models/ (see models/trained.py)"
    )
    options.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return options


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of what is measured."""
    packages = ("dsopt", "numpy", "onnxruntime", "torch")
    return {
        "processor": _processor(),
        "logical_processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages if _is_installed(name)},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, budget_seconds: float, least_rounds: int = 11
) -> dict[str, list[float]]:
    """Time candidates in turn, round after round, and return the seconds a call of each took in each round.

    Each round starts with the next candidate, so that none always runs after the same one. Rounds go on until
    `budget_seconds` are spent, but at least `least_rounds`. Before each sample stands a call that is not counted: the
    threads of the candidate before it may still be spinning, and the caches are full of its weights.
    """
    calls: dict[str, int] = {}
    for name, candidate in candidates.items():
        calls[name] = max(1, math.ceil(SAMPLE_SECONDS / max(_seconds(candidate, 1), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    end, done = time.perf_counter() + budget_seconds, 0
    while done < least_rounds or time.perf_counter() < end:
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(_seconds(candidates[name], calls[name]))
        done += 1
    return seconds


def _seconds(candidate: Callable[[], object], calls: int) -> float:
    candidate()
    start = time.perf_counter()
    for _ in range(calls):
        candidate()
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and its one-sided 95 % upper bound."""

    median: float
    upper95: float


def paired_ratio(ours: Sequence[Sequence[float]], peer: Sequence[Sequence[float]], *, seed: int = 0) -> Ratio:
    """Compare rounds pairwise, so that a slow moment of the machine hits both sides.

    ours, peer: the rounds of each opening, that is of each time both sides were loaded anew: where the weights of a small
    network lie in memory moves its time by several percent. The bound is the 95th percentile of the median in 2,000
    bootstrap samples, drawn of the openings and then of their rounds (Efron & Tibshirani 1993, chapters 8 and 13). The
    median, because another process that takes the core makes single rounds arbitrarily slow.
    """
    ratios = [np.asarray(mine) / np.asarray(other) for mine, other in zip(ours, peer, strict=True)]
    rng = np.random.default_rng(seed)
    medians = []
    for _ in range(2000):
        openings = rng.integers(0, len(ratios), len(ratios))
        drawn = [rng.choice(ratios[opening], len(ratios[opening])) for opening in openings]
        medians.append(np.median(np.concatenate(drawn)))
    return Ratio(float(np.median(np.concatenate(ratios))), float(np.quantile(medians, 0.95)))


def relative_error(ours: Iterable[np.ndarray], reference: Iterable[np.ndarray]) -> float:
    """Return the largest over the tensors of max|a - b| / max|b|. Raises ValueError if shapes differ or a value is not finite."""
    worst = 0.0
    for a, b in zip(ours, reference, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"an output is {a.shape} and the reference {b.shape}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("an output is not finite")
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
        worst = max(worst, float(difference / max(np.abs(b).max(initial=0.0), np.finfo(np.float32).tiny)))
    return worst


def progress(text: str) -> None:
    """Say on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def report(name: str, rows: Sequence[Row], *, as_json: bool, **lists: Sequence[Row]) -> None:
    """Print the rows: one table for each set of keys, or one JSON document with the machine in it and further lists by name."""
    if as_json:
        document = {"schema": 1, "name": name, "machine": machine(), "rows": rows, **lists}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in [*rows, *(row for further in lists.values() for row in further)]:
        groups.setdefault(tuple(row), []).append(row)
    for keys, members in groups.items():
        print()
        print(table([keys, *([_cell(row[key]) for key in keys] for row in members)]))


def table(lines: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right; the first line is the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

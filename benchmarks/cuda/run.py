"""Run what `benchmarks.cuda.pack` wrote, on a machine with a GPU, and compare it with the eager torch of the other machine.

Needs Python, NumPy and the NVIDIA driver. For each artifact: the largest max|a - b| / max|b| over the outputs of three calls,
and for models the median seconds of a call and the sum of a profile. One model is also opened several times, and asked for
more memory than there is. Each trial is a process of its own; one that fails does not stop the others.
Exit status: 0 all agree, 1 one does not, 4 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, progress, report

NO_GPU = "DS0705"
LAST_LINES = 12
"""Of what a process that died said on stderr."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("folder", type=Path, metavar="DIR", help="what pack wrote")
    options.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of one trial; 60 unless given")
    options.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    chosen = options.parse_args(arguments)
    if not (chosen.folder / "pack.json").is_file():
        options.error(f"{chosen.folder} holds no pack.json: write it with python -m benchmarks.cuda.pack")
    pack = json.loads((chosen.folder / "pack.json").read_text())
    rows: list[Row] = []
    for name, trial, tolerance in trials(pack):
        outcome = in_a_process(chosen.folder, name, trial, chosen.timeout)
        if outcome.get("code") == NO_GPU:
            print(f"There is no GPU here, so nothing was run.\n{outcome['why']}", file=sys.stderr)
            return 4
        rows.append(row_of(name if trial == "calls" else f"{name}, {trial}", tolerance, outcome))
        # At once and in full: whoever lends the machine may take it back before the table is printed.
        progress(f"{rows[-1]['name']}: {rows[-1]['result']} {rows[-1]['relative_error']} {rows[-1]['why']}".rstrip())
    show(rows, as_json=chosen.json)
    for left_out in pack["left_out"]:
        progress(f"not packed: {left_out['name']} of {left_out['bytes']:,} bytes {left_out['error']}".rstrip())
    return int(any(row["result"] != "ok" for row in rows))


def trials(pack: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Give name, trial and tolerance: the calls of every artifact, then what else the first model must stand."""
    for entry in pack["entries"]:
        yield entry["name"], "calls", entry["tolerance"]
    for entry in [entry for entry in pack["entries"] if entry["kind"] == "model"][:1]:
        for trial in ("reopening", "much memory"):
            yield entry["name"], trial, entry["tolerance"]


def in_a_process(folder: Path, name: str, trial: str, timeout_seconds: float) -> Mapping[str, Any]:
    """Return the row that the trial printed, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.cuda.trial", str(folder), name, trial]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return {"why": f"it was not done after {timeout_seconds:g} seconds"}
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        return {"why": f"the process ended with status {done.returncode}\n{said}".strip()}
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def row_of(name: str, tolerance: float, outcome: Mapping[str, Any]) -> Row:
    """Return a row with every column, None where there is nothing to say."""
    measured = ("seconds", "profile_seconds", "slowest_layer", "slowest_seconds")
    return {
        "name": name,
        "relative_error": outcome.get("relative_error"),
        "tolerance": tolerance,
        "result": "FAILED" if outcome["why"] else "ok",
        **{key: outcome.get(key) for key in measured},
        "why": outcome["why"],
        "note": outcome.get("note", ""),
    }


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print one JSON document, or one table and below it the lines of text that no table holds."""
    if as_json:
        report("cuda", rows, as_json=True)
        return
    texts = ("why", "note")
    report("cuda", [{key: value for key, value in row.items() if key not in texts} for row in rows], as_json=False)
    for row in rows:
        for text in (row[key] for key in texts if row[key]):
            print(f"\n{row['name']}: {row['result']}\n  " + text.replace("\n", "\n  "))


if __name__ == "__main__":
    sys.exit(main())
